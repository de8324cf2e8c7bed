""".keras files as sources: read as data, and refused where they are not what Keras 3 writes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")

from torch import nn  # noqa: E402

from normkit.errors import FileError, ModelError  # noqa: E402
from normkit.models import port  # noqa: E402
from normkit.models.porting import sources  # noqa: E402
from normkit.models.porting.frameworks import keras_file  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "model.keras"
ROLES = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var"}


def members(path=GOLDEN):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, compression=zipfile.ZIP_STORED, **changes):
    """The golden file with other members; None takes one away. Underscores stand for dots."""
    held = members() | {name.replace("_", "."): value for name, value in changes.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in held.items():
            if value is not None:
                archive.writestr(name, value if isinstance(value, bytes) else json.dumps(value))
    return path


def config():
    return json.loads(members()["config.json"])


def with_weights(path, change):
    """The golden file after a change of its HDF5 file."""
    held = io.BytesIO(members()["model.weights.h5"])
    with h5py.File(held, "r+") as file:
        change(file)
    return rewritten(path, model_weights_h5=held.getvalue())


def test_what_keras_says_is_what_is_read():
    said = json.loads(GOLDEN.with_name("model.json").read_text())
    got = port(GOLDEN, "torch")
    assert list(got.layers) == list(said)
    for one in got.ported:
        held = said[one.before.name]
        assert one.before.eps == held.pop("epsilon")
        assert set(one.before.arrays()) == {ROLES[name] for name in held}
        for name, values in held.items():
            np.testing.assert_array_equal(getattr(one.before, ROLES[name]), np.float32(values))
    assert got.layers["first"].keep == 0.9
    assert (got.layers["first"].gamma == 1).all()


def test_code_in_a_file_is_not_run(monkeypatch):
    """The file holds a Lambda, which Keras would have to unmarshal: nothing of Keras is asked."""
    monkeypatch.setattr(
        sources, "layer_of_config", lambda *_: (_ for _ in ()).throw(ModuleNotFoundError("none"))
    )
    got = port(GOLDEN, "torch")
    assert "NOT run in Keras: none" in str(got)


def test_layers_of_a_file_are_compared_by_keras_where_it_is_there():
    pytest.importorskip("keras", reason="Keras is not installed")
    assert "Keras 3." in str(port(GOLDEN, "torch"))


def test_into_a_model():
    net = nn.ModuleDict({
        "first": nn.BatchNorm2d(3), "inner": nn.ModuleDict({"bn": nn.BatchNorm2d(3)}),
        "last": nn.GroupNorm(1, 3),
    })  # fmt: skip
    port(GOLDEN, "torch").into(net, names={"inner/bn": "inner.bn"})
    assert net["first"].eps == 2e-5
    assert net["first"].momentum == 0.1
    assert net["inner"]["bn"].eps == 1e-3


@pytest.mark.parametrize(
    ("version", "noted"), [("3.0.0", False), ("3.15.9", False), ("3.16.0", True), ("3.99.1", True)]
)
def test_a_newer_version_is_read_with_care(version, noted, tmp_path):
    path = rewritten(tmp_path / "m.keras", metadata_json={"keras_version": version})
    got = port(path, "torch")
    assert ("newer than any that was tried" in got.note) == noted
    assert ("newer than any that was tried" in str(got)) == noted


@pytest.mark.parametrize("version", ["2.13.1", "4.0.0", "", None])
def test_another_generation_is_refused(version, tmp_path):
    metadata = {} if version is None else {"keras_version": version}
    path = rewritten(tmp_path / "m.keras", metadata_json=metadata)
    with pytest.raises(FileError, match="another generation of Keras"):
        port(path, "torch")


def test_a_newer_versions_order_of_layers_is_found_out(tmp_path):
    def swap(file):
        layers = file["layers"]
        layers.move("batch_normalization", "other")
        layers.copy("sequential/layers/batch_normalization", "batch_normalization")

    path = with_weights(tmp_path / "m.keras", swap)
    with pytest.raises(FileError, match=r"weights of bn.*those of first"):
        port(path, "torch")


def test_an_option_of_a_newer_version_is_refused_by_name(tmp_path):
    changed = config()
    changed["config"]["layers"][1]["config"]["robust"] = "median"
    path = rewritten(tmp_path / "m.keras", config_json=changed)
    with pytest.raises(ModelError, match="robust='median'"):
        port(path, "torch")
    assert list(port(path, "torch", on_refused="skip").layers) == ["inner/bn", "last"]


def test_synchronized_statistics_stay_synchronized_in_pytorch(tmp_path):
    changed = config()
    changed["config"]["layers"][1]["config"]["synchronized"] = True
    path = rewritten(tmp_path / "m.keras", config_json=changed)
    assert isinstance(port(path, "torch").make("first"), nn.SyncBatchNorm)
    got = port(path, "keras")
    assert any("synchronized over devices" in note for note in got.notes())


def test_a_class_of_the_users_own_is_not_passed_over(tmp_path):
    changed = config()
    changed["config"]["layers"][1]["class_name"] = "MyBatchNorm"
    path = rewritten(tmp_path / "m.keras", config_json=changed)
    with pytest.raises(ModelError, match="MyBatchNorm, which is no norm that is known"):
        port(path, "torch")


def test_weights_of_another_layer_kind_are_refused(tmp_path):
    def take_away(file):
        del file["layers/batch_normalization/vars/2"]

    with pytest.raises(ModelError, match=r"2 variables in BatchNormalization first.*3: beta, mean"):
        port(with_weights(tmp_path / "m.keras", take_away), "torch")

    def widen(file):
        del file["layers/batch_normalization/vars/1"]
        file["layers/batch_normalization/vars/1"] = np.ones(7, np.float32)

    with pytest.raises(ModelError, match=r"mean of shape \(7,\)"):
        port(with_weights(tmp_path / "w.keras", widen), "torch")


def test_links_out_of_the_file_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = np.ones(3, np.float32)

    def link(file):
        del file["layers/batch_normalization/vars/1"]
        file["layers/batch_normalization/vars/1"] = h5py.ExternalLink(
            str(tmp_path / "secret.h5"), "a"
        )

    with pytest.raises(FileError, match="no array of its own"):
        port(with_weights(tmp_path / "m.keras", link), "torch")


def test_a_subclassed_models_file_does_not_list_its_layers(tmp_path):
    path = rewritten(tmp_path / "m.keras", config_json={"class_name": "Net", "config": {}})
    with pytest.raises(FileError, match=r"a Net that is code.*load_model"):
        port(path, "torch")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metadata_json": None}, "no metadata.json"),
        ({"config_json": None}, "no config.json"),
        ({"config_json": b"{"}, "no JSON"),
        ({"config_json": b"[]"}, "no dictionary"),
        ({"config_json": b"[" * 100_000}, "no JSON"),
        ({"model_weights_h5": None}, "no model.weights.h5"),
        ({"model_weights_h5": b"nothing of the kind"}, "a Keras model, whole"),
        ({"metadata_json": {"keras_version": "3." + "9" * 5000}}, "ValueError"),
        ({"model_weights_json": {}}, "several files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_say_what_is_wrong(changes, said, tmp_path):
    with pytest.raises(FileError, match=said):
        port(rewritten(tmp_path / "m.keras", **changes), "torch")


@pytest.mark.parametrize(
    "damage",
    [
        lambda model, _: model["config"].update(layers="norms"),
        lambda model, _: model["config"].update(layers=[3]),
        lambda model, _: model["config"].update(layers={"a": 1}),
        lambda model, _: model["config"]["layers"].insert(0, "norm"),
        lambda _, norm: norm.update(config=None),
        lambda _, norm: norm.update(config="x"),
        lambda _, norm: norm.update(class_name=None, config=None),
        lambda _, norm: norm.update(build_config=None),
        lambda _, norm: norm.update(build_config={"input_shape": [None, 6, 6, 5]}),
        *(lambda _, norm, to=to: norm["config"].update(axis=to) for to in (None, [], [3, 4])),
        *(lambda _, norm, to=to: norm["config"].update(epsilon=to) for to in (None, "x", [])),
        lambda _, norm: norm["config"].update(momentum=None),
    ],
)  # fmt: skip
def test_words_that_make_no_model_are_the_files_fault(damage, tmp_path):
    changed = config()
    damage(changed, changed["config"]["layers"][1])
    with pytest.raises(FileError, match="damaged or cut short"):
        port(rewritten(tmp_path / "m.keras", config_json=changed), "torch")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"axis": "x"}}, "channels at axis x"),
        ({"config": {"axis": 7}}, "channels at axis 7"),
        ({"build_config": {"input_shape": [None] * 199 + [3]}}, "dims 198"),
    ],
)
def test_layers_that_no_framework_has_are_refused_by_name(change, said, tmp_path):
    changed = config()
    norm = changed["config"]["layers"][1]
    for part, values in change.items():
        norm[part].update(values)
    with pytest.raises(ModelError, match=said):
        port(rewritten(tmp_path / "m.keras", config_json=changed), "torch")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((6_000_000_000,), "f4"), ((3,), "i4"), ((3,), "S3"), ((1, 1, 1, 1, 3), "f4"), (None, "f4")],
)
def test_weights_of_other_sizes_and_types_are_not_read(shape, dtype, tmp_path):
    def replace(file):
        del file["layers/batch_normalization/vars/1"]
        if shape is None:
            file["layers/batch_normalization/vars/1"] = h5py.Empty(dtype)
        else:
            file.create_dataset(
                "layers/batch_normalization/vars/1", shape, dtype, chunks=(1,) * len(shape)
                if np.prod(shape) < 10 else (1000,),
            )  # fmt: skip

    path = with_weights(tmp_path / "m.keras", replace)
    assert path.stat().st_size < 100_000
    with pytest.raises(FileError, match="variable 1 of first of shape"):
        port(path, "torch")


@pytest.mark.parametrize("size", [0, 10, 500, 3000, -1])
def test_files_cut_short_are_refused(size, tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes(GOLDEN.read_bytes()[:size])
    with pytest.raises(FileError, match=r"empty|damaged or cut short"):
        port(path, "torch")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_file, "_LARGEST_DOCUMENT", 1000)
    with pytest.raises(FileError, match=r"config.json of [\d,]+ bytes"):
        port(GOLDEN, "torch")
    monkeypatch.undo()
    monkeypatch.setattr(keras_file, "_LARGEST_PACKED", 1000)
    packed = rewritten(tmp_path / "m.keras", zipfile.ZIP_DEFLATED)
    with pytest.raises(FileError, match="weights that unpack to"):
        port(packed, "torch")
    monkeypatch.undo()
    assert len(port(packed, "torch").layers) == 3


def test_a_layer_that_was_not_built_is_refused(tmp_path):
    changed = config()
    last = changed["config"]["layers"][-1]
    last["config"].update(center=False, scale=False)
    last["build_config"] = {"input_shape": [None, 2, 2, None]}

    def bare(file):
        for key in ("0", "1"):
            del file[f"layers/group_normalization/vars/{key}"]

    held = io.BytesIO(members()["model.weights.h5"])
    with h5py.File(held, "r+") as file:
        bare(file)
    path = rewritten(
        tmp_path / "m.keras", config_json=changed, model_weights_h5=held.getvalue()
    )  # fmt: skip
    with pytest.raises(ModelError, match="number of channels is not known"):
        port(path, "torch")
