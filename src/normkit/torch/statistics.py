"""Running statistics as a value, the rules by which a batch moves them, and transactions.

A layer's buffers are such a value kept in place. Whether a batch's moments reach them at once, wait
for a :meth:`HeldStatistics.commit`, or are dropped is decided here and nowhere else.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import array_api_compat.torch as portable_torch
import torch
from torch import nn

from normkit.errors import NonFiniteError, OptionError
from normkit.moments import Moments, merge_along

__all__ = [
    "HeldStatistics",
    "RunningStatistics",
    "advance",
    "commit",
    "hold_statistics",
    "rollback",
]

Tensor = torch.Tensor

#: How an average forgets: at a constant rate, every batch weighing the same, every element.
RULES = ("ema", "cumulative", "population")
#: What becomes of a batch whose statistics are NaN or infinite.
NONFINITE = ("propagate", "skip", "raise")


class RunningStatistics(NamedTuple):
    """What inference normalizes with, as a value: pure functions take one and return the next.

    Args:
        mean, var: (C,), as torch.nn's ``running_mean`` and ``running_var``.
        batches: scalar, the batches seen: ``num_batches_tracked``.
        elements: (C,) whole numbers, the elements seen; only the ``"population"`` rule needs it.

    >>> state = RunningStatistics.start(3)
    >>> state.mean, int(state.batches)
    (tensor([0., 0., 0.]), 0)
    """

    mean: Tensor
    var: Tensor
    batches: Tensor
    elements: Tensor | None = None

    @classmethod
    def start(cls, features: int, device: Any = None, dtype: Any = None) -> RunningStatistics:
        """Before the first batch: mean 0, variance 1."""
        return cls(
            torch.zeros(features, device=device, dtype=dtype),
            torch.ones(features, device=device, dtype=dtype),
            torch.tensor(0, device=device),
            torch.zeros(features, device=device, dtype=torch.int64),
        )


def advance(
    state: RunningStatistics,
    batch: Moments,
    rule: str = "ema",
    momentum: float | None = 0.1,
    on_nonfinite: str = "propagate",
) -> RunningStatistics:
    """The statistics after one more batch; without host synchronization but for ``"raise"``.

    Args:
        state: the statistics so far.
        batch: moments of each channel, (C,).
        rule: ``"ema"`` (weight ``momentum`` for the new batch), ``"cumulative"`` or
            ``"population"``: the exact statistics of everything seen.
        momentum: for ``"ema"``; None means cumulative, as in torch.nn.
        on_nonfinite: ``"propagate"``, ``"skip"`` (as if the batch had not been) or ``"raise"``.

    Raises:
        NonFiniteError: on_nonfinite="raise" and the batch has NaN or infinite statistics.
    """
    mean, var, count = batch.mean, batch.population_var, batch.count
    batches = state.batches + 1
    elements = state.elements
    if rule == "population":
        mean, var, elements = _merged(state, batch)
    else:
        rate: Any = momentum
        if rule == "cumulative" or momentum is None:
            rate = 1.0 / batches.to(mean.dtype)
        mean = torch.lerp(state.mean.to(mean.dtype), mean, rate)
        var = torch.lerp(state.var.to(var.dtype), var, rate)
    new = RunningStatistics(mean.to(state.mean.dtype), var.to(state.var.dtype), batches, elements)
    if isinstance(count, Tensor):
        new = _where(count > 0, new, state, (count > 0).any())
    elif count < 1:
        return state
    if on_nonfinite == "propagate":
        return new
    # Also what is kept: a narrow buffer may not hold what a wide batch does.
    good = torch.isfinite(batch.mean) & torch.isfinite(batch.m2)
    good = good & (torch.isfinite(new.mean) & torch.isfinite(new.var) | ~_finite(state))
    finite = good.all()
    if on_nonfinite == "raise":
        _require(finite, good)
        return new
    return _where(finite, new, state, finite)


def _merged(state: RunningStatistics, batch: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of all elements seen."""
    seen = state.elements
    if seen is None:
        raise OptionError(
            'The "population" rule counts elements',
            received="statistics without elements",
            expected="a count for each channel",
            remedy="Start with RunningStatistics.start(features).",
        )
    wide = torch.float64
    before = seen.to(wide)
    known = isinstance(batch.count, Tensor)
    count = batch.count.to(wide) if known else torch.full_like(before, batch.count)
    m2 = state.var.to(wide) * torch.clamp(before - 1, min=1) * (before > 0)
    after = Moments(before, state.mean.to(wide) * (before > 0), m2).merge(
        Moments(count, batch.mean.to(wide), batch.m2.to(wide))
    )
    return after.mean, after.population_var, after.count.to(seen.dtype)


def _where(
    keep: Tensor, new: RunningStatistics, old: RunningStatistics, counted: Tensor
) -> RunningStatistics:
    elements = new.elements
    if elements is not None and old.elements is not None:
        elements = torch.where(keep, elements, old.elements)
    return RunningStatistics(
        torch.where(keep, new.mean, old.mean),
        torch.where(keep, new.var, old.var),
        torch.where(counted, new.batches, old.batches),
        elements,
    )


def _finite(state: RunningStatistics) -> Tensor:
    return torch.isfinite(state.mean) & torch.isfinite(state.var)


def _require(finite: Tensor, good: Tensor) -> None:
    if torch.compiler.is_compiling():
        torch._assert_async(finite, "normkit: a batch has NaN or infinite statistics")
        return
    if bool(finite):
        return
    bad = ~good
    channels = bad.nonzero().flatten().tolist()
    raise NonFiniteError(
        "A batch's statistics are not finite",
        received=f"NaN or infinity in {len(channels)} of {bad.numel()} channels, "
        f"the first of them channel {channels[0]}",
        expected='finite values, as on_nonfinite="raise" asks',
        remedy='Look at this batch. The running statistics are unchanged; on_nonfinite="skip" '
        "leaves such batches out of them.",
    )


def merge_sets(moments: Moments) -> Moments:
    """One set a channel from (K, C): K sets of each, merged exactly."""
    mean = moments.mean.to(torch.float64)  # counts go beyond float32's whole numbers
    count = torch.as_tensor(moments.count, dtype=mean.dtype, device=mean.device).expand(mean.shape)
    total = count.sum(0)
    merged = merge_along(portable_torch, count, mean, moments.m2, 0, total.clamp(min=1))
    return Moments(total, *merged)


def is_acceptable(batch: Moments, on_nonfinite: str) -> bool:
    """Whether a batch that is held counts.

    Raises:
        NonFiniteError: on_nonfinite="raise" and it has NaN or infinite statistics.
    """
    if on_nonfinite == "propagate":
        return True
    good = torch.isfinite(batch.mean) & torch.isfinite(batch.m2)
    finite = good.all()
    if on_nonfinite == "raise":
        _require(finite, good)
    return bool(finite)


# --- transactions ---------------------------------------------------------------------------------


class Tracker:
    """The part of a layer that owns running statistics: applies batches to them, or holds them.

    A layer has one, and gives it the buffers each time, so that it holds no tensor of the layer's.
    """

    def __init__(self) -> None:
        self.holding = False
        self.pending: dict[Any, Any] = {}  # moments by domain
        self.samples: dict[int, int] = {}  # behind what is pending
        #: A few elements of the latest batches, and the statistics in front of each.
        self.before: deque[tuple[int, Tensor, RunningStatistics]] = deque(maxlen=64)

    def hold(self, domain: int, batch: Moments, samples: int | None = None) -> None:
        """Merge a batch into what is pending.

        ``samples`` says that the batch's statistics are averages over so many samples, and that the
        samples' average is wanted, not the statistics of them all.
        """
        before, seen = self.pending.get(domain), self.samples.get(domain, 0)
        self.samples[domain] = seen + (samples or 0)
        if before is None:
            self.pending[domain] = batch
        elif samples is None:
            self.pending[domain] = before.merge(batch)
        else:
            share = samples / (seen + samples)
            count = before.count + (batch.count - before.count) * share
            mean = torch.lerp(before.mean, batch.mean, share)
            var = torch.lerp(before.population_var, batch.population_var, share)
            self.pending[domain] = Moments(count, mean, var * (count - 1))

    def forget(self) -> None:
        """Nothing is pending any more."""
        self.pending.clear()
        self.samples.clear()

    def __deepcopy__(self, memo: Any) -> Tracker:
        return Tracker()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tracker, ()


def _tracking(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "tracker", None), Tracker)]


class HeldStatistics:
    """What :func:`hold_statistics` gives: batches wait in it for commit or rollback."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = _tracking(model)
        base = nn.modules.batchnorm._NormBase
        self._foreign = [
            name for name, m in model.named_modules()
            if isinstance(m, base) and m.running_mean is not None and not hasattr(m, "tracker")
        ]  # fmt: skip
        self._own: list[Any] = []

    def __enter__(self) -> HeldStatistics:
        if self._foreign:
            raise OptionError(
                "Some running statistics cannot be held",
                received=f"layers of torch.nn, the first of them {self._foreign[0]!r}",
                expected="normkit's layers",
                remedy="normkit.torch.accelerate(model) makes them normkit's.",
            )
        for layer in self._layers:
            if layer.tracker.holding:
                raise OptionError(
                    "The running statistics are held already",
                    received=f"hold_statistics() inside another, around {layer}",
                    expected="one at a time",
                    remedy="Leave the outer one first.",
                )
        for layer in self._layers:
            layer.tracker.holding = True
            self._own.append(layer)
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self._own:
            layer.tracker.holding = False
            layer.tracker.forget()
        self._own.clear()

    def commit(self) -> None:
        """Move every layer's running statistics once, by all batches since the last commit."""
        # All first, so that an error from one layer leaves all as they were.
        steps = [step for layer in self._layers for step in layer.pending_steps()]
        for apply in steps:
            apply()
        self.rollback()

    def rollback(self) -> None:
        """Forget the batches since the last commit."""
        for layer in self._layers:
            layer.tracker.forget()


def hold_statistics(model: nn.Module) -> HeldStatistics:
    """Within this context no running statistic of the model's normkit layers moves.

    What the batches would have done waits: ``commit`` applies it as one batch (their moments
    merged exactly, which is what gradient accumulation wants), ``rollback`` forgets it, and so does
    leaving the context.

    >>> import torch, normkit.torch as nt
    >>> layer = nt.BatchNorm1d(2, momentum=1.0)
    >>> with hold_statistics(layer) as held:
    ...     for micro in torch.tensor([[0.0, 1], [2, 3], [4, 5], [6, 7]]).split(2):
    ...         y = layer(micro)
    ...     print(layer.running_mean)
    ...     held.commit()
    tensor([0., 0.])
    >>> layer.running_mean, layer.num_batches_tracked
    (tensor([3., 4.]), tensor(1))
    """
    return HeldStatistics(model)


def commit(model: nn.Module) -> None:
    """:meth:`HeldStatistics.commit` for whoever does not have the context's value at hand."""
    HeldStatistics(model).commit()


def rollback(model: nn.Module) -> None:
    """:meth:`HeldStatistics.rollback`, the same way."""
    HeldStatistics(model).rollback()
