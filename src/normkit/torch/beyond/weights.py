"""Weight norm (Salimans & Kingma 2016): the length and the direction of weights, learned apart."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from normkit.errors import DTypeError, NormError, OptionError
from normkit.torch.beyond.common import check_count, is_whole, widened

__all__ = ["WeightNorm", "remove_weight_norm", "weight_norm", "weight_norm_of"]


class WeightNorm(nn.Module):
    """w = g · v / |v| as a parametrization for ``torch.nn.utils.parametrize``.

    Salimans & Kingma 2016, "Weight Normalization", section 2. ``original0`` is g, ``original1``
    is v, of the shapes that torch's own weight norm has, so that state dicts fit either.

    Args:
        dim: the axis that tells the vectors apart, each of which has a norm; None for one norm
            of the whole tensor.
        groups: of a transposed convolution, whose output channels lie along axis 0 by groups and
            along axis 1 inside a group; 1 for all others.
    """

    def __init__(self, dim: int | None = 0, groups: int = 1) -> None:
        super().__init__()
        if dim is not None and not is_whole(dim):
            raise OptionError(
                "Weight norm cannot have this dim",
                received=repr(dim),
                expected="a whole number or None",
                remedy="dim=0 is the output axis of torch.nn's linear layers and convolutions.",
            )
        self.dim = dim
        self.groups = check_count("groups", groups)

    def forward(self, g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        vectors = self._split(widened(v))
        w = vectors * (widened(g) / self._norm(vectors))
        return w.reshape(v.shape).to(v.dtype)

    def right_inverse(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """g and v of a weight: its vectors' norms, and itself.

        Raises:
            NormError: a vector of zeros has no direction.
        """
        g = self._norm(self._split(widened(w)))
        if not g.is_meta and bool((g == 0).any()):
            raise NormError(
                "Weight norm needs a direction for every output",
                received=f"{int((g == 0).sum())} of {g.numel()} vectors of zeros",
                expected="weights that are not zero",
                remedy="Initialize the weight at random, and set g to zero instead.",
            )
        return g.to(w.dtype), w

    def _split(self, w: torch.Tensor) -> torch.Tensor:
        return w if self.groups == 1 else w.unflatten(0, (self.groups, -1))

    def _norm(self, vectors: torch.Tensor) -> torch.Tensor:
        if self.dim is None:
            return torch.linalg.vector_norm(vectors)
        kept = {self.dim % vectors.dim()} if self.groups == 1 else {0, self.dim + 1}
        inside = tuple(d for d in range(vectors.dim()) if d not in kept)
        if not inside:  # no dims would mean all
            return vectors.abs()
        return torch.linalg.vector_norm(vectors, dim=inside, keepdim=True)

    def extra_repr(self) -> str:
        return f"dim={self.dim}" + ("" if self.groups == 1 else f", groups={self.groups}")


def weight_norm(
    module: nn.Module, name: str = "weight", dim: int | Literal["output"] | None = "output"
) -> nn.Module:
    """Learn length and direction of a module's weight vectors apart: w = g · v / |v|.

    Args:
        module: a layer; changed in place.
        name: the parameter.
        dim: the axis that tells the vectors apart. ``"output"`` is that of the output features,
            also of transposed convolutions, where it is axis 1 (inside each group). None takes
            one norm of the whole tensor.

    Returns:
        The module, its weight computed from ``parametrizations.<name>.original0`` (g) and
        ``original1`` (v). Like every parametrized module it can be copied, but pickled only by its
        ``state_dict``.

    Raises:
        DTypeError: ``module`` is no module.
        OptionError: no such parameter, or it has a parametrization; no such axis.
        NormError: a vector of zeros has no direction.

    >>> import torch
    >>> layer = weight_norm(torch.nn.Linear(3, 2))
    >>> [tuple(p.shape) for p in layer.parametrizations.weight.parameters()]
    [(2, 1), (2, 3)]
    >>> isinstance(remove_weight_norm(layer).weight, torch.nn.Parameter)
    True
    """
    weight = _plain_parameter(module, name)
    groups = 1
    if dim == "output":
        transposed = isinstance(module, _ConvTransposeNd) and name == "weight"
        dim = 1 if transposed else 0
        groups = module.groups if transposed else 1  # type: ignore[assignment]
    parametrization = WeightNorm(dim, groups)  # refuses what is no axis at all
    if dim is not None and not -weight.dim() <= dim < weight.dim():
        raise OptionError(
            "Weight norm finds no such axis",
            received=f"dim={dim} for {name} of shape {tuple(weight.shape)}",
            expected=f"from {-weight.dim()} to {weight.dim() - 1}, or None",
            remedy="Leave dim= away for the axis of the output features.",
        )
    if dim is not None:
        parametrization.dim = dim % weight.dim()
    return parametrize.register_parametrization(module, name, parametrization)


def remove_weight_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Make the weight a plain parameter again, with the value that it has.

    Raises:
        OptionError: the parameter has no weight norm, or other parametrizations besides.
    """
    if weight_norm_of(module, name) is None:
        raise OptionError(
            "No weight norm to remove",
            received=f"{type(module).__name__} with {name!r} not made by weight_norm() alone",
            expected="a parameter whose only parametrization is weight norm",
            remedy="torch.nn.utils.parametrize.remove_parametrizations removes any.",
        )
    return parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _plain_parameter(module: Any, name: str) -> torch.Tensor:
    if not isinstance(module, nn.Module):
        raise DTypeError(
            "weight_norm() changes modules",
            received=type(module).__name__,
            expected="a torch.nn.Module",
            remedy="Pass the layer, not its weight.",
        )
    parameter = module._parameters.get(name)
    if parameter is None or nn.parameter.is_lazy(parameter):
        raise OptionError(
            f"{type(module).__name__} has no parameter to normalize",
            received=repr(name),
            expected=f"one of {', '.join(module._parameters) or 'none'}, not lazy, without "
            "parametrizations",
            remedy="Run a lazy module once first; remove other parametrizations.",
        )
    return parameter


def weight_norm_of(module: Any, name: str) -> Any:
    """The list of g, v and their WeightNorm, if nothing else makes up the parameter."""
    if not parametrize.is_parametrized(module, name):
        return None
    chain = module.parametrizations[name]
    return chain if len(chain) == 1 and isinstance(chain[0], WeightNorm) else None
