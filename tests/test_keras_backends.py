"""The suite of normkit.keras on the backends that this process does not run Keras on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="Keras is not installed")

import keras

ROOT = Path(__file__).resolve().parent.parent
OTHERS = [name for name in ("torch", "jax", "tensorflow") if name != keras.config.backend()]
#: Two devices, for the tests of replicas; and no optimizing of programs that run once.
XLA = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"


def python_with(backend):
    """An interpreter that has the backend: this one, or that of the environment on top of it."""
    if importlib.util.find_spec(backend):
        return sys.executable
    beside = Path(sys.prefix, backend, "bin", "python")
    if not beside.exists():
        pytest.skip(f"{backend} is not installed")
    return str(beside)


@pytest.mark.parametrize("what", ["tests/test_keras_layers.py", "tests/test_keras_models.py",
                                  "src/normkit/keras"])  # fmt: skip
@pytest.mark.parametrize("backend", OTHERS)
def test_the_suite_passes_under(backend, what):
    env = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    env |= {"KERAS_BACKEND": backend, "XLA_FLAGS": XLA, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [
        python_with(backend),
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        what,
    ]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
