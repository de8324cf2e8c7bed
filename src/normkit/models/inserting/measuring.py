"""Mean and variance of layers' outputs over data, taken exactly by merging moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normkit.errors import DataError, ModelError
from normkit.models.batches import Batch, Forward, batches_of, call, count_of
from normkit.models.conversion.surroundings import recorded
from normkit.models.measuring.undisturbed import undisturbed
from normkit.models.progress import track
from normkit.moments import Moments

__all__ = ["Measured", "measure"]

Tensor = torch.Tensor
_CHUNK = 1 << 18  # elements in float64 that stay in cache


@dataclass(frozen=True, eq=False)
class Measured:
    """What a layer's output was like.

    Args:
        mean, var: of each channel, (C,), float64; var is the population's estimate.
        samples, batches: behind them.
    """

    mean: Tensor
    var: Tensor
    samples: int
    batches: int

    @property
    def is_quiet(self) -> bool:
        """Whether a channel varies less than batch norm's usual eps."""
        return bool((self.var < 1e-5).any())


def measure(
    model: nn.Module, dims: dict[str, int], data: Any, forward: Forward | None = None
) -> tuple[dict[str, Measured], Batch]:
    """Run a model in eval mode over data, and take statistics of some layers' outputs.

    Args:
        model: is afterwards as it was.
        dims: names of the layers, and how many axes their outputs have behind (N, C).
        data: as of :func:`normkit.models.batches.batches_of`.
        forward: calls the model on one batch of it.

    Returns:
        What was measured, by name, and the first batch.

    Raises:
        ModelError: a layer is not reached, is called more than once, or gives something else than
            (N, C, ...).
        DataError: as of ``batches_of`` and ``call``; or there is NaN or infinity.

    >>> layer = nn.Linear(1, 1)
    >>> _ = layer.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    >>> found, _ = measure(layer, {"": 0}, torch.tensor([[1.0], [3.0]]))
    >>> float(found[""].mean), float(found[""].var)
    (3.0, 2.0)
    """
    gauges = {name: _Gauge(name, count) for name, count in dims.items()}
    layers = {name: model.get_submodule(name) for name in gauges}
    first: Batch | None = None

    def begin(*_: Any) -> None:
        for gauge in gauges.values():
            gauge.calls = 0

    def take(name: str, _: Any, output: Any) -> None:
        gauges[name].take(output)

    with undisturbed(model), torch.no_grad(), recorded(layers, take):
        model.eval()
        start = model.register_forward_pre_hook(begin)
        try:
            own = forward is None
            batches = batches_of(data, like=model if own else None, opaque=not own)
            for batch in track(batches, "measuring", count_of(data)):
                first = first or batch
                begin()  # also where forward= calls a part of the model only
                call(model, batch, forward)
                for gauge in gauges.values():
                    gauge.check()
        finally:
            start.remove()
    assert first is not None
    return {name: gauge.measured() for name, gauge in gauges.items()}, first


@dataclass(eq=False)
class _Gauge:
    """Statistics of one layer's output, batch by batch."""

    name: str
    dims: int
    moments: Moments | None = None
    samples: int = 0
    batches: int = 0
    calls: int = 0
    problem: str = ""
    seen: list[str] = field(default_factory=list)

    def take(self, output: Any) -> None:
        """One call. What is wrong is kept for :meth:`check`: the model may catch errors."""
        self.calls += 1
        if self.calls > 1:
            self.problem = (
                "is called more than once in a forward; the calls would share one norm's statistics"
            )
        elif not isinstance(output, Tensor) or not output.is_floating_point():
            self.problem = f"gives {type(output).__name__}, not a tensor of floating point numbers"
        elif output.dim() != self.dims + 2:
            where = "last" if self.dims == 0 else "first, without a batch"
            self.problem = (
                f"gives shape {tuple(output.shape)}, with its channels {where}; batch norm takes "
                "them second"
            )
        elif output.numel():
            self._add(output.detach())

    def _add(self, output: Tensor) -> None:
        for part in _parts(output):
            self.moments = part if self.moments is None else self.moments.merge(part)
        self.samples += len(output)
        self.batches += 1

    def check(self) -> None:
        if self.problem:
            raise _refusal(self.name, self.problem)

    def measured(self) -> Measured:
        if self.moments is None:
            raise _refusal(self.name, "is not reached by the data")
        mean, var = self.moments.mean, self.moments.population_var
        if not bool(mean.isfinite().all() & var.isfinite().all()):
            raise DataError(
                "A layer's output has no mean and variance",
                received=f"NaN or infinity from {self.name or 'the model'!r} on this data",
                expected="finite values",
                remedy="Look for the sample that gives them, or measure in a wider dtype.",
            )
        return Measured(mean, var, self.samples, self.batches)


def _parts(output: Tensor) -> Iterator[Moments]:
    """Moments of each channel, a few samples at a time."""
    rows = max(_CHUNK // max(output[0].numel(), 1), 1)
    for part in output.split(rows):
        values = part.double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        m2 = (values - mean[:, None]).square().sum(1)
        yield Moments(float(values.shape[1]), mean, m2)


def _refusal(name: str, why: str) -> ModelError:
    return ModelError(
        "No batch norm can be put behind this layer; nothing was changed",
        received=f"{name or 'the model itself'!r}, which {why}",
        expected="a layer that gives (N, C, ...) once in each forward",
        remedy="Leave it out.",
    )
