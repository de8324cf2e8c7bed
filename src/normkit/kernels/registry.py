"""Which backend runs a call, and why.

NumPy arrays go to the compiled kernels, which import Numba when first needed. Whatever these do not
take, and every other array library, goes to the portable kernels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from normkit.errors import NotNormalizableError
from normkit.kernels.call import Backend, Call
from normkit.kernels.masked import MaskedBackend
from normkit.kernels.portable import PortableBackend

__all__ = ["backend_for", "know_namespace", "namespace_of", "portable"]

_namespaces: dict[type, Any] = {np.ndarray: array_api_compat.numpy}


def know_namespace(kind: type, xp: Any) -> None:
    """Spare arrays of exactly this type the search for their library."""
    _namespaces[kind] = xp


def namespace_of(array: Any, name: str = "x") -> Any:
    """The array library that ``array`` belongs to.

    Raises:
        NotNormalizableError: it is no array.
    """
    known = _namespaces.get(type(array))
    if known is not None:
        return known
    try:
        return array_api_compat.array_namespace(array)
    except TypeError:
        raise NotNormalizableError(
            f"{name} is no array",
            received=type(array).__name__,
            expected="an array of NumPy, PyTorch, JAX, CuPy or another array API library",
            remedy="Convert it first, for instance with numpy.asarray.",
        ) from None


@cache
def portable(xp: Any) -> PortableBackend:
    """The portable backend of a namespace."""
    return PortableBackend(xp)


@cache
def _masked() -> MaskedBackend:
    return MaskedBackend(_compiled(), portable(array_api_compat.numpy))


@cache
def _compiled() -> Any:
    """The compiled backend for NumPy, or the reason why there is none."""
    try:
        from normkit.kernels.cpu.backend import CpuBackend
    except ImportError as error:
        return f"Numba cannot be imported ({error})"
    from normkit.kernels.numpy_host import NumpyHost

    return CpuBackend(NumpyHost())


def compiled_refusal(call: Call) -> str | None:
    """Why NumPy's compiled kernels do not take the call, its mask aside; None if they do."""
    compiled = _compiled()
    return compiled if isinstance(compiled, str) else compiled.refusal(call)


def backend_for(call: Call) -> Backend:
    """The fastest backend that takes the call."""
    if isinstance(call.x, np.ndarray):
        if compiled_refusal(call) is None:
            return _compiled() if call.mask is None else _masked()
        return portable(array_api_compat.numpy)
    return portable(namespace_of(call.x))


def explain(call: Call) -> str:
    """The choice in words."""
    if not isinstance(call.x, np.ndarray):
        library = namespace_of(call.x).__name__.split(".")[-1]
        hint = "; normkit.torch runs CPU tensors on the compiled ones" if library == "torch" else ""
        return f"portable ({library}): compiled kernels read NumPy arrays, x is of {library}{hint}"
    reason = compiled_refusal(call)
    if reason is None and call.mask is not None:
        return (
            "compiled (Numba, CPU): x is a NumPy array whose sets can be read in place;\n"
            "portable (numpy): what the mask changes, the moments and a part of dx"
        )
    if reason is None:
        return (
            "compiled (Numba, CPU): x is a NumPy array whose sets can be read in place;\n"
            "portable (array API): not needed"
        )
    return f"portable (numpy): {reason}"
