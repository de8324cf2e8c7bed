"""A norm that is recalibrated: its statistics as they were, what they become, and the writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from normkit.errors import DataError, NonFiniteError
from normkit.models.recalibration.averages import Average, Reading, make_average
from normkit.models.recalibration.listening import like, slot
from normkit.models.recalibration.shifts import Shift, distances
from normkit.models.sites import NormSite

__all__ = ["Change", "Target", "write_all"]

Tensor = torch.Tensor


@dataclass(eq=False)
class Target:
    """A norm and its averages, one a domain; ``mean`` and ``var`` as stored, in float64."""

    site: NormSite
    method: str
    mean: Tensor
    var: Tensor
    averages: list[Average]
    note: str = ""

    @classmethod
    def of(cls, site: NormSite, method: str, momentum: float | None) -> Target:
        """A target that has seen nothing yet."""
        assert site.mean is not None
        assert site.var is not None
        home = "cpu" if site.mean.device.type == "mps" else site.mean.device  # float64
        mean, var = (t.detach().to(home, torch.float64, copy=True) for t in (site.mean, site.var))
        rate = site.momentum if momentum is None else momentum
        if site.kind == "instance" and rate is None:
            rate = 0.0  # as torch.nn takes it
        batches = site.module._buffers.get("num_batches_tracked")
        means, variances = torch.atleast_2d(mean), torch.atleast_2d(var)
        count = torch.zeros(()) if batches is None else batches
        rows = zip(means, variances, count.expand(len(means)).tolist(), strict=True)
        averages = [make_average(method, site.kind, m, v, n, rate) for m, v, n in rows]
        return cls(site, method, mean, var, averages)

    @property
    def batches(self) -> int:
        """Calls of the norm that were measured."""
        return sum(average.batches for average in self.averages)

    def add(self, domain: int | None, reading: Reading) -> None:
        """One more call.

        Raises:
            DataError: torch.nn's rules have no variance for a single element.
        """
        count = reading.moments.count
        if self.method != "population" and self.site.kind == "batch" and bool((count == 1).any()):
            raise DataError(
                "A batch has one element a channel, which has no variance; nothing was changed",
                received=f"such a batch at {self.site.name!r} with method={self.method!r}",
                expected="at least 2 elements a channel in each batch",
                remedy='Use larger batches, or method="population", which counts elements.',
            )
        self.averages[domain or 0].add(reading)

    def values(self) -> tuple[Tensor, Tensor]:
        """What the running statistics become; where nothing was seen, what they were."""
        seen = torch.stack([a.elements for a in self.averages]).view_as(self.mean) > 0
        mean = torch.stack([a.mean for a in self.averages]).view_as(self.mean)
        var = torch.stack([a.var for a in self.averages]).view_as(self.var)
        return torch.where(seen, mean, self.mean), torch.where(seen, var, self.var)

    def correct(self) -> None:
        """Let the layer normalize with what it will have."""
        for name, new in zip(("running_mean", "running_var"), self.values(), strict=True):
            own = slot(self.site.module, name)
            own[name] = like(new, own[name])

    def changes(self, alone: bool) -> Iterator[Change]:
        """What is to be written; nothing for a domain, or a layer, without data."""
        for number, average in enumerate(self.averages):
            if average.batches:
                yield self._change(number if self.mean.dim() > 1 else None, average, alone)

    def _change(self, domain: int | None, average: Average, alone: bool) -> Change:
        """
        Raises:
            NonFiniteError: the buffers cannot hold the result.
        """
        site, module = self.site, self.site.module
        olds, news, writes = [], [], []
        for stored, old, new in zip(
            (site.mean, site.var), (self.mean, self.var), self.values(), strict=True
        ):
            assert stored is not None
            stored, old, new = (t if domain is None else t[domain] for t in (stored, old, new))
            kept = new.to(stored.dtype)
            if not bool((torch.isfinite(kept) | (average.elements == 0)).all()):
                raise NonFiniteError(
                    "A layer's buffers cannot hold its statistics; nothing was changed",
                    received=f"values up to {float(new.abs().max()):.3g} at {site.name!r}",
                    expected=f"at most {torch.finfo(stored.dtype).max:.3g}, in {stored.dtype}",
                    remedy="Keep norms in float32.",
                )
            olds.append(old)
            news.append(kept.to(old))
            writes.append((stored, kept))
        counts = {"num_elements_tracked": average.elements.round()}
        if site.kind == "batch":  # torch.nn's instance norms do not count
            counts["num_batches_tracked"] = torch.tensor(average.batches)
        for name, count in counts.items():
            buffer = module._buffers.get(name)
            if buffer is not None:
                buffer = buffer if domain is None else buffer[domain]
                going_on = buffer if self.method == "ema" else torch.zeros_like(buffer)
                writes.append((buffer, going_on + count.to(buffer)))
        worst, divergence = distances(olds, news, site.eps or 0.0)
        shift = Shift(
            site.name, olds[0].tolist(), olds[1].tolist(), news[0].tolist(), news[1].tolist(),
            worst, divergence, int(average.elements.max()), average.batches, domain, self.note,
        )  # fmt: skip
        return Change(module, writes, shift, alone)


@dataclass(frozen=True, eq=False)
class Change:
    """What one layer, or one domain of it, becomes: buffers (or views of them) and new values."""

    module: Any
    writes: Sequence[tuple[Tensor, Tensor]]
    shift: Shift
    alone: bool

    def settle(self) -> None:
        """Tell a layer that counts elements what its ranks have in common from now on."""
        if hasattr(self.module, "common_statistics"):
            counts = "num_elements_tracked" in self.module._buffers and not self.alone
            self.module.common_statistics = self.module.running_statistics() if counts else None


def write_all(changes: Sequence[Change]) -> None:
    """Write every change, or none if something interrupts."""
    writes = [write for change in changes for write in change.writes]
    modules = {id(c.module): c.module for c in changes if hasattr(c.module, "common_statistics")}
    common = [(module, module.common_statistics) for module in modules.values()]
    done: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        try:
            for stored, new in writes:
                old = stored.clone()
                done.append((stored, old))
                stored.copy_(new)
            for change in changes:
                change.settle()
        except BaseException:
            for stored, old in reversed(done):
                stored.copy_(old)
            for module, known in common:
                module.common_statistics = known
            raise
