"""The ranks of a process group: collectives that end, and errors that say who was missing.

A collective that one rank does not join blocks all the others, and one that ranks join with tensors
of different sizes may do anything. So every exchange of statistics follows a header of fixed size
that says where its sender is; if the headers differ, all ranks raise. And nobody waits for longer
than the group's timeout: a rank whose collective fails sounds an alarm in the group's store, all
that hear it answer a roll call there, and whoever does not answer is named.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from normkit.errors import SyncError

__all__ = ["Header", "Place", "Ranks", "group_of", "ranks_of"]

Tensor = torch.Tensor

_SLICE = timedelta(seconds=0.5)  # between two looks for an alarm
_PAUSE = 0.05  # seconds between two looks for answers
_LONGEST_GRACE = 30.0  # seconds for an answer; a rank may be busy with other layers
_NAME_WORDS = 16  # of 8 bytes each
PHASES = (
    "forward", "backward", "backward through operators", "forward again for second derivatives",
    "second backward", "update of the running statistics", "sync_statistics", "recalibration",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Where a rank is, and what it brings there.

    Args:
        layer: name of the layer.
        phase: one of ``PHASES``.
        call: number of the layer's forward calls in this group, from 1.
        channels, ghost, domain: what must be the same on all ranks; 0 for no ghost, -1 for no
            domain.
        samples, positions, masked: what may differ.
    """

    layer: str
    phase: str = "forward"
    call: int = 0
    channels: int = 0
    ghost: int = 0
    domain: int = -1
    samples: int = 0
    positions: int = 0
    masked: bool = False

    def words(self) -> list[int]:
        """The header as numbers: first what must be the same."""
        place = [PHASES.index(self.phase), self.call, self.channels, self.ghost, self.domain]
        brought = [self.samples, self.positions, int(self.masked)]
        return [*_name_words(self.layer), *place, *brought]

    @classmethod
    def of(cls, words: list[int]) -> Header:
        """From the part of :meth:`words` that must be the same."""
        name = b"".join(w.to_bytes(8, "little", signed=True) for w in words[:_NAME_WORDS])
        layer = name.rstrip(b"\0").decode(errors="replace")
        phase, call, channels, ghost, domain = words[_NAME_WORDS:_COMPARED]
        return cls(layer, PHASES[phase], call, channels, ghost, domain)

    def __str__(self) -> str:
        call = f", call {self.call}" if self.call else ""
        size = f", {self.channels} channels" if self.channels else ""
        ghost = f", ghost batches of {self.ghost}" if self.ghost else ""
        domain = f", domain {self.domain}" if self.domain >= 0 else ""
        return f"{self.layer!r}, {self.phase}{call}{size}{ghost}{domain}"


_COMPARED = _NAME_WORDS + 5


@lru_cache(maxsize=4096)
def _name_words(name: str) -> tuple[int, ...]:
    """The end of a name, which tells one layer from another, in whole numbers."""
    raw = name.encode()[-8 * _NAME_WORDS :].ljust(8 * _NAME_WORDS, b"\0")
    pieces = (raw[i : i + 8] for i in range(0, len(raw), 8))
    return tuple(int.from_bytes(piece, "little", signed=True) for piece in pieces)


class Place:
    """A layer's name and the number of its calls, as the headers tell them."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.calls = 0
        self._number = 0
        self._ranks: Any = lambda: None

    def next_header(self, ranks: Ranks, kind: str, **rest: Any) -> Header:
        """The header of the next forward; count it with :meth:`count` once all have met."""
        if self._ranks() is not ranks:  # another group, or the same one made anew
            self._ranks, self.calls = weakref.ref(ranks), 0
            ranks.layers += 1
            self._number = ranks.layers
        name = self.name or f"{kind} no. {self._number} of those called"
        return Header(name, call=self.calls + 1, **rest)

    def count(self) -> None:
        """One more forward, which all ranks take part in."""
        self.calls += 1

    def __deepcopy__(self, memo: Any) -> Place:
        return Place(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (self.name,)


def group_of(process_group: Any) -> Any:
    """The group if it is one of several ranks that this process is among; else None."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if process_group is None else process_group
    return group if dist.get_world_size(group) > 1 else None  # -1 for a group of others


_made: Counter[str] = Counter()
_KNOWN: weakref.WeakKeyDictionary[Any, Ranks] = weakref.WeakKeyDictionary()


def ranks_of(group: Any) -> Ranks:
    """The one :class:`Ranks` of a process group."""
    found = _KNOWN.get(group)
    if found is None:
        found = _KNOWN[group] = Ranks(group)
    return found


#: Renamed in PyTorch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)


class Ranks:
    """A process group whose collectives end in a result or in a :class:`SyncError`."""

    def __init__(self, group: Any) -> None:
        self._group = weakref.ref(group)
        self.members = dist.get_process_group_ranks(group)
        self.size, self.rank = len(self.members), dist.get_rank(group)
        self.layers = 0  # that have been called without a name
        self._lost: tuple[int, ...] | None = None
        backends = dist.get_backend_config(group)
        self._headers_on_host = "cpu:" in backends or backends in ("gloo", "mpi")
        limit = _timeout(group, self._headers_on_host)
        self._grace = min(limit / 4, _LONGEST_GRACE)
        self._patience = limit - self._grace - 2 * _SLICE.total_seconds()
        # PyTorch has no public way to the store of a group.
        store = dist.distributed_c10d._get_default_store()
        # Groups are made and destroyed by all their ranks, so these count alike; an alarm of the
        # last group of this name must not be heard by the next.
        _made[group.group_name] += 1
        place = f"normkit/{group.group_name}/{_made[group.group_name]}"
        self._store = dist.distributed_c10d.PrefixStore(place, store)

    # --- what statistics need -------------------------------------------------------------------

    def meet(self, header: Header, device: Any) -> list[Header]:
        """Exchange headers; those of all ranks, in order.

        Raises:
            SyncError: a rank is elsewhere, or does not come.
        """
        if self._lost is not None:
            raise self._missing(header, self._lost)
        own = torch.tensor([header.words()], device=self.device_for(device))
        rows = self.gather(own, header, needed=True).view(self.size, -1).tolist()
        if any(row[:_COMPARED] != rows[0][:_COMPARED] for row in rows):
            raise self._apart(header, [Header.of(row) for row in rows])
        # Names are long to decode, and all the same.
        return [_brought(header, row) for row in rows]

    def device_for(self, device: Any) -> Any:
        """Where small tensors travel: on the host where the group can, else on ``device``."""
        return torch.device("cpu") if self._headers_on_host else device

    def gather(self, values: Tensor, header: Header, needed: bool = False) -> Tensor:
        """Values of all ranks, stacked in a new first axis."""
        values = values.contiguous()
        table = values.new_empty(self.size, *values.shape)
        flat = table.view(-1), values.view(-1)
        work = self._begin(header, _all_gather, *flat)
        self._finish(work, header, values.device, needed)
        return table

    def total(self, values: Tensor, header: Header) -> Tensor:
        """Sum of all ranks' values."""
        values = values.clone(memory_format=torch.contiguous_format)
        work = self._begin(header, dist.all_reduce, values)
        self._finish(work, header, values.device, False)
        return values

    # --- waiting --------------------------------------------------------------------------------

    def _begin(self, header: Header, collective: Any, *tensors: Tensor) -> Any:
        try:
            return collective(*tensors, group=self._group(), async_op=True)
        except RuntimeError as error:  # a connection that broke earlier
            raise self._missing(header, self._roll_call(header)) from error

    def _finish(self, work: Any, header: Header, device: Any, needed: bool) -> None:
        """Wait for a collective, or hear that it cannot end.

        On an accelerator, what the host does not need now is only queued behind it; if a rank dies
        after the headers, the backend's own watchdog ends the wait.
        """
        began = time.monotonic()
        queued = device.type != "cpu"
        while True:
            try:
                if not queued:
                    work.wait(_SLICE)
                elif needed:
                    _poll(work)
                else:
                    work.wait()
                return
            except RuntimeError as error:
                waited = time.monotonic() - began
                if not work.is_completed() and waited < self._patience and not self._alarmed():
                    continue
                raise self._missing(header, self._roll_call(header)) from error

    def _alarmed(self) -> bool:
        """Whether a rank has given up; also where the store is gone with the rank that kept it."""
        try:
            return self._store.check(["alarm"])
        except RuntimeError:
            return True

    def _roll_call(self, header: Header) -> tuple[int, ...]:
        """Tell the others that the group has failed; who does not answer that he is alive?"""
        absent = [member for member in self.members if member != self.members[self.rank]]
        try:
            self._store.set("alarm", "1")
            self._store.set(f"here/{self.members[self.rank]}", str(header))
            end = time.monotonic() + self._grace
            while absent and time.monotonic() < end:
                absent = [m for m in absent if not self._store.check([f"here/{m}"])]
                if absent:
                    time.sleep(_PAUSE)
        except RuntimeError:
            # The store went with its keeper, the first rank of the job unless a launcher keeps it.
            # Before anyone has answered, that is all there is to know.
            if len(absent) == self.size - 1 and 0 in absent:
                absent = [0]
        self._lost = tuple(absent)
        return self._lost

    # --- errors ---------------------------------------------------------------------------------

    def _missing(self, header: Header, lost: tuple[int, ...]) -> SyncError:
        who = f"no answer from {_words(lost)}" if lost else "answers from all ranks, too late"
        return SyncError(
            f"Statistics cannot be taken together at layer {header.layer!r}",
            received=f"{who}; {_words([self.members[self.rank]])} waited at {header}",
            expected=f"all ranks of the group, {_words(self.members)}",
            remedy="See the missing ranks' logs. The process group cannot be used any longer: end "
            "the job, or destroy the group and make a new one.",
            layer=header.layer,
            ranks=lost,
        )

    def _apart(self, header: Header, places: list[Header]) -> SyncError:
        usual = Counter(places).most_common(1)[0][0]  # the first of equally many
        strays = tuple(m for m, p in zip(self.members, places, strict=True) if p != usual)
        found: dict[Header, list[int]] = {place: [] for place in places}
        for member, place in zip(self.members, places, strict=True):
            found[place].append(member)
        return SyncError(
            f"Ranks are at different places: {_words(strays)} not at layer {usual.layer!r}",
            received="; ".join(f"{_words(who)} at {place}" for place, who in found.items()),
            expected="the same layer, call and phase on all ranks",
            remedy="All ranks must call the same synchronized layers in the same order, empty "
            "batches included; no statistics were exchanged, and the group can still be used.",
            layer=header.layer,
            ranks=strays,
        )


def _brought(header: Header, row: list[int]) -> Header:
    samples, positions, masked = row[_COMPARED:]
    return replace(header, samples=samples, positions=positions, masked=bool(masked))


def _words(members: Iterable[int]) -> str:
    numbers = [str(member) for member in members]
    return f"rank{'' if len(numbers) == 1 else 's'} {', '.join(numbers)}"


def _poll(work: Any) -> None:
    """Wait on the host for what an accelerator does; RuntimeError after a slice, as of ``wait``."""
    end = time.monotonic() + _SLICE.total_seconds()
    while not work.is_completed():
        if time.monotonic() > end:
            raise RuntimeError("timed out")
        time.sleep(2e-5)
    work.wait()


def _timeout(group: Any, host: bool) -> float:
    """Seconds after which a collective of the group fails, where PyTorch tells."""
    with contextlib.suppress(AttributeError, RuntimeError):
        backend = group._get_backend(torch.device("cpu" if host else "cuda"))
        return backend.options._timeout.total_seconds()
    return dist.default_pg_timeout.total_seconds()
