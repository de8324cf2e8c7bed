"""InputScaling: what it learns, what it keeps, how it travels, and what it says to bad input."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from normkit.errors import DataError, DTypeError, ModelError, OptionError, ShapeError  # noqa: E402
from normkit.scaling import Summary  # noqa: E402
from normkit.torch import InputScaling  # noqa: E402

nn = torch.nn
F32, F64 = torch.float32, torch.float64
RNG = np.random.default_rng(0)
X = RNG.normal([1.0, -200.0, 1e4], [1.0, 30.0, 1.0], (400, 3))
TENSOR = torch.from_numpy(X)
LABELS = torch.arange(400)
WAYS = ("deviation", "range")
both_ways = pytest.mark.parametrize("by", WAYS)


def by_hand(x, by, axis=0):
    spread = np.ptp(x, axis=axis, keepdims=True) if by == "range" else x.std(axis, keepdims=True)
    return (x - x.mean(axis, keepdims=True)) / spread


def close(got, want, atol=1e-10):
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=atol)


DATA = {
    "array": lambda: X,
    "tensor": lambda: TENSOR,
    "list": lambda: [*TENSOR.split(7)][::-1],
    "generator": lambda: (part for part in TENSOR.split(100)),
    "pairs": lambda: list(zip(TENSOR.split(64), LABELS.split(64), strict=True)),
    "loader": lambda: torch.utils.data.DataLoader(DATA["dataset"](), 33),
    "dataset": lambda: torch.utils.data.TensorDataset(TENSOR, LABELS),
    "summary": lambda: Summary.of(X[:9]).merge(Summary.of(X[9:])),
}


class TestWhatItLearns:
    @both_ways
    def test_columns(self, by):
        layer = InputScaling(by)
        assert layer.adapt(TENSOR) is layer
        close(layer(TENSOR), by_hand(X, by))

    @both_ways
    @pytest.mark.parametrize("axis", [1, -3])
    def test_channels_of_images(self, by, axis):
        x = RNG.normal(5, 2, (6, 3, 4, 4))
        close(
            InputScaling(by, axis).adapt(torch.from_numpy(x))(torch.from_numpy(x)),
            by_hand(x, by, (0, 2, 3)),
        )

    @both_ways
    def test_one_scale_in_all(self, by):
        layer = InputScaling(by, axis=None).adapt(TENSOR)
        close(layer(TENSOR), by_hand(X, by, (0, 1)))
        assert layer(TENSOR[0, 0]).shape == ()

    @pytest.mark.parametrize("kind", DATA)
    @both_ways
    def test_data_of_every_kind(self, kind, by):
        close(InputScaling(by).adapt(DATA[kind]())(TENSOR), by_hand(X, by))

    def test_data_on_disk(self, tmp_path):
        np.save(tmp_path / "x.npy", X)
        layer = InputScaling().adapt(np.load(tmp_path / "x.npy", mmap_mode="r"))
        close(layer(TENSOR), by_hand(X, "deviation"))

    def test_dask_arrays(self):
        da = pytest.importorskip("dask.array", reason="Dask is not installed")
        close(InputScaling().adapt(da.from_array(X, (50, 2)))(TENSOR), by_hand(X, "deviation"))

    def test_frames(self):
        pandas = pytest.importorskip("pandas", reason="pandas is not installed")
        frame = pandas.DataFrame(X, columns=["age", "metres", "year"])
        for data in (frame, [frame[:100], frame[100:]]):
            close(InputScaling().adapt(data)(TENSOR), by_hand(X, "deviation"))

    def test_half_precision_and_whole_numbers(self):
        for dtype in (torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool):
            x = torch.from_numpy(RNG.integers(0, 2, (50, 2))).to(dtype)
            close(InputScaling().adapt(x)(x.double()), by_hand(x.double().numpy(), "deviation"))

    def test_what_never_changes_becomes_zero(self):
        for value in (0.1, -3e7, 0.0):
            x = torch.full((5, 2), value, dtype=F32)
            for by in WAYS:
                layer = InputScaling(by).adapt(x)
                assert not layer(x).any()
                torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=0, atol=0)

    def test_a_spread_too_small_for_float32(self):
        layer = InputScaling("range").adapt(torch.tensor([[0.0], [1e-60]], dtype=F64))
        assert layer(torch.zeros(1, 1)).isfinite().all()
        close(layer(torch.tensor([[1e-60]], dtype=F64)), [[0.5]])

    def test_learning_again_forgets(self):
        layer = InputScaling().adapt(TENSOR).adapt(TENSOR[:9, :2])
        close(layer(TENSOR[:9, :2]), by_hand(X[:9, :2], "deviation"))

    def test_a_failure_changes_nothing(self):
        layer = InputScaling().adapt(TENSOR)
        spoilt = [TENSOR[:5], torch.full((2, 3), torch.nan)]
        with pytest.raises(DataError, match="not finite"):
            layer.adapt(spoilt)
        close(layer(TENSOR), by_hand(X, "deviation"))

    def test_data_are_left_alone(self):
        x = TENSOR.clone().requires_grad_()
        layer = InputScaling().adapt(x)
        torch.testing.assert_close(x.detach(), TENSOR, rtol=0, atol=0)
        assert not any(v.requires_grad for v in layer.state_dict().values())


class TestNumbers:
    @both_ways
    def test_float32_far_from_zero_keeps_its_digits(self, by):
        x = (torch.from_numpy(RNG.normal(size=(1000, 2))) + 1e4 + 1e-4).float()
        found = InputScaling(by).adapt(x)(x)
        assert found.dtype is F32
        exact = by_hand(x.double().numpy(), by)
        error = np.abs(found.numpy() - exact)
        assert error.max() <= 4 * np.finfo("float32").eps * np.abs(exact).max()
        # and this is not for free: with a mean in float32 it is hundreds of times as much
        once = (x - x.double().mean(0).float()) / x.double().std(0).float()
        if by == "deviation":
            assert np.abs(once.numpy() - exact).max() > 100 * error.max()

    @both_ways
    def test_back_again(self, by):
        layer = InputScaling(by).adapt(TENSOR)
        torch.testing.assert_close(layer.inverse(layer(TENSOR)), TENSOR, rtol=1e-12, atol=0)
        single = TENSOR.float()
        torch.testing.assert_close(layer.inverse(layer(single)), single, rtol=2e-7, atol=1e-6)

    @both_ways
    def test_inverted(self, by):
        there, back = (InputScaling(by, invert=i).adapt(TENSOR) for i in (False, True))
        torch.testing.assert_close(back(there(TENSOR)), TENSOR, rtol=1e-12, atol=0)
        torch.testing.assert_close(back.inverse(TENSOR), there(TENSOR), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [F64, F32, torch.float16, torch.bfloat16])
    def test_floats_keep_their_dtype(self, dtype):
        x = torch.from_numpy(RNG.normal(5, 2, (50, 3))).to(dtype)
        layer = InputScaling().adapt(x)
        assert layer(x).dtype is layer.inverse(x).dtype is dtype
        exact = torch.from_numpy(by_hand(x.double().numpy(), "deviation"))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(layer(x).double(), exact, rtol=eps, atol=eps)

    def test_whole_numbers_of_any_size(self):
        x = torch.tensor([[2**53 - 1], [2**53 - 3]])
        layer = InputScaling().adapt(x)
        assert layer(x).dtype is torch.get_default_dtype()
        close(layer(x), [[1.0], [-1.0]])

    def test_gradients_go_through(self):
        x = TENSOR.clone().requires_grad_()
        layer = InputScaling().adapt(TENSOR)
        dy = torch.from_numpy(RNG.normal(size=X.shape))
        layer(x).backward(dy)
        close(x.grad, dy.numpy() / X.std(0), 1e-12)
        assert not list(layer.parameters())

    def test_known_without_data(self):
        x = torch.tensor([[3.0, 1.0], [5.0, 9.0]])
        close(InputScaling(mean=[3.0, 1.0], variance=[4.0, 16.0])(x), [[0, 0], [1, 2]])
        close(InputScaling(mean=[3.0, 1.0], divisor=[2.0, 4.0])(x), [[0, 0], [1, 2]])
        close(InputScaling("range", mean=3.0, divisor=2.0)(x), [[0, -1], [1, 3]])
        close(InputScaling(axis=None, mean=3.0, variance=4.0)(x), [[0, -1], [1, 3]])
        close(InputScaling(mean=[3.0, 1.0], variance=0.0)(x), [[0, 0], [2, 8]])


class TestTravel:
    def test_into_a_layer_that_knows_nothing(self):
        layer = InputScaling().adapt(TENSOR)
        fresh = nn.Sequential(InputScaling(), nn.Linear(3, 2))
        state = nn.Sequential(layer, fresh[1]).state_dict()
        assert {name: v.dtype for name, v in state.items()}["0.mean"] is F64
        fresh.load_state_dict(state)
        torch.testing.assert_close(fresh[0](TENSOR), layer(TENSOR), rtol=0, atol=0)

    def test_assigned(self):
        layer, fresh = InputScaling().adapt(TENSOR), InputScaling()
        fresh.load_state_dict(layer.state_dict(), assign=True)
        torch.testing.assert_close(fresh(TENSOR), layer(TENSOR), rtol=0, atol=0)

    def test_state_that_knows_nothing(self):
        fresh = InputScaling()
        fresh.load_state_dict(InputScaling().state_dict())
        assert not fresh.adapted

    def test_other_features_are_refused(self):
        layer = InputScaling().adapt(TENSOR[:, :2])
        with pytest.raises(RuntimeError, match="size mismatch for mean"):
            layer.load_state_dict(InputScaling().adapt(TENSOR).state_dict())
        with pytest.raises(RuntimeError, match="Missing key"):
            InputScaling().load_state_dict({})

    def test_files(self, tmp_path):
        layer, fresh = InputScaling().adapt(TENSOR), InputScaling()
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        torch.testing.assert_close(fresh(TENSOR), layer(TENSOR), rtol=0, atol=0)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies(self, copied):
        layer = InputScaling("range", invert=True).adapt(TENSOR)
        again = copied(layer)
        torch.testing.assert_close(again(TENSOR), layer(TENSOR), rtol=0, atol=0)
        assert repr(again) == repr(layer)

    @pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.float, nn.Module.bfloat16])
    def test_a_model_in_another_dtype_keeps_the_numbers(self, cast):
        x = TENSOR + 1e6
        model = cast(nn.Sequential(InputScaling().adapt(x), nn.Linear(3, 2)))
        assert model[0].mean.dtype is model[0].divisor.dtype is F64
        close(model[0](x), by_hand(x.numpy(), "deviation"), 1e-9)

    def test_devices(self):
        layer = InputScaling().adapt(TENSOR).to("meta")
        assert layer.mean.device.type == "meta"
        assert layer(TENSOR.to("meta")).shape == X.shape
        assert InputScaling().to("meta").to_empty(device="cpu").adapt(TENSOR).adapted

    def test_repr(self):
        assert repr(InputScaling()) == "InputScaling(by='deviation', axis=-1, not adapted)"
        layer = InputScaling("range", 1, invert=True).adapt(TENSOR)
        assert repr(layer) == "InputScaling(by='range', axis=1, features=3, invert=True)"


def network(dtype=F32):
    torch.manual_seed(0)
    x = TENSOR.to(dtype)
    net = nn.Sequential(InputScaling().adapt(x), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    return net.to(dtype), InputScaling(invert=True).adapt(x[:, 2:]), x


class Regression(nn.Module):
    """Scaled at its input, and back into units at its output."""

    def __init__(self):
        super().__init__()
        self.net, self.units, _ = network()

    def forward(self, x):
        return self.units(self.net(x))


class TestUnderTransforms:
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compile(self, backend):
        net, _, x = network()
        torch.compiler.reset()
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x))
        torch.testing.assert_close(compiled(x[:7]), net(x[:7]))

    def test_export(self):
        model, x = Regression().eval(), TENSOR.float()
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x[:5]), model(x[:5]))

    # Of the exporter and what that is built on.
    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_onnx(self, tmp_path):
        for module in ("onnx", "onnxscript"):
            pytest.importorskip(module, reason=f"{module} is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        model, x = Regression().eval(), TENSOR.float()
        batch = torch.export.Dim("batch", min=2)
        program = torch.onnx.export(
            model, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
        )
        program.save(tmp_path / "model.onnx")
        session = runtime.InferenceSession(tmp_path / "model.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:9].numpy()})
        want = model.double()(x[:9].double()).detach().numpy()
        np.testing.assert_allclose(found, want, rtol=3e-7)

    def test_vmap_and_jacobians(self):
        layer = InputScaling().adapt(TENSOR)
        many = torch.func.vmap(layer)(TENSOR)
        torch.testing.assert_close(many, layer(TENSOR), rtol=0, atol=0)
        jacobian = torch.func.jacrev(layer)(TENSOR[0])
        close(jacobian, np.diag(1 / X.std(0)), 1e-12)

    def test_torch_fx_sees_one_call(self):
        net, _, x = network()
        graph = torch.fx.symbolic_trace(net)
        calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
        assert calls == ["0", "1", "2", "3"]
        torch.testing.assert_close(graph(x), net(x), rtol=0, atol=0)

    def test_autocast(self):
        net, _, x = network()
        with torch.autocast("cpu", torch.bfloat16):
            assert net[0](x).dtype is F32


class TestBadInput:
    def test_not_adapted(self):
        for call in (InputScaling(), InputScaling().inverse):
            with pytest.raises(ModelError, match=r"Call adapt\(data\) before training"):
                call(TENSOR)

    @pytest.mark.parametrize("empty", [TENSOR[:0], [], iter(()), [TENSOR[:0]]])
    def test_nothing(self, empty):
        with pytest.raises(DataError, match="at least one value"):
            InputScaling().adapt(empty)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, value):
        x = TENSOR.clone()
        x[7, 1] = value
        with pytest.raises(DataError, match="the first is number 1"):
            InputScaling().adapt(x.split(100)[0])

    @pytest.mark.parametrize("data", [(TENSOR, LABELS), {"x": TENSOR}, "abc", 3.0, None])
    def test_data_that_could_mean_anything(self, data):
        with pytest.raises(DataError, match="pass the inputs alone"):
            InputScaling().adapt(data)

    @pytest.mark.parametrize("batch", [[1.0, 2.0], "ab", {"x": TENSOR}, None, []])
    def test_batches_without_inputs(self, batch):
        with pytest.raises(DataError, match="A batch holds no inputs"):
            InputScaling().adapt([batch])

    @pytest.mark.parametrize("data", [[[1.0, 2.0], [3.0, 9.0]], [X[0, 0]], torch.tensor(1.0)])
    def test_numbers_without_axes(self, data):
        for axis in (-1, None):
            with pytest.raises(DataError, match="with axes"):
                InputScaling(axis=axis).adapt(data)

    def test_no_real_numbers(self):
        with pytest.raises(DTypeError, match="scale the parts"):
            InputScaling().adapt(TENSOR.to(torch.complex64))
        layer = InputScaling().adapt(TENSOR)
        for x in (TENSOR.to(torch.complex64), X, [1.0, 2.0, 3.0]):
            with pytest.raises(DTypeError, match="real numbers"):
                layer(x)

    def test_features_that_do_not_fit(self):
        with pytest.raises(ShapeError):
            InputScaling().adapt([TENSOR, TENSOR[:, :2]])
        layer = InputScaling().adapt(TENSOR)
        for call in (layer, layer.inverse):
            with pytest.raises(ShapeError, match="3 features along axis -1"):
                call(TENSOR[:, :2])
        with pytest.raises(ShapeError, match="an axis from -1 to 0"):
            InputScaling(axis=1).adapt(TENSOR)(TENSOR[0])

    def test_no_axis_of_samples(self):
        with pytest.raises(ShapeError, match="makes one feature"):
            InputScaling().adapt(TENSOR[0])
        with pytest.raises(ShapeError, match="No axis of features"):
            InputScaling(axis=2).adapt(TENSOR)

    def test_a_summary_of_another_layout(self):
        with pytest.raises(ShapeError, match="axis=None"):
            InputScaling().adapt(Summary.of(X, axis=None))
        images = Summary.of(RNG.normal(size=(5, 3, 4, 4)), axis=1)
        for axis in (-1, -2, None):
            with pytest.raises(ShapeError, match="another layout: received one with axis=-3"):
                InputScaling(axis=axis).adapt(images)
        for axis in (1, -3):  # 1 is that axis of four
            assert InputScaling(axis=axis).adapt(images).mean.shape == (3,)

    def test_masked_values(self):
        with pytest.raises(DataError, match="are masked"):
            InputScaling().adapt(np.ma.masked_greater(X, 1e4))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"by": "median"}, "'deviation' or 'range'"),
            ({"axis": 1.0}, "a whole number or None"),
            ({"axis": True}, "a whole number or None"),
            ({"mean": 1.0}, "received mean with"),
            ({"variance": 1.0}, "Give both"),
            ({"mean": 1.0, "variance": 1.0, "divisor": 1.0}, "Give both"),
            ({"by": "range", "mean": 1.0, "variance": 1.0}, "expected mean and divisor. "),
            ({"mean": [1.0, 2.0], "variance": [1.0, 2.0, 3.0]}, r"\(2,\) and \(3,\)"),
            ({"mean": [[1.0]], "variance": 1.0}, "one number, or one a feature"),
            ({"mean": [1.0], "variance": 1.0, "axis": None}, "expected one number"),
            ({"mean": [], "variance": []}, "do not fit"),
            ({"mean": 1.0, "variance": -1.0}, "no spread below 0"),
            ({"mean": float("nan"), "variance": 1.0}, "finite"),
        ],
    )
    def test_options(self, options, words):
        with pytest.raises(OptionError, match=words):
            InputScaling(**options)
