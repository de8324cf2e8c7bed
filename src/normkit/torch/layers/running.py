"""Layers that keep running statistics: which statistics a call uses, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from normkit.errors import OptionError
from normkit.moments import Moments
from normkit.torch.layers.base import KernelLayer
from normkit.torch.options import BatchOptions, check_eps, check_momentum
from normkit.torch.statistics import RunningStatistics, Tracker, advance, is_acceptable
from normkit.torch.transforms import is_recomputation, is_transformed, snapshot

Tensor = torch.Tensor
_PLAIN = BatchOptions()
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
#: Elements by which a batch is known again.
_FEW = 32


class RunningLayer(KernelLayer):
    """Running statistics as buffers, moved by batches unless held, frozen or recomputed."""

    options = _PLAIN
    #: Set by :func:`normkit.torch.freeze`: use the running statistics in training too.
    statistics_frozen = False
    #: torch.nn's instance norms do not, and take a momentum of None for 0.
    _counts_batches = True
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    num_elements_tracked: Tensor
    track_running_stats: bool
    momentum: float | None
    eps: float
    _check_input_dim: Any

    def _prepare(self) -> None:
        check_eps(self.eps, type(self).__name__)
        check_momentum(self.momentum)
        self.tracker = Tracker()

    def _uses_running(self) -> bool:
        """Whether the running statistics normalize, rather than the input's own."""
        return (not self.training or self.statistics_frozen) and self.running_mean is not None

    def _tracks(self) -> bool:
        """Whether torch.nn's forward would move the running statistics."""
        return self.training and self.track_running_stats and self.running_mean is not None

    def _moves(self) -> bool:
        """Whether this forward's batch counts in the running statistics."""
        return self._tracks() and not self.statistics_frozen and not is_recomputation()

    def _stands_apart(self) -> bool:
        """Whether torch.nn's own forward would move the running statistics when it should not.

        It would also ask for the number of batches, which a compiler does not know yet.
        """
        if not self._tracks():
            return False
        unknown = self.momentum is None and torch.compiler.is_compiling()
        return self.tracker.holding or unknown or is_recomputation()

    def _torch_apart(self, function: Any, input: Tensor, count: float) -> Tensor:
        """PyTorch's operator on copies of the running statistics.

        What it saves for backward is what torch.nn's forward saves, which checkpointing checks.
        """
        self._check_input_dim(input)
        # Not the buffers' values: where these are NaN, momentum 1 would hand them on.
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        # Momentum 1 leaves the batch's own statistics in them.
        y = function(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        if self._moves() and input.numel():
            batch = Moments(count, mean, var * max(count - 1.0, 1.0))
            self._record(batch, None, input.shape[0])
        return y

    def reset_running_stats(self) -> None:
        """As in torch.nn; what is held is forgotten too."""
        super().reset_running_stats()  # type: ignore[misc]
        if "tracker" in self.__dict__:
            self.tracker.forget()

    # --- buffers as a value ---------------------------------------------------------------------

    def _state(self, domain: int | None) -> RunningStatistics:
        """The buffers of one domain, or of the layer; views, not copies."""
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked)
        elements = getattr(self, "num_elements_tracked", None)
        if domain is None:
            return RunningStatistics(*buffers, elements)
        rows: list[Any] = [None if b is None else b[domain] for b in (*buffers, elements)]
        return RunningStatistics(*rows)

    def running_statistics(self, domain: int | None = None) -> RunningStatistics:
        """A copy of the running statistics as a value for the pure functions."""
        state: list[Any] = [None if t is None else t.clone() for t in self._state(domain)]
        return RunningStatistics(*state)

    def _reference(self, x: Tensor, domain: int | None) -> RunningStatistics:
        """A copy of the running statistics for a batch that is normalized with them and moves them.

        As they were when the batch came by first: activation checkpointing brings it again in
        backward, when they have moved on.
        """
        key = -1 if domain is None else domain
        if not is_transformed():
            step = max(x.numel() // _FEW, 1)
            few = x.detach().reshape(-1)[::step].clone()
        if is_recomputation():
            for known, seen, state in reversed(self.tracker.before):
                if known == key and torch.equal(seen, few):
                    return state
        copies: list[Any] = [None if t is None else snapshot(t) for t in self._state(domain)]
        state = RunningStatistics(*copies)
        if not is_transformed():
            self.tracker.before.append((key, few, state))
        return state

    def _record(self, batch: Moments, domain: int | None, samples: int) -> None:
        """A batch's moments, one set a channel, go where they belong."""
        if self.tracker.holding:
            if is_acceptable(batch, self.options.on_nonfinite):
                averaged = None if self._counts_batches else samples
                self.tracker.hold(-1 if domain is None else domain, batch, averaged)
        elif self._is_simple(batch) and domain is None:
            with torch.no_grad():
                self.running_mean.lerp_(batch.mean.to(self.running_mean.dtype), self.momentum)
                var = batch.population_var.to(self.running_var.dtype)
                self.running_var.lerp_(var, self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            self._advanced(batch, domain)()

    def _is_simple(self, batch: Moments) -> bool:
        """Whether torch.nn's rule applies, which needs no copies: 13 µs less a call."""
        return (
            (self.options is _PLAIN or self.options == _PLAIN)
            and self._counts_batches
            and self.momentum is not None
            and self.num_batches_tracked is not None
            and isinstance(batch.count, float)
            and batch.count >= 1
        )

    def _advanced(self, batch: Moments, domain: int | None) -> Callable[[], None]:
        """Work out the next statistics; the function returned writes them."""
        with torch.no_grad():
            state: Any = self._state(domain)
            if state.batches is None:  # from before torch.nn counted them
                state = state._replace(batches=torch.zeros((), dtype=torch.int64))
            options, momentum = self.options, self.momentum
            if not self._counts_batches:
                momentum = momentum or 0.0
            new = advance(state, batch, options.running, momentum, options.on_nonfinite)
            if not self._counts_batches:
                new = new._replace(batches=state.batches)
        return partial(_write, state, new)

    def pending_steps(self) -> list[Callable[[], None]]:
        """What a commit has to do."""
        pending = self.tracker.pending.items()
        return [self._advanced(batch, None if d < 0 else d) for d, batch in pending]

    # --- domains --------------------------------------------------------------------------------

    def _check_domain(self, domain: Any) -> None:
        domains = self.options.domains
        if domains is None:
            if domain is not None:
                raise OptionError(
                    "domain= was given to a layer without domains",
                    received=f"domain={domain!r}",
                    expected="no domain",
                    remedy="Make the layer with domains=, the number of domains.",
                )
            return
        if isinstance(domain, int) and 0 <= domain < domains:
            return
        whole = isinstance(domain, Tensor) and domain.dtype in _WHOLE
        if not whole or not bool(((domain >= 0) & (domain < domains)).all()):
            raise OptionError(
                "No such domain",
                received=f"domain={domain!r}",
                expected=f"0 to {domains - 1}, one number or a tensor with one for each sample",
                remedy="A layer made with domains= needs domain= in every call.",
            )


def _write(state: RunningStatistics, new: RunningStatistics) -> None:
    with torch.no_grad():
        for buffer, value in zip(state, new, strict=True):
            if buffer is not None and value is not None and value is not buffer:
                buffer.copy_(value)
