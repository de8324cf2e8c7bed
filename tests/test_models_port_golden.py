"""Every golden cell, read and written to every framework: what they did is what they do.

The cells were made by the real frameworks (tests/golden/make.py). How the running statistics move
is written out here once more, apart from the package.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from normkit.errors import ModelError
from normkit.models.porting import port
from normkit.models.porting.conventions import CONVENTIONS, adapt
from normkit.models.porting.frameworks import FRAMEWORKS
from normkit.models.porting.parity import reference

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
golden = sys.modules["golden_make"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

NEEDS = {
    "torch": "torch",
    "keras": "keras",
    "flax": "flax",
    "linen": "flax",
    "equinox": "equinox",
    "onnx": "onnxruntime",
}
#: float32 of two frameworks, one of which may take E[x²] - E[x]² at a mean of 3 deviations.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}

# What a batch does to running statistics: (weight of the old mean, unbiased variance).
RULES = {
    "torch": (0.9, True),
    "keras": (0.99, False),
    "flax": (0.99, False),
    "linen": (0.99, False),
    "equinox": (0.99, False),
    "onnx": (0.9, False),
}
# What a layer has without being told otherwise.
EPS = {
    "torch": 1e-5,
    "keras": 1e-3,
    "flax": {"batch": 1e-5, "": 1e-6},
    "linen": {"batch": 1e-5, "": 1e-6},
    "equinox": 1e-5,
    "onnx": 1e-5,
}


def cell_of(name):
    return json.loads((GOLDEN / f"{name.replace('/', '-')}.json").read_text())


def layer_of(name):
    framework = name.partition("/")[0]
    pytest.importorskip(NEEDS[framework], reason=f"{NEEDS[framework]} is not installed")
    cell = cell_of(name)
    assert golden.CELLS[name] == (cell["layer"], cell["options"]), "run tests/golden/make.py"
    return golden.build(name, cell["weights"]), cell


def number(cell, key):
    return np.asarray(cell[key], np.float64)


def test_every_cell_is_kept_and_every_file_is_a_cell():
    files = {path.name for path in GOLDEN.glob("*.json")} - {"versions.json", "model.json"}
    assert files == {f"{name.replace('/', '-')}.json" for name in golden.CELLS}
    kinds = {(n.partition("/")[0], golden.kind_of(n)) for n in golden.CELLS}
    wanted = {(f, k) for f, row in CONVENTIONS.items() for k in row.layers}
    assert wanted - kinds == {("equinox", "instance")}  # its group norm of single channels


def test_the_cells_stay_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir() if path.is_file()) < 200_000


@pytest.mark.parametrize("name", golden.CELLS)
def test_the_framework_still_does_what_it_did(name):
    layer, cell = layer_of(name)
    run = {"moved": golden.behind(name)}
    y, _, _ = golden.run(name.partition("/")[0], layer, number(cell, "x"), False, **run)
    np.testing.assert_allclose(y, number(cell, "inference"), **CLOSE)


@pytest.mark.parametrize("name", golden.CELLS)
def test_what_is_read_means_what_the_framework_computed(name):
    layer, cell = layer_of(name)
    weights = FRAMEWORKS[name.partition("/")[0]].read(layer)
    assert weights.sets[0] == golden.kind_of(name)
    x = number(cell, "x")
    np.testing.assert_allclose(reference(weights, x, False).y, number(cell, "inference"), **CLOSE)
    if "training" not in cell:
        return
    trained = reference(weights, x, True)
    np.testing.assert_allclose(trained.y, number(cell, "training"), **CLOSE)
    np.testing.assert_allclose(trained.mean, number(cell, "mean"), **CLOSE)
    np.testing.assert_allclose(trained.var, number(cell, "var"), **CLOSE)


@pytest.mark.parametrize("name", golden.CELLS)
def test_the_conventions_table_says_what_layers_have_by_default(name):
    layer, cell = layer_of(name)
    framework, kind = name.partition("/")[0], golden.kind_of(name)
    weights = FRAMEWORKS[framework].read(layer)
    if not {"eps", "epsilon"} & set(cell["options"]) and (framework, kind) != ("keras", "rms"):
        eps = EPS[framework]
        eps = eps.get(kind, eps[""]) if isinstance(eps, dict) else eps
        assert weights.eps == eps == CONVENTIONS[framework].eps[kind]
    if kind == "batch" and "momentum" not in cell["options"]:
        keep, unbiased = RULES[framework]
        assert weights.keep == keep == CONVENTIONS[framework].old_momentum
        assert (weights.variance == "unbiased") == unbiased
        assert (CONVENTIONS[framework].variance == "unbiased") == unbiased


def moved(weights, x, unbiased):
    """Running statistics after a batch, written out."""
    axes = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    var = x.var(axis=axes) * (count / (count - 1) if unbiased else 1)
    keep = weights.keep
    return (
        keep * weights.mean + (1 - keep) * x.mean(axis=axes),
        keep * weights.var + (1 - keep) * var,
    )


@pytest.mark.parametrize("target", list(NEEDS))
@pytest.mark.parametrize("name", golden.CELLS)
def test_a_cell_ported_computes_what_its_framework_did(name, target):
    pytest.importorskip(NEEDS[target], reason=f"{NEEDS[target]} is not installed")
    layer, cell = layer_of(name)
    lines = []
    if target == "flax" and name.endswith("layer-axes"):
        with pytest.raises(ModelError, match="Flax NNX has no counterpart"):
            port(layer, target, dims=1, report=lines.append)
        return
    made = port(layer, target, dims=1, report=lines.append)
    assert "agree" in lines[0]
    source = name.partition("/")[0]
    before = FRAMEWORKS[source].read(layer)
    after = adapt(before, target)
    x = number(cell, "x")
    moves = target in ("keras", "flax", "linen") and after.kind not in ("layer", "rms")
    run = {"moved": moves and after.channels == "last"}
    y, _, _ = golden.run(target, made, x, False, **run)
    np.testing.assert_allclose(y, number(cell, "inference"), **CLOSE)
    if before.kind != "batch":
        return
    y, mean, var = golden.run(target, made, x, True, **run)
    if not before.lagging:
        np.testing.assert_allclose(y, number(cell, "training"), **CLOSE)
    wanted = moved(before, x, RULES[target][1])
    np.testing.assert_allclose(mean, wanted[0], **CLOSE)
    np.testing.assert_allclose(var, wanted[1], **CLOSE)


def test_a_cell_with_another_convention_is_found_out():
    """The cells can fail: an eps of another framework shows."""
    cell = cell_of("keras/layer")
    x = number(cell, "x")
    gamma, beta = (np.asarray(cell["weights"][n]) for n in ("gamma", "beta"))

    def computed(eps):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + eps) * gamma + beta

    np.testing.assert_allclose(computed(1e-3), number(cell, "inference"), **CLOSE)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(computed(1e-5), number(cell, "inference"), **CLOSE)
