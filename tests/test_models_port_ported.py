"""Whole models and files through port: what is matched, loaded, saved and refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import normkit.torch as nt  # noqa: E402
from normkit.errors import FileError, ModelError, OptionError  # noqa: E402
from normkit.models import NormWeights, port  # noqa: E402
from normkit.models.porting.matching import matched  # noqa: E402
from test_models_port import LIBRARIES, drawn, need, ported, small  # noqa: E402

# -- models ----------------------------------------------------------------------------------------


def test_a_model_gives_its_layers_by_name():
    got = port(small(), "torch")
    assert list(got.layers) == ["1", "3", "5"]
    assert [w.kind for w in got.layers.values()] == ["batch", "group", "layer"]
    assert isinstance(got.make("1"), nn.BatchNorm2d)
    with pytest.raises(ModelError, match="one of 1, 3, 5"):
        got.make("2")
    assert list(port(small(), "torch", only=["1", "5"]).layers) == ["1", "5"]


def test_the_table_says_momentum_here_and_there():
    need("keras")
    text = str(port(small(), "keras"))
    assert re.search(r"1 +batch +4 +1e-05 +0.1 → 0.9", text)
    assert "3 norms ported to Keras" in text
    row = port(small(), "keras").to_dict()["layers"][0]
    assert row["momentum"] == [0.1, 0.9]
    assert row["inference"] < 1e-5


def test_norms_without_counterpart_stop_a_model_or_are_skipped():
    net = nn.Sequential(nt.BatchNorm2d(4, ghost=2), drawn(nn.BatchNorm2d(4)))
    with pytest.raises(ModelError, match=r"1 norm of 2 cannot be ported.*ghost=2.*on_refused"):
        port(net, "torch")
    got = port(net, "torch", on_refused="skip")
    assert list(got.layers) == ["1"]
    assert "ghost=2" in got.refused["0"]
    assert "refused: 0" in str(got)
    with pytest.raises(OptionError, match="on_refused"):
        port(net, "torch", on_refused="ignore")


def test_into_sets_everything_by_name():
    source = small()
    source[1].eps, source[1].momentum = 3e-4, 0.03
    target = small()
    for value in target.state_dict().values():
        value.zero_()
    assert port(source, "torch").into(target) is target
    assert (target[1].eps, target[1].momentum) == (3e-4, 0.03)
    for i in (1, 3, 5):
        for name, value in source[i].state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(target[i].state_dict()[name], value)
    assert not target[0].weight.any()  # convolutions are none of port's business


def test_into_refuses_what_cannot_be_told():
    two = nn.ModuleDict({"a": drawn(nn.BatchNorm2d(4)), "b": drawn(nn.BatchNorm2d(4), 1)})
    other = nn.ModuleDict({"c": drawn(nn.BatchNorm2d(4), 2), "d": drawn(nn.BatchNorm2d(4), 3)})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    got = port(two, "torch")
    with pytest.raises(ModelError, match="shapes do not tell them apart"):
        got.into(other)
    with pytest.raises(OptionError, match="not there"):
        got.into(other, names={"a": "c", "b": "e"})
    with pytest.raises(OptionError, match="Two layers go into one"):
        got.into(other, names={"a": "c", "b": "c"})
    with pytest.raises(OptionError, match="match="):
        got.into(other, match="shape")
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])
    got.into(other, names={"a": "d", "b": "c"})
    assert torch.equal(other["d"].weight, two["a"].weight)
    got.into(other, match="order")
    assert torch.equal(other["c"].weight, two["a"].weight)
    with pytest.raises(ModelError, match="different numbers"):
        got.into(nn.ModuleDict({"c": nn.BatchNorm2d(4)}), match="order")
    with pytest.raises(ModelError, match="not alike"):
        got.into(nn.ModuleDict({"a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(5)}))
    with pytest.raises(ModelError, match="another framework"):
        got.into("net")


def test_shapes_tell_layers_apart_where_each_is_alone():
    one, other = NormWeights("rms", (2,), 1e-6), NormWeights("rms", (3,), 1e-6)
    assert matched({"a": one, "b": other}, {"x": other, "y": one}, None, "names") == {
        "a": "y",
        "b": "x",
    }
    with pytest.raises(ModelError, match="do not tell them apart"):
        matched({"a": one}, {"x": one, "y": one}, None, "names")


def test_into_fits_the_affine_of_the_models_layer():
    plain = port(small(affine=False), "torch")
    target = small()
    plain.into(target)
    assert (target[1].weight == 1).all()
    assert (target[1].bias == 0).all()
    with pytest.raises(ModelError, match="has no gamma"):
        port(small(), "torch").into(small(affine=False))


def test_into_a_model_of_narrow_weights():
    source, target = small(), small().bfloat16()
    port(source, "torch").into(target)
    assert target[1].weight.dtype is torch.bfloat16
    assert torch.equal(target[1].weight, source[1].weight.bfloat16())
    back = small()
    got = port(target, "torch")
    got.into(back)
    assert torch.equal(back[1].weight, target[1].weight.float())
    assert any("bfloat16 widened" in note for note in got.notes())


def test_a_group_of_single_channels_is_an_instance_norm():
    source = nn.Sequential(drawn(nn.GroupNorm(4, 4)))
    target = nn.Sequential(nn.InstanceNorm2d(4, affine=True))
    port(source, "torch").into(target)
    assert torch.equal(target[0].weight, source[0].weight)


def test_norms_of_the_model_that_were_not_filled_are_named():
    target = nn.ModuleDict({"bn": nn.BatchNorm2d(4), "gn": nn.GroupNorm(2, 6)})
    lines = []
    port(small(), "torch", only="1").into(target, names={"1": "bn"}, report=lines.append)
    assert lines == ["into: not filled: 1 norm of the model (gn)"]
    keras = need("keras")
    model = keras.Sequential([keras.layers.BatchNormalization(name="1")])
    with pytest.raises(ModelError, match="not built"):
        port(small(), "keras", only="1").into(model)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.LazyBatchNorm2d(), "has seen no input"),
        (nn.BatchNorm2d(3, device="meta"), "meta device"),
    ],
)
def test_layers_without_weights_are_refused_by_name(layer, said):
    with pytest.raises(ModelError, match=said):
        port(layer, "torch", report=None)
    got = port(nn.Sequential(layer, drawn(nn.BatchNorm2d(3))), "torch", on_refused="skip")
    assert said in got.refused["0"]
    assert list(got.layers) == ["1"]


@pytest.mark.parametrize("dims", ["2", -1, 5, True, 1.0])
def test_a_number_of_axes_is_a_number_of_axes(dims):
    with pytest.raises(OptionError, match="No such number of axes"):
        port(nn.GroupNorm(1, 3), "torch", dims=dims, report=None)


@pytest.mark.parametrize("target", LIBRARIES)
def test_an_eps_of_zero(target):
    need(target)
    layer = drawn(nn.BatchNorm2d(3, eps=0.0))
    there, _ = ported(layer, target)
    back, lines = ported(there, "torch", dims=2)
    assert back.eps == 0.0
    assert any("refuses to train" in line for line in lines)
    layer.running_var[0] = 0.0
    with pytest.raises(ModelError, match="a variance of 0 with eps 0"):
        port(layer, target, report=None)


@pytest.mark.parametrize("target", [name for name in LIBRARIES if name != "onnx"])
def test_momenta_near_zero(target):
    """ONNX rounds it to float32, and Equinox would count batches for longer than it can."""
    need(target)
    layer = drawn(nn.BatchNorm2d(3, momentum=1e-9))
    if target == "equinox":
        with pytest.raises(ModelError, match="hardly move"):
            port(layer, target, report=None)
        return
    back, _ = ported(ported(layer, target)[0], "torch", dims=2)
    assert back.momentum == pytest.approx(1e-9, rel=1e-6)


def test_axes_of_a_keras_layer_that_are_not_in_order_are_refused():
    layer = need("keras").layers.LayerNormalization(axis=[1, -1])
    layer.build((None, 4, 5))
    with pytest.raises(ModelError, match="not keep in the order"):
        port(layer, "torch", report=None)


# -- files -----------------------------------------------------------------------------------------


def test_what_is_saved_is_read_again(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "ported.safetensors"
    source = small()
    source[1].eps, source[1].momentum = 2e-3, 0.25
    got = port(source, "torch")
    got.save(path)
    back = port(path, "torch")
    for name, weights in got.layers.items():
        again = back.layers[name]
        assert (again.eps, again.keep, again.groups) == (weights.eps, weights.keep, weights.groups)
        for role, value in weights.arrays().items():
            np.testing.assert_array_equal(getattr(again, role), value)
    back.into(small())


def test_torch_takes_the_file_as_a_state_dict(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    got = port(small(), "torch")
    got.save(tmp_path / "a.safetensors")
    got.save(tmp_path / "b.pt", names={"1": "stem.bn"})
    state = safetensors.load_file(tmp_path / "a.safetensors")
    missing, unexpected = small().load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("0.", "2.")) for name in missing)
    renamed = torch.load(tmp_path / "b.pt", weights_only=True)
    assert "stem.bn.running_var" in renamed
    assert "1.weight" not in renamed


def test_new_names_in_a_file_are_checked(tmp_path):
    got = port(small(), "torch")
    for names, said in (
        ({"1": "3"}, "Two layers go into one"), ({"x": "y"}, "not there"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=said):
            got.save(tmp_path / "a.pt", names=names)
    assert not list(tmp_path.iterdir())
    got.save(tmp_path / "a.pt", names={"1": "3", "3": "1"})
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["1.weight"].shape == (6,)


def test_nothing_is_overwritten_unasked(tmp_path):
    got = port(small(), "torch")
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(FileError, match="would replace a file"):
        got.save(path)
    assert path.read_text() == "mine"
    got.save(path, overwrite=True)
    with pytest.raises(FileError, match="No such format"):
        got.save(tmp_path / "a.npz")
    need("flax")
    with pytest.raises(FileError, match="No such format"):
        port(small(), "flax").save(tmp_path / "a.pt")


def test_a_checkpoint_needs_an_eps(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(small().state_dict(), path)
    with pytest.raises(ModelError, match=r"does not say eps.*1e-5"):
        port(path, "torch", only="1")
    got = port(path, "torch", eps=1e-5, only="1")
    assert list(got.layers) == ["1"]
    assert got.layers["1"].keep is None
    assert list(port(small().state_dict(), "torch", eps=1e-5, only="1").layers) == ["1"]


def test_weights_that_may_be_of_several_norms_are_refused():
    net = nn.ModuleDict({
        "norm1": drawn(nn.GroupNorm(2, 4)), "norm2": drawn(nn.LayerNorm(4)),
        "LayerNorm": drawn(nn.LayerNorm(4)), "ln_f": drawn(nn.LayerNorm(4)),
        "bn": drawn(nn.BatchNorm2d(4)),
    })  # fmt: skip
    state = net.state_dict()
    with pytest.raises(ModelError, match=r"2 norms of 5.*norm1.*kinds="):
        port(state, "torch", eps=1e-5)
    got = port(
        state, "torch", kinds={"norm1": "group:2", "*2": "layer"},
        eps={"batch": 1e-5, "ln_*": 1e-12, "layer": 1e-6, "group": 1e-3},
    )  # fmt: skip
    assert {n: (w.kind, w.groups, w.eps) for n, w in got.layers.items()} == {
        "norm1": ("group", 2, 1e-3), "norm2": ("layer", None, 1e-6),
        "LayerNorm": ("layer", None, 1e-6), "ln_f": ("layer", None, 1e-12),
        "bn": ("batch", None, 1e-5),
    }  # fmt: skip
    for wrong in ("group", "group:", "layer:3", "power", "group:x"):
        with pytest.raises(OptionError, match="No such kind of norm"):
            port(state, "torch", eps=1e-5, kinds={"norm1": wrong})


def test_an_exported_program_is_a_source(tmp_path):
    path = tmp_path / "net.pt2"
    net = small()
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 2, 2),)), path)
    for source in (path, torch.export.load(path)):
        got = port(source, "torch", only="1")
        np.testing.assert_array_equal(got.layers["1"].var, net[1].running_var)
        assert "NOT run in PyTorch: the source has its weights" in str(got)


def test_files_that_say_too_little_are_refused(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        port(tmp_path / "nothing.keras", "torch")
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["a"] = np.ones(3)
    with pytest.raises(FileError, match="does not say what its layers compute"):
        port(tmp_path / "model.weights.h5", "torch")
    (tmp_path / "noise.pt").write_bytes(b"\x00" * 100)
    with pytest.raises(FileError):
        port(tmp_path / "noise.pt", "torch")


def test_a_file_whose_description_does_not_fit_is_refused(tmp_path):
    numpy_file = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    layer = (
        '[{"framework": "torch", "name": "a", "kind": "rms", "eps": 1e-6, "shape": [3], "keep": '
        'null, "variance": null, "groups": null, "synced": false, '
    )
    for i, said in enumerate((
        '[{"name": "a"}]', "{", '[{"framework": "mxnet", "name": ""}]',
        layer + '"channels": "behind", "dims": 2}]', layer + '"channels": null, "dims": -1}]',
        layer + '"channels": null, "dims": "2"}]',
    )):  # fmt: skip
        path = tmp_path / f"{i}.safetensors"
        numpy_file.save_file({"a.weight": np.ones(3)}, path, {"normkit.port": said})
        with pytest.raises(FileError, match="does not fit its tensors"):
            port(path, "torch")
