"""Scaling by mean and range, by mean and deviation: in parts, on Dask, in pipelines."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

from normkit.errors import DataError, DTypeError, OptionError, ShapeError
from normkit.scaling import Summary, data, scale_by_deviation, scale_by_range, summary

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from normkit.scaling import MeanDeviationScaler, MeanRangeScaler  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal([1.0, -200.0, 1e4], [1.0, 30.0, 1.0], (400, 3))
BOTH = {"range": scale_by_range, "deviation": scale_by_deviation}


def by_hand(x, by, axis=0):
    spread = np.ptp(x, axis=axis, keepdims=True) if by == "range" else x.std(axis, keepdims=True)
    return (x - x.mean(axis, keepdims=True)) / spread


class TestFunctions:
    @pytest.mark.parametrize("by", BOTH)
    def test_columns(self, by):
        np.testing.assert_allclose(BOTH[by](X), by_hand(X, by), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("by", BOTH)
    def test_channels_of_images(self, by):
        x = RNG.normal(5, 2, (6, 3, 4, 4))
        np.testing.assert_allclose(BOTH[by](x, axis=1), by_hand(x, by, (0, 2, 3)), rtol=1e-9)

    @pytest.mark.parametrize("by", BOTH)
    def test_one_scale_in_all(self, by):
        x = RNG.integers(0, 255, (5, 7)).astype("uint8")
        found = BOTH[by](x, axis=None)
        np.testing.assert_allclose(found, by_hand(x.astype(float), by, (0, 1)), rtol=1e-9)
        assert found.dtype == np.float64

    def test_a_feature_that_never_changes_becomes_zero(self):
        x = np.full((3, 2), 0.1)
        for scale in BOTH.values():
            assert not scale(x).any()

    def test_a_feature_whose_variance_is_too_small_for_a_number(self):
        x = np.array([[0.0], [1e-200]])
        assert np.isfinite(scale_by_deviation(x)).all()

    def test_float32_far_from_zero_keeps_its_digits(self):
        x = (RNG.normal(size=(1000, 2)) + 1e4).astype("float32")
        found = scale_by_deviation(x)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, by_hand(x.astype("float64"), "deviation"), atol=1e-6)

    def test_what_is_given_is_not_changed(self):
        x = X.copy()
        x.setflags(write=False)
        scale_by_range(x)
        np.testing.assert_array_equal(x, X)


class TestParts:
    @pytest.mark.parametrize("by", BOTH)
    @pytest.mark.parametrize("cuts", [[1], [5, 5, 390], [399]])
    def test_parts_merge_into_the_whole_in_any_order(self, by, cuts):
        parts = [part for part in np.split(X, np.cumsum(cuts)) if len(part)]
        whole = Summary.of(X).scale(by)
        for order in (parts, parts[::-1]):
            found = Summary.of_parts(iter(order)).scale(by)
            np.testing.assert_allclose(found.shift, whole.shift, rtol=1e-12)
            np.testing.assert_allclose(found.divisor, whole.divisor, rtol=1e-12)

    def test_blocks_change_nothing(self, monkeypatch):
        whole = Summary.of(X).scale()(X)
        monkeypatch.setattr(data, "BLOCK", 17)
        np.testing.assert_allclose(Summary.of(X).scale()(X), whole, rtol=0, atol=1e-10)
        wide = X.T.copy()
        again = Summary.of(wide, axis=0).scale()(wide).T
        np.testing.assert_allclose(again, whole, rtol=0, atol=1e-10)

    def test_data_on_disk_are_read_in_blocks(self, tmp_path, monkeypatch):
        np.save(tmp_path / "x.npy", X)
        monkeypatch.setattr(data, "BLOCK", 64)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        np.testing.assert_allclose(Summary.of(mapped).scale()(mapped), by_hand(X, "deviation"))

    def test_wide_data_need_little_memory(self, monkeypatch):
        x = RNG.normal(size=(64, 1 << 13)).astype("float32")
        monkeypatch.setattr(data, "BLOCK", x.shape[1])  # a row at a time
        tracemalloc.start()
        found = Summary.of(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 25 * x[0].astype("float64").nbytes  # all rows' summaries are 320 times that
        np.testing.assert_allclose(found.moments.var, x.var(0, "float64"), rtol=1e-12)
        np.testing.assert_array_equal(found.high, x.max(0))

    def test_back_again(self):
        for by in BOTH:
            scale = Summary.of(X).scale(by)
            np.testing.assert_allclose(scale.inverse(scale(X)), X, rtol=1e-12)

    def test_features_that_do_not_fit(self):
        with pytest.raises(ShapeError, match="3 features along axis -1"):
            Summary.of(X).scale()(X[:, :2])
        with pytest.raises(ShapeError):
            Summary.of(X).merge(Summary.of(X[:, :2]))
        with pytest.raises(ShapeError, match="Summaries of other layouts"):
            Summary.of(X).merge(Summary.of(X[:, :, None], axis=1))


class TestBadInput:
    def test_none_at_all(self):
        for empty in (np.empty((0, 3)), []):
            with pytest.raises(DataError, match="at least one value"):
                Summary.of(empty, axis=-1)
        with pytest.raises(DataError, match="no parts"):
            Summary.of_parts([])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value):
        x = X.copy()
        x[7, 1] = value
        with pytest.raises(DataError, match="1 features, the first is number 1"):
            Summary.of(x)

    def test_no_numbers(self):
        with pytest.raises(DTypeError, match="Encode categories"):
            scale_by_range(np.array([["a"], ["b"]]))
        with pytest.raises(DTypeError):
            scale_by_range(np.array([1j, 2j]))

    def test_masked_values_are_not_read(self):
        hidden = np.ma.array([[1.0], [2.0], [999.0]], mask=[[0], [0], [1]])
        known = Summary.of([[1.0], [2.0]]).scale()
        for call in (Summary.of, scale_by_range, known, known.inverse):
            with pytest.raises(DataError, match="a mask over 1 of 3 values"):
                call(hidden)
        shown = np.ma.array([[1.0], [2.0]], mask=False)
        np.testing.assert_array_equal(scale_by_range(shown), [[-0.5], [0.5]])

    @pytest.mark.parametrize(
        ("by", "values"),
        [
            ("range", [-1.7e308, 1.7e308, 0.0]),
            ("deviation", [-1e200, 1e200]),
            ("range", [1.7e308, 1.6e308]),  # whose sum overflows
            ("range", [np.longdouble("1e400"), 0.0]),
        ],
    )
    def test_what_overflows_is_said_without_warnings(self, by, values):
        column = np.array(values)[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DataError, match="1 features, the first is number 1"):
                BOTH[by](np.hstack([np.zeros_like(column), column]))

    @pytest.mark.parametrize(("by", "ends"), [("range", 1.7e308), ("deviation", 1e200)])
    def test_what_overflows_between_parts(self, by, ends):
        merged = Summary.of_parts([[[ends]], [[-ends]]])
        with pytest.raises(DataError, match=f"a mean or {by} that is not finite"):
            merged.scale(by)

    def test_by_range_what_overflows_by_deviation(self):
        np.testing.assert_allclose(scale_by_range([[-1e200], [1e200]]), [[-0.5], [0.5]])

    @pytest.mark.parametrize("dtype", ["int64", "uint64"])
    def test_whole_numbers_that_float64_rounds(self, dtype):
        x = np.array([[2**60], [2**60 + 2]], dtype)
        known = Summary.of([[1.0], [2.0]]).scale()
        for call in (Summary.of, known):
            with pytest.raises(DataError, match=r"from 1152921504606846976 to .*Subtract a whole"):
                call(x)
        np.testing.assert_array_equal(scale_by_range(x - x.min()), [[-0.5], [0.5]])
        edge = np.array([[2**53], [2**53 - 2]], dtype)
        np.testing.assert_array_equal(scale_by_range(edge), [[0.5], [-0.5]])
        with pytest.raises(DataError, match="too large"):
            Summary.of(-np.array([[2**60], [3]]))

    def test_no_axis_of_samples(self):
        for call in (scale_by_range, scale_by_deviation, Summary.of):
            with pytest.raises(ShapeError, match=r"no axis of samples.*makes one feature"):
                call([1.0, 2.0, 6.0])
        np.testing.assert_allclose(scale_by_range([1.0, 2.0, 6.0], axis=None), [-0.4, -0.2, 0.6])
        one = Summary.of(X).scale()  # of what is known, one sample can be scaled
        np.testing.assert_array_equal(one(X[0]), one(X)[0])

    @pytest.mark.parametrize("axis", [2, -3, 0.5, True])
    def test_no_such_axis(self, axis):
        with pytest.raises(ShapeError, match="No axis of features"):
            scale_by_range(X, axis=axis)

    def test_no_such_way(self):
        with pytest.raises(OptionError, match="'range' or 'deviation'"):
            Summary.of(X).scale("median")


class TestFrames:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")

    def test_truth_values_beside_numbers(self):
        frame = self.pandas.DataFrame({"metres": [1.0, 2.0, 6.0], "new": [True, False, False]})
        frame["doors"] = self.pandas.array([2, 4, 4], "Int64")
        want = by_hand(frame.to_numpy(float), "range")
        np.testing.assert_allclose(scale_by_range(frame), want)

    def test_what_is_missing_is_not_finite(self):
        frame = self.pandas.DataFrame({"new": [True, False], "age": [1.0, 2.0]})
        frame["doors"] = self.pandas.array([2, None], "Int64")
        with pytest.raises(DataError, match="1 features, the first is number 2"):
            scale_by_range(frame)

    @pytest.mark.parametrize("values", [["1.5", "2"], [1j, 2j], [None, "a"]])
    def test_columns_of_something_else(self, values):
        frame = self.pandas.DataFrame({"new": [True, False], "other": values})
        with pytest.raises(DTypeError, match="real numbers"):
            scale_by_range(frame)


class TestDask:
    da = pytest.importorskip("dask.array", reason="Dask is not installed")

    @pytest.mark.parametrize("by", BOTH)
    @pytest.mark.parametrize("chunks", [(400, 3), (100, 3), (33, 2), (1, 1)])
    def test_as_numpy_and_lazy(self, by, chunks):
        x = self.da.from_array(X[:40], chunks=chunks)
        scale = Summary.of(x).scale(by)
        lazy = scale(x)
        assert isinstance(lazy, self.da.Array)
        np.testing.assert_allclose(lazy.compute(), by_hand(X[:40], by), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(scale.inverse(lazy).compute(), X[:40], rtol=1e-9)

    def test_empty_blocks_change_nothing(self):
        x = self.da.concatenate([self.da.from_array(X), self.da.empty((0, 3))])
        np.testing.assert_allclose(Summary.of(x).scale().shift, X.mean(0))
        with pytest.raises(DataError, match=r"Dask array of shape \(0, 3\)"):
            Summary.of(self.da.empty((0, 3)))

    def test_blocks_merge_a_few_at_a_time(self, monkeypatch):
        sizes, merged = [], summary._merged
        monkeypatch.setattr(summary, "_merged", lambda p: sizes.append(len(p)) or merged(p))
        found = Summary.of(self.da.from_array(X, chunks=(1, 3)))
        assert sorted(sizes) == [2, 9, *[16] * 26]  # 400 blocks to 25, to 2, to 1
        np.testing.assert_allclose(found.moments.mean, X.mean(0))

    def test_as_bad_as_numpy(self):
        known = Summary.of(X).scale()
        for call in (Summary.of, known, known.inverse):
            with pytest.raises(DTypeError, match="complex128"):
                call(self.da.from_array(X + 1j)[:9])
        with pytest.raises(ShapeError, match="no axis of samples"):
            Summary.of(self.da.from_array(X[0]))
        large = self.da.from_array(np.full((4, 3), 2**60))
        hidden = self.da.ma.masked_greater(self.da.from_array(X), 1e4)
        for x, words in ((large, "too large to scale"), (hidden, "are masked")):
            with pytest.raises(DataError, match=words):
                Summary.of(x)
            with pytest.raises(DataError, match=words):
                known(x).compute()

    def test_dtypes(self):
        for dtype in ("float16", "float32", "int16", "bool"):
            x = (X[:50] > 0).astype(dtype) + (np.arange(50)[:, None] % 2).astype(dtype)
            lazy = scale_by_range(self.da.from_array(x, chunks=(7, 2)))
            assert lazy.dtype == lazy.compute().dtype == scale_by_range(x).dtype
            np.testing.assert_allclose(lazy, scale_by_range(x), rtol=1e-7)

    def test_across_processes(self):
        distributed = pytest.importorskip("distributed", reason="Dask distributed is not installed")
        x = self.da.from_array(X, chunks=(50, 3))
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
            found = MeanDeviationScaler().fit(x).transform(x).compute()
        np.testing.assert_allclose(found, by_hand(X, "deviation"), rtol=0, atol=1e-10)


@parametrize_with_checks([MeanRangeScaler(), MeanDeviationScaler()])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


class TestTransformers:
    def test_by_deviation_is_standard_scaler(self):
        ours, theirs = MeanDeviationScaler().fit(X), StandardScaler().fit(X)
        np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-12)
        assert ours.n_samples_seen_ == 400

    def test_partial_fit_is_fit(self):
        for kind in (MeanRangeScaler, MeanDeviationScaler):
            parts = kind()
            for part in np.array_split(X, 7):
                parts.partial_fit(part)
            whole = kind().fit(X)
            np.testing.assert_allclose(parts.scale_, whole.scale_, rtol=1e-12)
            np.testing.assert_allclose(parts.fit(X[:9]).mean_, X[:9].mean(0))

    def test_names_of_columns_and_frames(self):
        pandas = pytest.importorskip("pandas", reason="pandas is not installed")
        frame = pandas.DataFrame(X, columns=["age", "metres", "year"])
        scaler = MeanRangeScaler().set_output(transform="pandas").fit(frame)
        assert list(scaler.transform(frame).columns) == ["age", "metres", "year"]

    def test_sparse_is_refused_clearly(self):
        scipy = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
        with pytest.raises(TypeError, match=r"[Ss]parse"):
            MeanRangeScaler().fit(scipy.csr_matrix(np.eye(3)))

    def test_dask_stays_lazy(self):
        da = pytest.importorskip("dask.array", reason="Dask is not installed")
        x = da.from_array(X, chunks=(100, 3))
        scaler = MeanRangeScaler().fit(x)
        assert scaler.n_features_in_ == 3
        assert isinstance(scaler.transform(x), da.Array)
        np.testing.assert_allclose(scaler.transform(x).compute(), by_hand(X, "range"), atol=1e-12)

    def test_a_failed_fit_leaves_nothing(self):
        for spoilt in (np.full((2, 3), np.nan), X[:, :1] * [np.nan, 1.0], [[1e308], [-1e308]]):
            scaler = MeanDeviationScaler().fit(X)
            with pytest.raises(ValueError, match=r"NaN|too large"):
                scaler.fit(spoilt)
            for call in (scaler.transform, scaler.inverse_transform):
                with pytest.raises(NotFittedError):
                    call(X)
            assert not hasattr(scaler, "mean_")
            np.testing.assert_allclose(scaler.fit(X).mean_, X.mean(0))

    def test_a_failed_part_changes_nothing(self):
        scaler = MeanDeviationScaler().fit(X)
        with pytest.raises(DataError, match="too large"):
            scaler.partial_fit(np.full((2, 3), 1e308))
        np.testing.assert_allclose(scaler.transform(X), by_hand(X, "deviation"), atol=1e-10)
        assert scaler.n_samples_seen_ == 400

    def test_masked_values_are_not_read(self):
        hidden = np.ma.masked_greater(X, 1e4)
        scaler = MeanRangeScaler().fit(X)
        calls = (scaler.transform, scaler.inverse_transform, scaler.partial_fit, scaler.fit)
        for call in calls:
            with pytest.raises(DataError, match="are masked"):
                call(hidden)

    def test_whole_numbers_that_float64_rounds(self):
        scaler = MeanRangeScaler().fit(np.array([[1], [2]]))
        for call in (scaler.transform, scaler.inverse_transform, scaler.partial_fit, scaler.fit):
            with pytest.raises(DataError, match="too large to scale"):
                call(np.array([[2**60], [2**60 + 2]]))

    def test_names_go_with_the_data(self):
        pandas = pytest.importorskip("pandas", reason="pandas is not installed")
        da = pytest.importorskip("dask.array", reason="Dask is not installed")
        frame = pandas.DataFrame(X, columns=["age", "metres", "year"])
        scaler = MeanRangeScaler().fit(frame)
        # What transform returns has no names, so this must not warn of that.
        np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(frame)), X)
        scaler.fit(da.from_array(X[:, :2]))
        assert not hasattr(scaler, "feature_names_in_")
        assert scaler.n_features_in_ == 2
        with pytest.raises(ValueError, match="3 features"):
            scaler.transform(da.from_array(X))
        with pytest.raises(ShapeError, match="2 features along axis -1"):
            scaler.inverse_transform(X)

    def test_pickles(self):
        scaler = MeanDeviationScaler().fit(X)
        again = pickle.loads(pickle.dumps(scaler))
        np.testing.assert_array_equal(again.transform(X), scaler.transform(X))


def test_functions_need_no_scikit_learn():
    code = (
        "import sys, numpy as np; from normkit.scaling import scale_by_range;"
        "scale_by_range(np.eye(3)); assert not {'sklearn', 'dask', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
