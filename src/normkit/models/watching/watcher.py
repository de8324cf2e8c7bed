"""watch(): looks at a model every few steps of its training, and leaves it alone in between."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normkit.errors import ModelError, OptionError
from normkit.models.sites import find_sites
from normkit.models.watching.ears import Ear, Updates, zero_gains
from normkit.models.watching.records import LayerState, Notice, Record
from normkit.models.watching.sinks import Sink, sinks_for
from normkit.models.wrappers import plain_model

__all__ = ["Watch", "watch"]


def watch(
    model: nn.Module,
    *,
    every: int = 50,
    to: Any = None,
    rules: bool | Iterable[str] = True,
    optimizer: Any = None,
    show: bool | None = None,
    start: int = 0,
) -> Watch:
    """Record a model's norms and updates every few steps of its training.

    A context manager; call ``step()`` after each step of the optimizer. What is recorded, layer by
    layer, is in :class:`LayerState`. Between records the model has no hooks and nothing is
    computed; in a step that is recorded, training computes bit for bit what it would without.

    Norms inside parts that torch.compile has compiled cannot be heard: of these the record has
    updates, gains and findings, and lists them as unheard. With gradient accumulation a record is
    of all micro-batches of its step. Of several ranks the first watches and writes.
    :class:`LightningCallback` and :class:`KerasCallback` do the same for trainers.

    Args:
        model: also wrapped for data parallelism or compiled.
        every: steps from one record to the next.
        to: a folder, for TensorBoard's event files and ``records.jsonl``; a file that ends in
            ``.jsonl``; sinks; or None, when :attr:`Watch.last` has the newest record.
            :func:`read_records` reads JSON lines back.
        rules: whether the auditor's rules that need weights and configuration only run too; or
            their names.
        optimizer: for these rules.
        show: records on standard error; by default where that is a terminal.
        start: steps done before, of a training that goes on.

    Raises:
        ModelError: that is no model.
        OptionError: an option has no such value.
        FileError: nothing can be written there.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    >>> with watch(net, every=10) as w:
    ...     for _ in range(20):
    ...         loss = net(torch.randn(32, 4)).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         _ = w.step(loss=loss)
    >>> w.last.step, sorted(w.last.layers), w.last.layers["1"].channels
    (20, ['0', '1', '3'], 8)
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "That is no model to watch",
            received=type(model).__name__,
            expected="a torch.nn.Module",
            remedy="Pass the model that is trained.",
        )
    for name, value, least in (("every", every, 1), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(
                f"{name}= is no number of steps",
                received=repr(value),
                expected=f"a whole number of at least {least}",
                remedy="watch(model, every=50) records each fiftieth step.",
            )
    return Watch(model, every, to, _chosen(rules), optimizer, show, start)


def _chosen(rules: bool | Iterable[str]) -> list[Any]:
    """The auditor's rules that are cheap: those that look at weights and configuration."""
    if rules is False:
        return []
    from normkit.models.auditing.rules import RULES

    cheap = {r.name: r for r in RULES if all(n.split(".")[0] in _CHEAP for n in r.needs)}
    if rules is True:
        return list(cheap.values())
    names = [rules] if isinstance(rules, str) else list(rules)
    unknown = [name for name in names if name not in cheap]
    if unknown:
        raise OptionError(
            "There is no such rule to watch with",
            received=", ".join(map(repr, unknown)),
            expected=", ".join(cheap),
            remedy="audit() has those that need data or the model's graph.",
        )
    return [cheap[name] for name in names]


_CHEAP = ("weights", "configuration")


class Watch:
    """What :func:`watch` gives.

    Attributes:
        steps: so far.
        last: the newest record; None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int,
        to: Any,
        rules: list[Any],
        optimizer: Any,
        show: bool | None,
        start: int,
    ) -> None:
        self.steps, self.last = start, None
        self.optimizer = optimizer
        self._model, self._every, self._rules = plain_model(model), every, rules
        self._to, self._show = to, show
        self._sinks: list[Sink] = []
        self._ears: list[Ear] = []
        self._updates: Updates | None = None  # only while it watches
        self._entered = self._stepped = False

    last: Record | None

    def __enter__(self) -> Watch:
        self._entered = True
        if self._updates is None and _is_first():
            self._sinks = sinks_for(self._to, self._show)
            self._updates = Updates(self._model)
            self._listen_if_due()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if kind is None and self._updates is not None and not self._stepped:
            words = "watch() recorded nothing: call w.step() after each step of the optimizer"
            warnings.warn(f"{words}, where with watch(model) as w:", stacklevel=2)
        self.close()

    def close(self) -> None:
        """End it, as the end of the ``with`` block does."""
        self._close_ears()
        self._updates, self._entered = None, False
        with contextlib.ExitStack() as stack:  # one that fails keeps no other open
            while self._sinks:
                stack.callback(self._sinks.pop().close)

    def step(self, **scalars: Any) -> Record | None:
        """One step of training is done.

        Args:
            scalars: what to record with it: ``loss=``, ``lr=``; numbers, or tensors of one element,
                which are looked at only in steps that are recorded.

        Returns:
            The record, if this step is recorded here.

        Raises:
            OptionError: outside the ``with`` block.
        """
        if not self._entered:
            raise OptionError(
                "Nobody watches",
                received="step() outside the with block",
                expected="with watch(model) as w: ... w.step()",
                remedy="Begin it before the first batch.",
            )
        self.steps, self._stepped = self.steps + 1, True
        record = None
        if self._updates is not None and self.steps % self._every == 0:
            record = self.last = self._record(scalars)
            self._close_ears()
            self._deliver(record)
        self._listen_if_due()
        return record

    # --- listening ------------------------------------------------------------------------------

    def _listen_if_due(self) -> None:
        if self._updates is None or (self.steps + 1) % self._every:
            return
        self._close_ears()
        for site in find_sites(self._model):
            ear = Ear(site.name, site.module, self._model)
            self._ears.append(ear)
            ear.open()

    def _close_ears(self) -> None:
        for ear in self._ears:
            ear.close()
        self._ears = []

    # --- recording ------------------------------------------------------------------------------

    def _record(self, scalars: dict[str, Any]) -> Record:
        assert self._updates is not None
        sites = {site.name: site for site in find_sites(self._model)}
        heard = {ear.name: ear.state() for ear in self._ears}
        ratios = self._updates.ratios()
        order = [n for n, _ in self._model.named_modules() if n in sites or n in ratios]
        layers = {}
        for name in order:
            fields = dict(heard.get(name, {}))
            if name in sites:
                site = sites[name]
                fields |= {"zero_gain": zero_gains(site), "channels": site.channels}
            layers[name] = LayerState(update=ratios.get(name), **fields)
        unheard = tuple(ear.name for ear in self._ears if not ear.heard)
        values = {name: _number(value) for name, value in scalars.items()}
        return Record(self.steps, time.time(), values, layers, self._findings(sites), unheard)

    def _findings(self, sites: dict[str, Any]) -> tuple[Notice, ...]:
        tensors = self._model.state_dict(keep_vars=True)
        if not self._rules or any(hasattr(t, "to_local") for t in tensors.values()):
            return ()  # of a sharded model no rank has the weights
        from normkit.models.auditing.evidence import Configuration, Evidence
        from normkit.models.auditing.running import run_rules

        configuration = Configuration(optimizer=self.optimizer)
        evidence = Evidence(list(sites.values()), dict(tensors), configuration=configuration)
        with torch.no_grad():
            found, _, _ = run_rules(self._rules, evidence)
        return tuple(Notice(f.rule, f.severity, f.site, f.measured, f.repair) for f in found)

    def _deliver(self, record: Record) -> None:
        """Hand a record to all sinks; one that fails is dropped, for training is worth more."""
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Exception as error:
                self._sinks.remove(sink)
                said = f"{type(error).__name__}: {error}"
                words = f"watch() writes no more to {type(sink).__name__} after {said}"
                warnings.warn(words, stacklevel=3)


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


def _is_first() -> bool:
    """Whether this process is the one that watches."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
