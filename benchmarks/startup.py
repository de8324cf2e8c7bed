"""What a user waits for before the first result: import, first step, compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import ROOT, figures
from benchmarks.driver import PeerError, environment

IMPORT = """
import time
start = time.perf_counter()
import normkit
print(time.perf_counter() - start)
"""

NUMPY_STEP = """
import time
import numpy as np
import normkit as nk
random = np.random.default_rng(0)
x = random.standard_normal((8, 64, 28, 28), dtype=np.float32)
gamma, beta = np.ones(64, np.float32), np.zeros(64, np.float32)
start = time.perf_counter()
norm = nk.BatchNorm()
y, saved = norm.forward(x, gamma, beta)
norm.backward(x, saved)
print(time.perf_counter() - start)
"""

TORCH_STEP = """
import time
import torch
import normkit.torch
x = torch.randn(8, 64, 28, 28, requires_grad=True)
dy = torch.randn(8, 64, 28, 28)
start = time.perf_counter()
normkit.torch.BatchNorm2d(64)(x).backward(dy)
print(time.perf_counter() - start)
"""


def _seconds(code: str, cache: str | None = None) -> float:
    """Run the code in a fresh process; it prints the seconds it measured as its last line."""
    env = environment() | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=os.fspath(ROOT),
        env=env,
        capture_output=True,
        text=True,
        timeout=420,
    )
    if done.returncode:
        raise PeerError(done.stderr.strip().splitlines()[-1])
    return float(json.loads(done.stdout.splitlines()[-1]))


def _summary(code: str, runs: int) -> figures.Summary:
    return figures.summarise([_seconds(code) for _ in range(runs)])


def measure(runs: int = 5, cold: bool = True) -> dict[str, Any]:
    """Seconds of the import, of the first step with compiled code cached, and without."""
    seconds: dict[str, Any] = {}
    skipped: dict[str, str] = {}

    def attempt(name: str, code: str) -> None:
        try:
            _seconds(code)  # fills the caches of bytecode, files and kernels
            seconds[name] = _summary(code, runs)
        except (PeerError, subprocess.TimeoutExpired) as reason:
            skipped[name] = str(reason)

    attempt("import", IMPORT)
    attempt("warm step, NumPy", NUMPY_STEP)
    attempt("warm step, PyTorch", TORCH_STEP)
    if cold:
        for name, code in (("cold step, NumPy", NUMPY_STEP), ("cold step, PyTorch", TORCH_STEP)):
            try:
                with tempfile.TemporaryDirectory() as cache:
                    seconds[name] = figures.summarise([_seconds(code, cache)])
            except (PeerError, subprocess.TimeoutExpired) as reason:
                skipped[name] = str(reason)
    return {"seconds": seconds, "skipped": skipped}
