"""Models from objects, files and code: what is opened, and what is said of files that are not."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from normkit.errors import FileError, ModelError  # noqa: E402
from normkit.models.opening import open_model  # noqa: E402
from normkit.models.opening.named import named_sites  # noqa: E402
from opening_files import Net, Touch, assert_explained  # noqa: E402


def trained():
    """A model whose buffers are not those of a new one."""
    torch.manual_seed(1)
    model = Net()
    model(torch.randn(4, 3, 8, 8))
    return model.eval()


def same(tensors, state):
    return set(tensors) == set(state) and all(torch.equal(tensors[k], state[k]) for k in state)


def refused(what, *words, kind=FileError, **options):
    with pytest.raises(kind) as caught:
        open_model(what, **options)
    assert_explained(caught.value, *words)
    return str(caught.value)


# --- objects and files that open


def test_a_module_is_taken_as_it_is():
    model = trained()
    opened = open_model(model)
    assert (opened.name, opened.format, opened.path) == ("Net", "module", None)
    assert opened.module is model
    assert same(opened.tensors, {**model.state_dict(), "factor": model.factor})
    assert [site.name for site in opened.sites()] == ["bn", "ln"]
    assert opened.sites()[0].module is model.bn
    lazy = open_model(nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()))
    assert set(lazy.tensors) == {"1.num_batches_tracked"}


def write_checkpoint(path, state):
    if path.suffix == ".safetensors":
        safetensors = pytest.importorskip(
            "safetensors.torch", reason="safetensors is not installed"
        )
        safetensors.save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".ckpt", ".bin", ""])
def test_checkpoint_round_trip(ending, tmp_path):
    state = trained().state_dict()
    path = tmp_path / f"weights{ending}"
    write_checkpoint(path, state)
    before = path.read_bytes()
    opened = open_model(str(path))
    assert (opened.name, opened.format, opened.path) == (path.name, "checkpoint", path)
    assert same(opened.tensors, state)
    assert opened.graph() is None
    sites = opened.sites()
    assert [(s.name, s.kind, s.channels, s.eps, s.momentum, s.batches) for s in sites] == [
        ("bn", "batch", 8, None, None, 1),
        ("ln", "layer", 8, None, None, None),
    ]
    assert torch.equal(sites[0].mean, state["bn.running_mean"])
    for tensor in opened.tensors.values():  # what is mapped is a private copy
        tensor.zero_()
    assert path.read_bytes() == before


def test_an_old_checkpoint_that_is_no_zip(tmp_path):
    state = trained().state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(open_model(tmp_path / "old.pt").tensors, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "loss": torch.tensor(0.5)},
        lambda state: {"model": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": {f"_orig_mod.module.{n}": v for n, v in state.items()}},
    ],
)
def test_nested_and_prefixed_weights(wrap, tmp_path):
    state = trained().state_dict()
    torch.save(wrap(state), tmp_path / "nested.pt")
    assert same(open_model(tmp_path / "nested.pt").tensors, state)
    model = Net()
    open_model(model, weights=tmp_path / "nested.pt")
    assert same(model.state_dict(), state)


def test_names_keep_a_prefix_that_not_all_have(tmp_path):
    torch.save({"module.a": torch.ones(1), "head": torch.ones(1)}, tmp_path / "some.pt")
    assert set(open_model(tmp_path / "some.pt").tensors) == {"module.a", "head"}


def test_nan_buffers_are_opened_for_the_audit_to_find(tmp_path):
    state = trained().state_dict()
    state["bn.running_var"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    (site, _) = open_model(tmp_path / "nan.pt").sites()
    assert site.var.isnan().sum() == 1


# --- norms by their names


def test_norms_by_other_libraries_names():
    row, matrix = torch.ones(4), torch.ones(4, 4)
    tensors = {
        "stem/bn/gamma:0": row, "stem/bn/beta:0": row,
        "stem/bn/moving_mean:0": row, "stem/bn/moving_variance:0": row,
        "params/BatchNorm_0/scale": row, "params/BatchNorm_0/bias": row,
        "batch_stats/BatchNorm_0/mean": row, "batch_stats/BatchNorm_0/var": row,
        "params/LayerNorm_0/scale": row, "params/LayerNorm_0/bias": row,
        "params/Dense_0/kernel": matrix, "params/Dense_0/bias": row,
    }  # fmt: skip
    found = {(s.name, s.kind, s.tracks) for s in named_sites(tensors)}
    assert found == {
        ("stem/bn", "batch", True),
        ("BatchNorm_0", "batch", True),
        ("LayerNorm_0", "layer", False),
    }


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["blocks.0.norm1.weight", "blocks.0.norm1.bias"], "layer"),
        (["ln_f.weight", "ln_f.bias"], "layer"),
        (["h.0.attn.q_norm.weight"], "rms"),
        (["layers.0.input_layernorm.weight"], "rms"),
        (["layers.0.rms_1.weight", "layers.0.rms_1.bias"], "rms"),
        (["gn2.weight", "gn2.bias"], "group"),
        (["GroupNorm_0.weight", "GroupNorm_0.bias"], "group"),
        (["down.instancenorm.weight", "down.instancenorm.bias"], "instance"),
        (["bn1.weight", "bn1.bias"], "batch"),
        (["features.1.weight", "features.1.bias"], "layer"),
        (["bn1.running_mean", "bn1.running_var"], "batch"),
        (["in1.running_mean", "in1.running_var"], "instance"),
        (["blocks.0.ls1.gamma"], None),
        (["blocks.0.gamma"], None),
        (["prelu.weight"], None),
        (["relative.bias"], None),
        (["bn1.running_mean"], None),
        (["norm1.weight", "norm1.bias", "norm1.other"], None),
    ],
)
def test_kinds_by_name(names, kind):
    sites = named_sites({name: torch.ones(4) for name in names})
    assert [site.kind for site in sites] == ([] if kind is None else [kind])


def test_layers_that_are_no_norms():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 3), nn.PReLU(3), nn.Embedding(3, 3))
    assert named_sites(net.state_dict()) == []
    assert (
        named_sites({"norm.running_mean": torch.ones(3), "norm.running_var": torch.ones(4)}) == []
    )


# --- weights into modules


def test_weights_that_do_not_fit_leave_the_module_as_it_was(tmp_path):
    model, state = Net(), trained().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del state["bn.weight"], state["bn.bias"]
    state |= {"extra": torch.ones(1), "head.weight": torch.ones(7, 8)}
    torch.save(state, tmp_path / "other.pt")
    text = refused(model, "2 missing (bn.weight, bn.bias)", "1 unexpected (extra)",
                   "head.weight (7, 8), the model has (4, 8)", "other.pt", kind=ModelError,
                   weights=tmp_path / "other.pt")  # fmt: skip
    assert "the 11 tensors" in text
    assert same(model.state_dict(), before)


def test_an_interrupted_load_leaves_the_module_as_it_was(tmp_path, monkeypatch):
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(trained().state_dict(), tmp_path / "w.pt")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(nn.Linear, "_load_from_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_model(model, weights=tmp_path / "w.pt")
    assert same(model.state_dict(), before)


def test_weights_with_a_framework_prefix(tmp_path):
    state = trained().state_dict()
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "l.ckpt")
    model = Net()
    opened = open_model(model, weights=str(tmp_path / "l.ckpt"))
    assert same(model.state_dict(), state)
    assert opened.path == tmp_path / "l.ckpt"
    wrapped = nn.DataParallel(Net())
    open_model(wrapped, weights=tmp_path / "l.ckpt")
    assert same(wrapped.module.state_dict(), state)


def test_weights_of_an_averaged_model(tmp_path):
    model = trained()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "ema.pt")
    other = Net()
    open_model(other, weights=tmp_path / "ema.pt")
    assert same(other.state_dict(), model.state_dict())


def test_weights_for_a_file(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "w.pt")
    refused(
        tmp_path / "w.pt", "package.module:function", kind=ModelError, weights=tmp_path / "w.pt"
    )


# --- code


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A module in the current directory, which is on no path yet."""
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))\n"
        "made = net()\n"
        "class Small(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.BatchNorm1d(3))\n"
        "def sized(width, depth=2): return net()\n"
        "def nothing(): return None\n"
        "def failing(): raise RuntimeError('no weights here')\n"
        "class group:\n"
        "    inner = staticmethod(net)\n"
    )
    (tmp_path / "broken_models.py").write_text("import no_such_library\n")
    (tmp_path / "failing_models.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("my_models", "broken_models", "failing_models"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("what", ["net", "made", "Small", "group.inner"])
def test_a_model_as_code(what, code):
    opened = open_model(f"my_models:{what}")
    assert (opened.name, opened.format) == (f"my_models:{what}", "module")
    assert [site.kind for site in opened.sites()] == ["batch"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no_such_module:net", ("no such module", "no_such_module")),
        ("my_models:nett", ("no such name", "net")),
        ("my_models:sized", ("width", "without any")),
        ("my_models:nothing", ("NoneType", "torch.nn.Module")),
        ("my_models:failing", ("RuntimeError: no weights here",)),
        ("broken_models:net", ("no_such_library", "importing")),
        ("failing_models:net", ("ZeroDivisionError",)),
    ],
)
def test_code_that_gives_no_model(what, words, code):
    refused(what, *words, kind=ModelError)


def test_objects_that_are_no_models():
    refused(3, "int", "torch.nn.Module", kind=ModelError)
    refused(torch.ones(3), "Tensor", kind=ModelError)


def test_a_file_comes_before_code_of_its_name(code):
    torch.save({"w": torch.ones(2)}, code / "my_models:net")
    assert open_model("my_models:net").format == "checkpoint"


# --- files that are not there, not whole, or something else


def test_no_such_file(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "resnet18.pt")
    refused(tmp_path / "resnet81.pt", "No such file", "Did you mean", "resnet18.pt")
    refused(tmp_path / "nowhere" / "resnet18.pt", "does not exist either")
    refused(str(tmp_path / "zzz"), "package.module:function")


def test_a_folder_names_what_is_in_it(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    refused(tmp_path, "folder", "a.pt")


def test_a_device_is_no_file():
    refused("/dev/zero", "no ordinary file")


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pt2", ".onnx", ""])
def test_empty_files(ending, tmp_path):
    (tmp_path / f"m{ending}").touch()
    refused(tmp_path / f"m{ending}", "empty", "0 bytes")


def content(kind, tmp_path):
    """The bytes of a small file of a kind."""
    buffer = io.BytesIO()
    if kind == "checkpoint":
        torch.save({"w": torch.ones(2)}, buffer)
    elif kind == "safetensors":
        header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        buffer.write(struct.pack("<Q", len(header)) + header + bytes(8))
    elif kind == "npz":
        np.savez(buffer, x=np.ones(3))
    elif kind == "npy":
        np.save(buffer, np.ones(3))
    elif kind == "zip":
        zipfile.ZipFile(buffer, "w").writestr("a.txt", "a")
    elif kind == "lfs":
        buffer.write(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == "html":
        buffer.write(b"<!DOCTYPE html><html></html>")
    elif kind == "torchscript":
        torch.jit.save(torch.jit.script(nn.ReLU()), buffer)
    elif kind == "noise":
        buffer.write(np.random.default_rng(0).bytes(3000))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "ending", "words"),
    [
        ("checkpoint", ".safetensors", ("a PyTorch checkpoint", "Rename it", ".pt")),
        ("checkpoint", ".onnx", ("a PyTorch checkpoint", "an ONNX model")),
        ("checkpoint", ".pt2", ("a PyTorch checkpoint", "torch.export")),
        ("safetensors", ".pt", ("safetensors", "Rename it", ".safetensors")),
        ("safetensors", ".onnx", ("safetensors",)),
        ("npz", ".pt", ("NumPy", "open_data")),
        ("npy", "", ("NumPy", "open_data")),
        ("zip", ".pt", ("zip archive",)),
        ("zip", ".pt2", ("zip archive",)),
        ("lfs", ".safetensors", ("Git LFS", "git lfs pull")),
        ("html", ".onnx", ("web page",)),
        ("noise", ".pt", ("damaged",)),
        ("noise", ".onnx", ("damaged",)),
        ("noise", ".pt2", ("damaged",)),
        ("noise", ".safetensors", ("damaged",)),
        ("noise", "", ("no known format", ".safetensors")),
    ],
)
def test_files_of_another_kind(kind, ending, words, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_bytes(content(kind, tmp_path))
    refused(path, "model", *words)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_code(tmp_path):
    path = tmp_path / "script.pt"
    path.write_bytes(content("torchscript", tmp_path))
    refused(path, "TorchScript", "state_dict")


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors"])
def test_cut_short(kind, tmp_path):
    whole = content(kind, tmp_path)
    path = tmp_path / ("w.pt" if kind == "checkpoint" else "w.safetensors")
    for kept in (9, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        refused(path, "damaged", path.name, f"{kept:,} bytes", "again")


@pytest.mark.parametrize("cut", [20, 60, 200])
def test_an_old_checkpoint_cut_short(cut, tmp_path):
    state = {"a": torch.ones(100)}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "old.pt").write_bytes(whole[:cut])
    refused(tmp_path / "old.pt", "damaged")


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9, 17])
def test_a_huge_header_asks_for_no_memory(length, tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 7)
    code = (
        "import resource, sys\n"
        "from normkit.models.opening import open_model\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: open_model(sys.argv[1])\n"
        "except OSError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    said, grown = run.stdout.splitlines()
    assert f"{length:,} bytes" in said
    assert int(grown) < 20_000  # KiB


@pytest.mark.parametrize(
    "header",
    [
        b"{not json}",
        b"{}garbage",
        b'{"w": 3}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 999]}}',
        b'{"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"w": {"dtype": "F32", "shape": [9999999999, 9999999999], "data_offsets": [0, 8]}}',
        b"{" * 100_000,
    ],
)
def test_headers_that_are_wrong(header, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refused(path, "damaged", "wrong.safetensors")


# --- several weights in one file


def test_which_of_several_weights_was_taken_is_said_and_can_be_chosen(tmp_path):
    path, state = tmp_path / "best.pt", trained().state_dict()
    averaged = {name: value * 2 for name, value in state.items()}
    torch.save({"model": state, "ema": {"module": averaged}, "epoch": 3, "optimizer": {}}, path)
    opened = open_model(path)
    assert same(opened.tensors, state)
    assert 'weights "model" were taken, not ema' in opened.note
    assert "best.pt:ema" in opened.note
    assert opened.left == ("ema", "epoch", "optimizer")
    for what in (f"{path}:ema", tmp_path / "best.pt:ema"):
        chosen = open_model(what)
        assert same(chosen.tensors, averaged)
        assert (chosen.name, chosen.note, chosen.path) == ("best.pt:ema", "", path)
    into = open_model(Net(), weights=f"{path}:ema")
    assert torch.equal(into.module.bn.running_var, averaged["bn.running_var"])
    assert into.left == ("model", "epoch", "optimizer")
    refused(f"{path}:swa", "best.pt:swa", "model, ema")
    refused(f"{path}:epoch", "model, ema")


def test_a_file_of_one_state_has_nothing_to_say(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "plain.pt")
    opened = open_model(tmp_path / "plain.pt")
    assert (opened.note, opened.left) == ("", ())
    torch.save({"ema_only": trained().state_dict(), "epoch": 1}, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", "odd.pt:ema_only")
    assert same(open_model(f"{tmp_path / 'odd.pt'}:ema_only").tensors, trained().state_dict())


# --- pickles


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("ending", [".pt", ".bin", ""])
def test_a_pickle_that_would_run_is_refused(zipped, ending, tmp_path):
    marker, path = tmp_path / "it_ran", tmp_path / f"evil{ending}"
    state = {"state_dict": {"w": torch.ones(2)}, "extra": Touch(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    refused(path, "posix.mkdir", "none was run", "state_dict()", "safetensors")
    with pytest.raises(FileError):
        open_model(nn.Linear(1, 1), weights=path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it was alive


def test_a_plain_pickle_that_would_run_is_refused(tmp_path):
    marker, path = tmp_path / "it_ran", tmp_path / "evil.pt"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Touch(marker), protocol))
        said = refused(path, "posix.mkdir", "none was run", "state_dict()", "safetensors")
        assert "weights_only" not in said
    assert not marker.exists()


def test_a_pickle_names_what_it_asks_for_in_every_protocol(tmp_path):
    path = tmp_path / "model.pt"
    for protocol in range(2, 6):
        content = pickle.dumps([Net(), {"again": Net}], protocol)
        path.write_bytes(content)
        assert "opening_files.Net" in refused(path)
        path.write_bytes(content[: len(content) // 2])
        assert "weights_only" not in refused(path)
        torch.save(Net(), path, pickle_protocol=protocol)
        assert "opening_files.Net" in refused(path)


def test_a_pickle_of_plain_values_is_no_checkpoint(tmp_path):
    for protocol in range(2, 6):
        (tmp_path / "plain.pt").write_bytes(pickle.dumps({"epoch": 3}, protocol))
        said = refused(tmp_path / "plain.pt", "plain pickle", "torch.save")
        assert "damaged" not in said


def test_a_whole_model_in_a_pickle(tmp_path):
    torch.save(Net(), tmp_path / "whole.pt")
    refused(tmp_path / "whole.pt", "opening_files.Net", "state_dict()", "package.module:function")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.ones(2, 3), "one tensor of shape (2, 3)"),
        ({"epoch": 3, "lr": 0.1}, "'epoch'"),
        ([torch.ones(1)], "list"),
        ({}, "nothing"),
        ({3: torch.ones(1)}, "3"),
    ],
)
def test_checkpoints_without_a_state_dict(value, word, tmp_path):
    torch.save(value, tmp_path / "v.pt")
    refused(tmp_path / "v.pt", word, "state_dict")
