"""Batch norm whose statistics are those of all ranks of a process group."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from normkit.errors import OptionError
from normkit.moments import Moments
from normkit.torch.calls import Plan
from normkit.torch.distributed import Line, RankReducer
from normkit.torch.ghosts import Span, smallest_set
from normkit.torch.layers.batch import BatchLayer
from normkit.torch.ranks import Place, group_of, ranks_of

Tensor = torch.Tensor
_BatchNorm = nn.modules.batchnorm._BatchNorm


class SyncBatchNorm(BatchLayer, nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` on normkit's kernels: (N, C, ...) input, on any device.

    In training with an initialized process group, statistics are those of all ranks' samples, with
    any number of samples on each, none included; otherwise it is plain batch norm. Forward,
    backward and second derivatives are those of one process with the ranks' batches one after the
    other; gradients of gamma and beta are this rank's share of them.

    Args:
        num_features, eps, momentum, affine, track_running_stats, process_group: torch.nn's.
        ghost, renorm, on_nonfinite, ...: as in :class:`BatchNorm2d`. Ghost batches are consecutive
            samples of the whole batch in rank order, also across ranks.

    Raises:
        SyncError: when called, a rank is at another layer or does not come within the group's
            timeout; it says which. Not under ``torch.compile``, where PyTorch waits by itself.
        ValueError: a single value per channel on all ranks together.

    >>> import torch
    >>> SyncBatchNorm(3, ghost=16)
    SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, ..., ghost=16)
    """

    place: Place
    process_group: Any

    def _prepare(self) -> None:
        super()._prepare()
        self.place = Place()
        _admit_to_ddp()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        _admit_to_ddp()

    def _torch_forward(self, input: Tensor) -> Tensor:
        # Not torch.nn.SyncBatchNorm's, which refuses the CPU.
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        return _BatchNorm.forward(self, input)

    def _group(self) -> Any:
        """The group that this forward takes statistics with, if it does."""
        if not self.training or self._uses_running():
            return None
        return group_of(self.process_group)

    def _has_company(self) -> bool:
        return self._group() is not None

    def _plainly(
        self, input: Tensor, residual: Any, activation: str | None, input_activation: str | None
    ) -> Tensor | None:
        if self._has_company():
            return None
        return super()._plainly(input, residual, activation, input_activation)

    def _call(
        self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any, domain: int | None
    ) -> Tensor:
        group = self._group()
        if group is None:
            return super()._call(plan, x, weight, bias, residual, domain)
        reducer = self._meet(group, plan, x, domain)
        plan, span = replace(plan, reducer=reducer), reducer.span
        if span is None or not span.moved:
            return super()._call(plan, x, weight, bias, residual, domain)
        # Errors about arguments should show their shapes as the caller knows them.
        plan.call(x, weight, bias, residual, transparent=True)
        plan = span.pad_plan(plan, x)
        weight, bias, residual = (span.pad_rows(values) for values in (weight, bias, residual))
        return span.cut(super()._call(plan, span.pad(x), weight, bias, residual, domain))

    # --- with the other ranks -------------------------------------------------------------------

    def _meet(self, group: Any, plan: Plan, x: Tensor, domain: int | None) -> RankReducer:
        """Find the other ranks at this layer, and what they bring."""
        if torch.compiler.is_compiling():
            return self._meet_traced(group, x)
        samples, ghost = x.shape[0], self.options.ghost
        ranks = ranks_of(group)
        header = self.place.next_header(
            ranks,
            type(self).__name__,
            channels=self.num_features,
            ghost=ghost or 0,
            domain=-1 if domain is None else domain,
            samples=samples,
            positions=x[0, 0].numel() if samples and x.dim() > 2 else 1,
            masked=plan.mask is not None or plan.lengths is not None,
        )
        headers = ranks.meet(header, x.device)
        self.place.count()
        brought = [(h.samples, h.positions) for h in headers]
        smallest = smallest_set(brought, ghost or 0)
        if (
            self.options.on_small_batch == "error"
            and smallest < 2
            and any(n * p for n, p in brought)
        ):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size "
                f"{tuple(x.shape)}{self._ghost_words()} on one of {ranks.size} ranks, which have "
                f"{[n for n, _ in brought]} samples. {type(self).__name__}(..., "
                'on_small_batch="running") normalizes such sets with the running statistics.'
            )
        line = Line(group.group_name, ranks.size, ranks.rank, ranks, header)
        span = None
        if ghost is not None:
            span = Span(ghost, samples, sum(n for n, _ in brought[: ranks.rank]))
        return RankReducer(line, span, smallest, any(h.masked for h in headers))

    def _meet_traced(self, group: Any, x: Tensor) -> RankReducer:
        """The same for a compiler, which cannot look at a header."""
        ghost = self.options.ghost
        size, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        line = Line(group.group_name, size, rank)
        if ghost is None:
            return RankReducer(line)
        own = torch.full((1,), x.shape[0], dtype=torch.int64, device=x.device)
        return RankReducer(line, Span(ghost, x.shape[0], line.gather(own)[:rank].sum()))

    def _small_sets(self, plan: Plan, x: Tensor, domain: int | None) -> Any:
        reducer = plan.reducer
        if not isinstance(reducer, RankReducer):
            return super()._small_sets(plan, x, domain)
        # Decided by what all ranks have: they must go the same way.
        if self.options.on_small_batch == "error" or (reducer.smallest > 1 and not reducer.masked):
            return None
        return super()._small_sets(plan, x, domain)

    def _recorded(self, plan: Plan, moments: Moments) -> Moments:
        if isinstance(plan.reducer, RankReducer) and plan.reducer.span is not None:
            return plan.reducer.whole(moments)
        return super()._recorded(plan, moments)

    # --- conversion -----------------------------------------------------------------------------

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> Any:
        """A model with all its batch norms synchronized, torch.nn's and normkit's.

        Args:
            module: a model, whose children are replaced in place, or a single batch norm.
            process_group: of the new layers; layers that are synchronized already keep theirs
                where this is None.

        Returns:
            ``module``; for a batch norm itself a new layer that shares its parameters, buffers and
            hooks, and has its options and mode. A layer that is used in several places stays one.

        Raises:
            OptionError: a lazy layer, which does not know its channels yet.

        >>> from torch import nn
        >>> net = SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
        >>> net, net[0].process_group is None
        (Sequential(
          (0): SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, ...)
        ), True)
        """
        return _convert(cls, module, process_group, {})


@cache
def _admit_to_ddp() -> None:
    """Let DistributedDataParallel take :class:`SyncBatchNorm` on the CPU.

    It refuses every ``torch.nn.SyncBatchNorm`` there, also subclasses that work on the CPU, and has
    no other way in. So its check is told to look at all other layers only, once the first of ours
    is made, and not by an import.
    """
    parallel: Any = nn.parallel.DistributedDataParallel
    check = getattr(parallel, "_passing_sync_batchnorm_handle", None)
    if check is None:
        return

    @wraps(check)
    def check_others(self: Any, module: nn.Module) -> None:
        others = [m for m in module.modules() if not isinstance(m, SyncBatchNorm)]
        check(self, SimpleNamespace(modules=lambda: others))

    parallel._passing_sync_batchnorm_handle = check_others


def _is_its_own_kind(module: nn.Module) -> bool:
    """Whether a batch norm does something that a synchronized one would not."""
    normkit = isinstance(module, BatchLayer)
    return (
        normkit
        and type(module).__module__ != "normkit.torch.layers.batch"
        and not isinstance(module, SyncBatchNorm)
    )


def _convert(cls: type[SyncBatchNorm], module: nn.Module, group: Any, done: dict[int, Any]) -> Any:
    found = done.get(id(module))
    if found is not None:
        return found
    new: Any = module
    if isinstance(module, _BatchNorm) and not _is_its_own_kind(module):
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise OptionError(
                "A lazy layer cannot be synchronized yet",
                received=type(module).__name__,
                expected="a layer that knows its channels",
                remedy="Run an input through the model first.",
            )
        new = cls.__new__(cls)
        # Containers are copied, so that the old layer stays as it is; what is in them is shared.
        shared = module.__dict__.items()
        new.__dict__.update((k, copy(v) if isinstance(v, dict) else v) for k, v in shared)
        new.process_group = group or getattr(module, "process_group", None)
        new._prepare()
    done[id(module)] = new
    for name, child in module._modules.items():  # named_children() would leave out repeated ones
        if child is not None:
            new._modules[name] = _convert(cls, child, group, done)
    return new
