"""Compiling ahead of the first call."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from normkit.epilogues import find_activation
from normkit.errors import OptionError

__all__ = ["warm_up"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_KERNELS = ("normalize", "moments", "apply", "backpropagate", "gradient_sums", "gradient_apply")


def warm_up(
    dtypes: Sequence[str] = ("float32",),
    activations: Sequence[str | None] = (None,),
    residual: Sequence[bool] = (False,),
) -> int:
    """Compile the kernels for these inputs now; they stay in a cache on disk.

    Args:
        dtypes: any of float16, bfloat16, float32, float64.
        activations: names of activations, None for none.
        residual: whether a residual is added.

    Returns:
        How many kernels are ready.

    Raises:
        OptionError: an unknown dtype or activation.
    """
    dtypes = (dtypes,) if isinstance(dtypes, str) else dtypes
    activations = (activations,) if isinstance(activations, str) else activations
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise OptionError(
                "No kernels for this dtype",
                received=repr(dtype),
                expected=", ".join(_DTYPES),
                remedy="Name dtypes as strings: warm_up(dtypes=('float32',)).",
            )
    for activation in activations:
        find_activation(activation)
    from normkit.kernels.cpu.compiled import entry_point

    ready = set()
    for path, name, dtype, activation, added, crossed in itertools.product(
        ("along", "across"), _KERNELS, dtypes, activations, residual, (False, True)
    ):
        if name == "moments":  # depends on the dtype only
            activation, added, crossed = None, False, False
        variant = (path, name, dtype, activation, bool(added), crossed)
        entry_point(*variant)
        ready.add(variant)
    return len(ready)
