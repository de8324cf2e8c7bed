"""ONNX models from files; their external data only from their own folder."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from normkit.errors import FileError  # noqa: E402
from normkit.models.opening import open_model  # noqa: E402
from opening_files import assert_explained  # noqa: E402

FLOATS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def model(*extra):
    """Batch norm over constants, with more initializers."""
    names = ("scale", "shift", "mean", "var")
    weights = {name: np.arange(8, dtype=np.float32) + i for i, name in enumerate(names)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", *names], ["y"], name="bn", epsilon=1e-3),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(FLOATS, "inside")),
    ]
    value = helper.make_tensor_value_info
    shape = ["n", 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, name) for name, w in weights.items()] + list(extra),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), weights


def refused(path, *words):
    with pytest.raises(FileError) as caught:
        open_model(path)
    assert_explained(caught.value, *words)


@pytest.mark.parametrize("ending", [".onnx", ""])
def test_round_trip(ending, tmp_path):
    proto, weights = model()
    path = tmp_path / f"net{ending}"
    path.write_bytes(proto.SerializeToString())
    before = path.read_bytes()
    opened = open_model(path)
    assert (opened.name, opened.format, opened.path) == (path.name, "onnx", path)
    assert set(opened.tensors) == {*weights, "c"}
    for name, value in {**weights, "c": FLOATS}.items():
        assert np.array_equal(opened.tensors[name].numpy(), value)
    ((site),) = opened.sites()
    assert (site.kind, site.channels) == ("batch", 8)
    assert site.eps == pytest.approx(1e-3)
    assert opened.graph() is not None
    opened.tensors["mean"].zero_()
    assert path.read_bytes() == before
    assert np.array_equal(open_model(opened.proto).tensors["mean"].numpy(), weights["mean"])


def test_dtypes(tmp_path):
    half = helper.make_tensor(
        "half", TensorProto.FLOAT16, [2], np.float16([1.5, -2]).tobytes(), True
    )
    brain = helper.make_tensor("brain", TensorProto.BFLOAT16, [2], [1.5, -2.0])
    eight = helper.make_tensor("eight", TensorProto.FLOAT8E4M3FN, [2], [1.5, -2.0])
    four = helper.make_tensor("four", TensorProto.INT4, [2], [3, -2])
    text = helper.make_tensor("text", TensorProto.STRING, [1], [b"a"])
    point = numpy_helper.from_array(np.float64(3.0), "point")
    proto, _ = model(half, brain, eight, four, text, point)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    tensors = open_model(tmp_path / "net.onnx").tensors
    assert "text" not in tensors
    assert tensors["brain"].dtype == torch.bfloat16
    assert tensors["eight"].dtype == torch.float8_e4m3fn
    for name in ("half", "brain", "eight"):
        assert tensors[name].float().tolist() == [1.5, -2.0]
    assert tensors["four"].tolist() == [3, -2]
    assert tensors["point"].shape == ()
    assert tensors["point"] == 3


def external(location, **more):
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[4, 8])
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": 0, "length": 128, **more}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(folder, location, **more):
    folder.mkdir(exist_ok=True)
    proto, _ = model(external(location, **more))
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


@pytest.mark.parametrize("location", ["net.onnx.data", "sub/net.data"])
def test_external_data_beside_the_model(location, tmp_path):
    path = write(tmp_path / "m", location, offset=16)
    (path.parent / "sub").mkdir()
    (path.parent / location).write_bytes(bytes(16) + FLOATS.tobytes())
    opened = open_model(path)
    assert np.array_equal(opened.tensors["far"].numpy(), FLOATS)


def test_external_data_elsewhere(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(FLOATS.tobytes())
    folder = tmp_path / "m"
    strange = (
        str(secret),
        "../secret.bin",
        "sub/../../secret.bin",
        "",
        "c:secret",
        "..\\secret.bin",
    )
    for location in strange:
        refused(write(folder, location), "outside of its folder", "far", "not read", "relative")
    (folder / "link.bin").symlink_to(secret)
    refused(write(folder, "link.bin"), "outside of its folder")


def test_external_data_that_is_not_there_or_not_whole(tmp_path):
    path = write(tmp_path / "m", "net.data")
    refused(path, "No such file", "net.data", "the external data of net.onnx")
    (path.parent / "net.data").write_bytes(bytes(100))
    refused(path, "cut short", "far", "100 bytes")
    refused(write(path.parent, "net.data", length="many"), "no number")
    refused(write(path.parent, "net.data", offset=-8), "cut short")


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.98])
def test_cut_short(kept, tmp_path):
    whole = model()[0].SerializeToString()
    (tmp_path / "short.onnx").write_bytes(whole[: int(len(whole) * kept)])
    refused(tmp_path / "short.onnx", "cut short", "short.onnx", "again")


def test_a_tensor_with_too_few_bytes(tmp_path):
    bad = TensorProto(name="bad", data_type=TensorProto.FLOAT, dims=[4, 8], raw_data=bytes(12))
    (tmp_path / "net.onnx").write_bytes(model(bad)[0].SerializeToString())
    refused(tmp_path / "net.onnx", "bad in net.onnx", "(4, 8)")


def test_a_wrong_ending(tmp_path):
    (tmp_path / "net.pt").write_bytes(model()[0].SerializeToString())
    refused(tmp_path / "net.pt", "an ONNX model", "a PyTorch checkpoint", ".onnx")
