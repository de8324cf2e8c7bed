"""What the exact identities share: random passes through a norm, and how far off equality is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from normkit.lab.claim import Number
from normkit.norms import Norm
from normkit.torch import native, use_native_up_to
from normkit.torch.functional import normalize

__all__ = [
    "CLEAR", "EPSILONS", "EXACT", "Pass", "apart", "draw", "equal", "gradients", "kernels",
    "largest", "least", "most", "residual", "through", "with_random_affine",
]  # fmt: skip

Tensor = torch.Tensor
Module = TypeVar("Module", bound=nn.Module)

#: What rounding in float64 leaves of an identity, and more.
EXACT = 1e-12
#: What is clearly no rounding, where two things are not to be equal.
CLEAR = 0.01
#: Added to the variance; the formulas hold for each.
EPSILONS = (0.0, 1e-5, 1e-3, 0.5)


def equal(name: str, words: str) -> Number:
    """A residual that rounding alone explains."""
    return Number(name, words, at_most=EXACT)


def apart(name: str, words: str) -> Number:
    """A residual that no rounding explains: the identity does not hold here, and is not to."""
    return Number(name, words, at_least=CLEAR)


@contextmanager
def kernels() -> Iterator[None]:
    """Everything through normkit's kernels; small inputs would go to PyTorch's own operators."""
    before = native._forced
    use_native_up_to(0)
    try:
        yield
    finally:
        use_native_up_to(before)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def residual(found: Any, wanted: Any, size: Any = None) -> float:
    """The largest difference, relative to the largest of what is compared.

    Args:
        size: what to relate it to where ``wanted`` is a small difference of large numbers, or zero.

    >>> residual(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))
    0.125
    """
    found, wanted = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (found, wanted))
    size = wanted if size is None else torch.as_tensor(size, dtype=torch.float64).detach()
    return float((found - wanted).abs().max() / size.abs().max())


def largest(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest residual of several tensors."""
    return most(residual(a, b) for a, b in zip(found, wanted, strict=True))


def most(values: Iterable[float]) -> float:
    """The largest; NaN where there is one, which ``max`` would pass over."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())


def least(values: Iterable[float]) -> float:
    """The smallest; NaN where there is one."""
    return float(torch.tensor(list(values), dtype=torch.float64).min())


def gradients(y: Tensor, g: Tensor, *by: Any) -> tuple[Tensor, ...]:
    """Of the loss whose gradient by ``y`` is ``g``."""
    return torch.autograd.grad(y, by, g)


def with_random_affine(layer: Module, generator: torch.Generator) -> Module:
    """The layer in float64, its parameters drawn anew."""
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(draw(generator, *parameter.shape))
    return layer


def through(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients by the input and by the layer's parameters.

    Args:
        g: the loss's gradient by the output.
    """
    x = x.detach().requires_grad_()
    parameters = layer.parameters() if isinstance(layer, nn.Module) else ()
    y = layer(x)
    return y.detach(), *gradients(y, g, x, *parameters)


@dataclass(frozen=True, eq=False)
class Pass:
    """A norm applied to random numbers, forward and backward.

    Args:
        x: the input, neither of mean 0 nor of variance 1.
        gamma: of its channels.
        g: the gradient of a loss by the output, with a share of ones and of x in it.
        x_hat: the output without gamma and beta.
        y, dx, dgamma: the output, and the loss's gradients.
    """

    norm: Norm
    x: Tensor
    gamma: Tensor
    g: Tensor
    x_hat: Tensor
    y: Tensor
    dx: Tensor
    dgamma: Tensor

    @classmethod
    def of(cls, norm: Norm, generator: torch.Generator, *shape: int) -> Pass:
        """With an input of this shape, channels along axis 1."""
        x = 2 + 1.5 * draw(generator, *shape)
        gamma, beta = draw(generator, shape[1]), draw(generator, shape[1])
        g = draw(generator, *shape) + x
        for values in (x, gamma):
            values.requires_grad_()
        y = normalize(norm, x, gamma, beta)
        dx, dgamma = gradients(y, g, x, gamma)
        x_hat = normalize(norm, x.detach())
        return cls(norm, x.detach(), gamma.detach(), g, x_hat, y.detach(), dx, dgamma)

    @property
    def g_hat(self) -> Tensor:
        """The loss's gradient by ``x_hat``."""
        return self.g * self.gamma.reshape(-1, *[1] * (self.x.dim() - 2))

    @property
    def count(self) -> int:
        """Elements in a set."""
        return int(torch.as_tensor(self.norm.moments(self.x).count).max())

    @property
    def var(self) -> Tensor:
        """Biased variance of each set."""
        return torch.as_tensor(self.norm.moments(self.x).var)

    def sums(self, values: Tensor) -> Tensor:
        """Over each set of the norm."""
        moments = self.norm.moments(values)
        return torch.as_tensor(moments.mean) * self.count
