"""Machine code for the kernels: compiled when first needed, kept on disk, announced when slow."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numba import types

from normkit.epilogues import find_activation
from normkit.kernels.cpu import across, across_backward, along, along_backward
from normkit.kernels.cpu.intrinsics import Variant

_INT, _FLOAT, _BOOL = types.intp, types.float64, types.boolean

#: Types of each entry point's arguments behind the variant.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "normalize": (*[_INT] * 8, _FLOAT, _BOOL, _BOOL, _INT),
    "moments": (*[_INT] * 4, _BOOL, _INT),
    "apply": (_INT,) * 10,
    "backpropagate": (*[_INT] * 10, _FLOAT, _BOOL, _BOOL, _INT, _INT, _INT),
    "gradient_sums": (_INT,) * 14,
    "gradient_apply": (*[_INT] * 13, _BOOL, _INT),
}
_MODULES = {"along": (along, along_backward), "across": (across, across_backward)}

_log = logging.getLogger("normkit")
_lock = threading.Lock()
_announced = False

if hasattr(os, "register_at_fork"):  # a child forked while another thread compiles gets it unlocked
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def _announce_later() -> threading.Timer:
    """Say once, after a second, why the call takes so long."""

    def announce() -> None:
        global _announced
        if not _announced:
            _announced = True
            sys.stderr.write(
                "normkit: compiling kernels for this machine (once; "
                "normkit.warm_up() does it ahead)\n"
            )
            sys.stderr.flush()

    timer = threading.Timer(1.0, announce)
    timer.daemon = True
    timer.start()
    return timer


def _compile(kernel: Any, signature: tuple[Any, ...]) -> Callable[..., Any]:
    try:
        return kernel.compile(signature)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError):
        kernel._cache.flush()  # a damaged file in the cache: forget it and compile anew
        return kernel.compile(signature)


@lru_cache(maxsize=4096)
def entry_point(
    path: str, name: str, dtype: str, activation: str | None, residual: bool, crossed: bool,
    input_activation: str | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """The compiled kernel for a variant, called with ``None`` in the variant's place."""
    known = [find_activation(activation), find_activation(input_activation)]
    labels = ["" if one is None else one.name for one in known]
    digest = "".join("" if one is None else one.digest for one in known)
    variant = Variant(dtype, labels[0], residual, crossed, digest, labels[1])
    with _lock:
        start = time.perf_counter()
        timer = _announce_later()
        try:
            forward, backward = _MODULES[path]
            kernel = getattr(forward if hasattr(forward, name) else backward, name)
            compiled = _compile(kernel, (variant, *_SIGNATURES[name]))
        finally:
            timer.cancel()
        _log.debug("%s.%s %s: %.2f s", path, name, variant.name, time.perf_counter() - start)
    return compiled
