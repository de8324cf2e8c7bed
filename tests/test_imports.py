"""`import normkit` brings in no framework, and the modules import downwards only."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("normkit").origin).parent
FRAMEWORKS = ("torch", "jax", "jaxlib", "keras", "tensorflow", "cupy", "scipy", "sklearn", "plotly")

# From the top down. A module may import from its own layer and from those below it.
LAYERS = (
    ("demo", "cli"),
    ("explain", "lab"),
    ("models",),
    ("report",),
    ("torch", "keras", "jax", "scaling"),
    ("",),  # the package itself: the public names
    ("norms",),
    ("engine", "trace", "checks"),
    ("kernels",),
    ("layout", "moments", "coefficients", "epilogues"),
    ("writing",),
    ("errors", "extras", "machine", "plain", "words"),
)


def modules_after(statement):
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_import_brings_in_no_framework():
    loaded = modules_after("import normkit")
    assert not loaded & set(FRAMEWORKS)
    assert "ml_dtypes" not in loaded


def test_a_numpy_step_brings_in_no_framework():
    step = (
        "import numpy as np, normkit as nk\n"
        "y, saved = nk.BatchNorm().forward(np.ones((4, 2), np.float32))\n"
        "nk.BatchNorm().backward(y, saved)"
    )
    # Numba looks for SciPy when it is imported, and loads it where the user has it.
    assert not modules_after(step) & (set(FRAMEWORKS) - {"scipy"})


def test_the_torch_layer_brings_in_no_other_framework():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    loaded = modules_after("import normkit.torch")
    assert "torch" in loaded
    assert not loaded & {"jax", "keras", "tensorflow", "cupy"}


def module_names():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, name):
    """Modules of the package that the file imports anywhere in it but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped |= {id(inner) for part in node.body for inner in ast.walk(part)}
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            root = ".".join(filter(None, ["normkit" if node.level else "", *base, node.module]))
            found = [f"{root}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            if full == "normkit" or full.startswith("normkit."):
                yield full.removeprefix("normkit").lstrip(".")


def existing(name, known):
    """The module in which an imported dotted name lives."""
    while name not in known:
        name = name.rpartition(".")[0]
    return name


def layer(name):
    top = name.split(".")[0]
    found = [i for i, layer in enumerate(LAYERS) if top in layer]
    assert found, f"normkit.{name} is in no layer: add it to LAYERS"
    return found[0]


def graph():
    known = {name for _, name in module_names()}
    return {
        name: {existing(target, known) for target in imports_of(path, name)} - {name}
        for path, name in module_names()
    }


def test_imports_point_down():
    wrong = [
        f"{name or 'normkit'} imports {target or 'normkit'}"
        for name, targets in graph().items()
        for target in targets
        if layer(target) < layer(name)
    ]
    assert not wrong


def test_no_import_cycles():
    edges, done = graph(), set()
    # that a package is run before its submodules makes no cycle of its own
    trail = []

    def visit(name):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        trail.append(name)
        for target in sorted(edges[name]):
            visit(target)
        trail.pop()
        done.add(name)

    for name in edges:
        visit(name)


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("torch", ("torch", "models", "lab", "demo", "cli")),
        ("jax", ("jax",)),
        ("numba", ("kernels",)),
        ("sklearn", ("lab", "demo", "scaling")),
    ],
)
def test_a_library_is_imported_in_its_own_layer_only(library, where):
    for path, name in module_names():
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots = [(node.module or "").split(".")[0]]
            assert library not in roots or name.split(".")[0] in where, f"{name} imports {library}"
