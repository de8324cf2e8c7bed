"""Statistics to the numbers that a pass over x needs; the only home of eps, gamma, beta, r and d.

Everything here is plain arithmetic on numbers or arrays, so the same lines run in NumPy, in any
array library and, compiled, inside the fused kernels.

    x_hat = slope * (x - mean) + offset        slope = r / sqrt(var + eps), offset = d
    z     = gamma * x_hat + beta

where r = 1 and d = 0 but for batch renormalization (Ioffe 2017, section 3). With the sums
P = sum of gamma*dz and Q = sum of gamma*dz*(x - mean) over a set of m elements,

    dx    = slope * gamma * dz + linear * (x - mean) + constant
    linear   = -slope * Q / (m * (var + eps))
    constant = -slope * P / m

``linear`` is the way through the variance, ``constant`` the way through the mean; each vanishes
where the statistic was given instead of taken from x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normkit.errors import OptionError

__all__ = ["Renorm"]


def inverse_std(var: Any, eps: float) -> Any:
    """1 / sqrt(var + eps)."""
    return 1.0 / (var + eps) ** 0.5


def set_slope(xp: Any, count: Any, m2: Any, eps: float, center: bool, scale: bool) -> Any:
    """1 / sqrt(var + eps) of each set whose statistics come from x; 1 for a mean-only norm.

    0 where a centred set has fewer than two elements: x - mean is 0 then, and so is every gradient
    through it, exactly and for eps = 0 too. Also 0 for an empty set, whose elements are all masked.
    """
    slope = inverse_std(m2 / (count + (count < 1)), eps) if scale else xp.ones_like(m2)
    return xp.where(count < 1.0 + center, xp.zeros_like(slope), slope)


def gradient_line(
    slope: Any, var: Any, eps: float, count: Any, dz: Any, dzx: Any, center: Any, scale: Any
) -> tuple[Any, Any]:
    """``linear`` and ``constant`` of dx from the set's sums.

    Args:
        slope: of x_hat.
        var: biased variance of the set.
        eps: the norm's.
        count: elements in the set, at least 1.
        dz, dzx: sums of gamma*dz and gamma*dz*(x - mean).
        center, scale: 1.0 where the gradient flows through the mean, the variance; else 0.0.
    """
    linear = -scale * slope * (dzx / (count * (var + eps + (1.0 - scale))))
    constant = -center * slope * (dz / count)
    return linear, constant


@dataclass(frozen=True, eq=False)
class Renorm:
    """Batch renormalization's reference statistics and limits (Ioffe 2017, Algorithm 1).

    Args:
        mean, var: running statistics, shaped as the norm's statistics.
        r_max: r is clipped to [1 / r_max, r_max]; 1 makes it plain batch norm.
        d_max: d is clipped to [-d_max, d_max]. Numbers, or scalar arrays where a tracer needs them.
    """

    mean: Any
    var: Any
    r_max: Any = 1.0
    d_max: Any = 0.0

    def __post_init__(self) -> None:
        for name, least in (("r_max", 1.0), ("d_max", 0.0)):
            value = getattr(self, name)
            if hasattr(value, "dtype"):
                continue  # an array, whose value may not be known yet
            if not isinstance(value, (int, float)) or not value >= least:
                raise OptionError(
                    f"Renorm cannot clip with this {name}",
                    received=repr(value),
                    expected=f"a number of at least {least:g}",
                    remedy="The paper starts at r_max=1, d_max=0 and ends at r_max=3, d_max=5.",
                )

    def factors(self, xp: Any, mean: Any, var: Any, eps: float) -> tuple[Any, Any]:
        """r and d for a batch of these statistics; constants for the gradient."""
        running = (self.var + eps) ** 0.5
        r = xp.clip((var + eps) ** 0.5 / running, 1.0 / self.r_max, self.r_max)
        d = xp.clip((mean - self.mean) / running, -self.d_max, self.d_max)
        return r, d
