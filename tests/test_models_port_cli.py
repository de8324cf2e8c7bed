"""normkit port: files in, weights out, and words that say what differs or what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from normkit.cli import main  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "model.keras"
LAYERS = ["first", "inner/bn", "last"]

ZOO = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    inner = nn.ModuleDict({"bn": nn.BatchNorm2d(3)})
    return nn.ModuleDict({
        "conv": nn.Conv2d(3, 3, 1), "first": nn.BatchNorm2d(3), "inner": inner,
        "last": nn.GroupNorm(1, 3),
    })

class Doubling(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)

def layer():
    return nn.BatchNorm2d(3)

def doubling():
    return nn.Sequential(Doubling(3))

def plain():
    return nn.Linear(2, 2)
"""


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "portzoo.py").write_text(ZOO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "portzoo", raising=False)
    shutil.copy(GOLDEN, tmp_path / "model.keras")

    def run(*words):
        status = main(["port", *(str(word) for word in words)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def refused(result, said):
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("normkit: ")
    assert err.count("\n") == 1
    assert said in err, err


def left(folder):
    known = {"portzoo.py", "model.keras", "__pycache__"}
    return sorted(p.name for p in folder.iterdir() if p.name not in known)


def test_help_has_examples(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "normkit port model.keras norms.safetensors --to torch" in out


def test_a_keras_file_becomes_weights_for_pytorch(run, tmp_path):
    status, out, err = run("model.keras", "norms.safetensors", "--to", "torch")
    assert status == 0, err
    for words in (
        "0.9 → 0.1",
        "0.99 → 0.01",
        "[1]",
        "beta of 0" if False else "gamma of 1",
        "agree",
    ):
        assert words in out
    assert err == "weights: norms.safetensors\n"  # which says eps and momentum
    state = safetensors.load_file(tmp_path / "norms.safetensors")
    assert "inner/bn.running_var" in state
    status, again, _ = run("norms.safetensors", "--to", "keras", "--dry-run")
    assert status == 0
    assert "0.01 → 0.99" in again


def test_json_says_it_all(run, tmp_path):
    status, out, _ = run("model.keras", "--to", "flax", "--dry-run", "--json")
    said = json.loads(out)
    assert status == 0
    assert [layer["layer"] for layer in said["layers"]] == LAYERS
    assert said["layers"][0]["momentum"] == [0.9, 0.9]
    assert said["out"] is None
    assert left(tmp_path) == []


def test_a_dry_run_writes_nothing(run, tmp_path):
    assert run("model.keras", "norms.pt", "--to", "torch", "--dry-run")[0] == 0
    assert left(tmp_path) == []
    (tmp_path / "norms.pt").write_text("mine")
    assert run("model.keras", "norms.pt", "--to", "torch", "--dry-run")[0] == 0
    assert (tmp_path / "norms.pt").read_text() == "mine"


def test_names_and_into_a_model(run, tmp_path):
    (tmp_path / "names.json").write_text('{"inner/bn": "inner.bn"}')
    words = ("model.keras", "out.pt", "--to", "torch", "--names", "names.json")
    assert run(*words)[0] == 0
    assert "inner.bn.running_mean" in torch.load(tmp_path / "out.pt", weights_only=True)
    refused(run(*words), "would replace")
    status, _, err = run(*words, "--into", "portzoo:net", "--overwrite")
    assert status == 0, err
    assert "only the norms came from model.keras; all other weights are those of portzoo:net" in err
    assert "set eps=2e-05, momentum=0.1 in first" in err
    assert "set eps=0.001, momentum=0.01 in inner/bn" in err
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert "conv.weight" in state
    assert state["inner.bn.running_var"].ne(1).all()


def test_names_are_checked(run, tmp_path):
    for text in ("{", "[]", '{"a": 1}'):
        (tmp_path / "names.json").write_text(text)
        words = ("model.keras", "out.pt", "--to", "torch", "--names", "names.json")
        refused(run(*words), "which name is which")
    refused(
        run("model.keras", "out.pt", "--to", "torch", "--into", "portzoo:net"),
        "shapes do not tell them apart",
    )
    assert left(tmp_path) == ["names.json"]


def test_names_for_a_file_are_checked(run, tmp_path):
    for text, said in (('{"first": "last"}', "Two layers go"), ('{"a": "b"}', "not there")):
        (tmp_path / "names.json").write_text(text)
        words = ("model.keras", "out.pt", "--to", "torch", "--names", "names.json")
        refused(run(*words), said)
    assert left(tmp_path) == ["names.json"]


def test_a_kind_that_names_leave_open(run, tmp_path):
    torch.save(torch.nn.ModuleDict({"n": torch.nn.GroupNorm(2, 4)}).state_dict(), "net.pt")
    words = ("net.pt", "--to", "torch", "--dry-run", "--eps", "1e-5")
    refused(run(*words), "kinds=")
    status, out, _ = run(*words, "--kind", "n=group:2")
    assert status == 0
    assert "group, 2 groups" in out
    refused(run(*words, "--kind", "n"), "NAME=KIND")


def test_only_and_a_checkpoints_eps(run, tmp_path):
    status, out, _ = run("model.keras", "--to", "torch", "--dry-run", "--only", "inner/*")
    assert status == 0
    assert "1 norm ported" in out
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    refused(run("net.pt", "--to", "keras", "--dry-run"), "does not say eps")
    assert run("net.pt", "--to", "keras", "--dry-run", "--eps", "1e-5")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.keras", "--to", "torch", "--dry-run"], "No such file"),
        (["portzoo.py", "--to", "torch", "--dry-run"], "cannot be opened"),
        (["portzoo:plain", "--to", "torch", "--dry-run"], "nothing to port"),
        (["portzoo:nothing", "--to", "torch", "--dry-run"], "nothing"),
        (["model.keras", "--to", "torch"], "say where the weights go"),
        (["model.keras", "--to", "mxnet", "--dry-run"], "mxnet"),
        (["model.keras", "model.keras", "--to", "torch"], "its own input"),
        (["model.keras", "out.npz", "--to", "torch"], "No such format"),
        (["model.keras", "out.pt", "--to", "keras"], "No such format"),
        (["model.keras", "no/out.pt", "--to", "torch"], "no such folder"),
        (["model.keras", "o.pt", "--to", "keras", "--into", "portzoo:net"], "--to torch"),
        (["model.keras", "--to", "torch", "--dry-run", "--only", "x"], "fits no layer"),
        (["model.keras", "--to", "torch", "--dry-run", "--batch-elements", "1"], "batch-elements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_words_are_one_line(run, tmp_path, words, said):
    refused(run(*words), said)
    assert left(tmp_path) == []


def test_a_lone_layer_is_a_model_of_one(run, tmp_path):
    onnx = pytest.importorskip("onnx", reason="ONNX is not installed")
    from normkit.models import port

    onnx.save(port(torch.nn.BatchNorm2d(3), "onnx", report=None), tmp_path / "one.onnx")
    for source in ("portzoo:layer", "one.onnx"):
        status, out, err = run(source, "out.pt", "--to", "torch", "--overwrite")
        assert status == 0, err
        assert "1 norm ported" in out
        name = "" if source.startswith("portzoo") else "BatchNormalization_0."
        assert f"{name}running_var" in torch.load(tmp_path / "out.pt", weights_only=True)


def test_parity_that_fails_writes_nothing(run, tmp_path):
    refused(run("portzoo:doubling", "out.safetensors", "--to", "torch"), "do not compute the same")
    (tmp_path / "out.pt").write_text("mine")
    words = ("portzoo:doubling", "out.pt", "--to", "torch", "--overwrite")
    refused(run(*words), "do not compute the same")
    assert (tmp_path / "out.pt").read_text() == "mine"
    assert left(tmp_path) == ["out.pt"]


def test_a_file_cut_short_is_one_line(run, tmp_path):
    (tmp_path / "cut.keras").write_bytes(GOLDEN.read_bytes()[:9000])
    refused(run("cut.keras", "--to", "torch", "--dry-run"), "damaged or cut short")


def test_keras_itself_is_not_needed(tmp_path):
    """A .keras file is read, and ported, where Keras cannot be imported."""
    code = (
        "import sys\nsys.modules['keras'] = None\nfrom normkit.cli import main\n"
        f"sys.exit(main(['port', {str(GOLDEN)!r}, 'o.safetensors', '--to', 'torch']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "NOT run in Keras: keras is not installed" in done.stdout
    assert (tmp_path / "o.safetensors").exists()
