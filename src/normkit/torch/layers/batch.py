"""Batch norm layers: torch.nn's, and with options ghost, renorm, mean-only, per domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from normkit.coefficients import Renorm
from normkit.errors import OptionError, ShapeError
from normkit.moments import Moments
from normkit.norms import Norm
from normkit.torch import native
from normkit.torch.calls import Plan, Reducer, run_by_operators
from normkit.torch.layers.base import check_channels, promotes
from normkit.torch.layers.running import RunningLayer
from normkit.torch.options import BatchOptions, RenormSchedule
from normkit.torch.statistics import RunningStatistics, merge_sets
from normkit.torch.transforms import is_transformed

Tensor = torch.Tensor
_BatchNorm = nn.modules.batchnorm._BatchNorm

_cached_norm = lru_cache(maxsize=64)(Norm)
_PLAIN = BatchOptions()


class BatchLayer(RunningLayer, _BatchNorm):
    """torch.nn's batch norm with :class:`normkit.torch.options.BatchOptions` as keywords."""

    #: What all ranks had in common when they last merged their statistics.
    common_statistics: RunningStatistics | None = None

    def __init__(
        self,
        *args: Any,
        ghost: int | None = None,
        renorm: bool | RenormSchedule | None = None,
        mean_only: bool = False,
        running: str = "ema",
        on_nonfinite: str = "propagate",
        on_small_batch: str = "error",
        domains: int | None = None,
        **kwargs: Any,
    ) -> None:
        options = BatchOptions(
            ghost, renorm, mean_only, running, on_nonfinite, on_small_batch, domains
        )  # fmt: skip
        super().__init__(*args, **kwargs)
        options.check_tracking(self.track_running_stats)
        self.options = _PLAIN if options == _PLAIN else options  # quick to compare
        self._prepare()

    def _prepare(self) -> None:
        super()._prepare()
        self._make_option_buffers()

    def _make_option_buffers(self) -> None:
        domains, mean = self.options.domains, self.running_mean
        if mean is None or nn.parameter.is_lazy(mean):
            return  # nothing to keep, or a lazy layer that comes back here
        if self.options.running == "population" and "num_elements_tracked" not in self._buffers:
            elements = torch.zeros(self.num_features, dtype=torch.int64, device=mean.device)
            self.register_buffer("num_elements_tracked", elements)
        if domains is not None and mean.dim() == 1:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                buffer = self._buffers[name]
                if buffer is not None:
                    self._buffers[name] = buffer.expand(domains, *buffer.shape).clone()
            if "num_elements_tracked" in self._buffers:
                elements = self.num_elements_tracked
                self._buffers["num_elements_tracked"] = elements.expand(domains, -1).clone()

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        if "num_elements_tracked" in self._buffers:
            self.num_elements_tracked.zero_()
            self.common_statistics = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # torch.nn counts no elements: its statistics serve until the first batch replaces them.
        if "num_elements_tracked" in self._buffers:
            missing = torch.zeros_like(self.num_elements_tracked)
            state_dict.setdefault(prefix + "num_elements_tracked", missing)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if "num_elements_tracked" in self._buffers:
            # As a rule all ranks load the same; sync_statistics() makes sure of it.
            self.common_statistics = self.running_statistics()

    def extra_repr(self) -> str:
        return super().extra_repr() + str(self.options)

    # --- forward --------------------------------------------------------------------------------

    def forward(
        self,
        input: Tensor,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str | None = None,
        input_activation: str | None = None,
        domain: int | Tensor | None = None,
    ) -> Tensor:
        """As in every layer; ``domain=`` is the number of the input's domain, or each sample's."""
        if promotes(input, residual, activation):
            y = self(
                input, mask=mask, lengths=lengths, weight=weight, bias=bias, domain=domain,
                input_activation=input_activation,
            )  # fmt: skip
            return native.finish(y, residual, activation)
        plain = mask is None and lengths is None and weight is None and bias is None
        if plain and domain is None:
            y = self._plainly(input, residual, activation, input_activation)
            if y is not None:
                return y
        self._check_domain(domain)
        plan = Plan(
            self._norm(input), 1, activation, mask, lengths, input_activation=input_activation
        )
        self._check_input_dim(input)
        check_channels(input, 1, self.num_features, type(self).__name__)
        if isinstance(domain, Tensor):
            return self._by_domains(plan, input, weight, bias, residual, domain)
        return self._call(plan, input, weight, bias, residual, domain)

    def _ordinary(self, input: Tensor, fused: bool) -> Tensor | None:
        if input.dim() < 2 or input.size(1) != self.num_features:
            return self._torch_forward(input)  # torch.nn has words for it
        if self.options is not _PLAIN and self.options != _PLAIN:
            return None
        if not self._suits_torch(input, fused):
            return None
        if self._uses_running():
            if self._is_constant(input):
                return self._by_constants(input)
            if self.training:  # frozen
                self._check_input_dim(input)
                return F.batch_norm(
                    input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0,
                    self.eps,
                )  # fmt: skip
        elif self._stands_apart():
            return self._torch_apart(F.batch_norm, input, input.numel() / input.shape[1])
        return self._torch_forward(input)

    def _is_constant(self, input: Tensor) -> bool:
        """Whether the input is not needed in backward, where torch.nn would keep it."""
        if not (torch.is_grad_enabled() and input.requires_grad) or is_transformed():
            return False
        return self.weight is None or not self.weight.requires_grad

    def _by_constants(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        return native.ConstantBatchNorm.apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.eps
        )

    def _norm(self, input: Tensor) -> Norm:  # noqa: ARG002
        options = self.options
        ghost = None if self._uses_running() else options.ghost
        make: Any = Norm if torch.compiler.is_compiling() else _cached_norm  # not traceable
        return make(samples=ghost or "all", scale=not options.mean_only, eps=self.eps)

    def _call(
        self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any, domain: int | None
    ) -> Tensor:
        """One call with the statistics of one domain."""
        if self._uses_running():
            state = self._state(domain)
            plan = replace(plan, statistics=(state.mean.clone(), state.var.clone()))
            return self._run(plan, x, weight, bias, residual)[0]
        if not x.numel() and plan.reducer is None:
            return self._run(plan, x, weight, bias, residual)[0]
        if self.options.renorm is not None:
            plan = replace(plan, renorm=self._renorm(self._reference(x, domain), x))
        small = self._small_sets(plan, x, domain)
        if small is not None:
            gamma, beta = self._affine(weight, bias)
            y, moments = run_by_operators(replace(plan, reducer=small), x, gamma, beta, residual)
            moments = small.original
        else:
            y, moments = self._run(plan, x, weight, bias, residual)
        if self._moves():
            self._record(self._recorded(plan, moments), domain, x.shape[0])
        return y

    def _recorded(self, plan: Plan, moments: Moments) -> Moments:  # noqa: ARG002 - ranks need it
        """What the running statistics see of the sets' moments: one set a channel."""
        return moments if moments.mean.dim() == 1 else merge_sets(moments)

    def _has_company(self) -> bool:
        """Whether this forward's statistics are taken together with other ranks'."""
        return False

    def _renorm(self, state: Any, x: Tensor) -> Renorm:
        """References and limits of renormalization after the batches seen so far."""
        schedule = self.options.renorm
        assert schedule is not None
        if torch.compiler.is_compiling():
            wide = torch.promote_types(state.mean.dtype, torch.float32)
            batches: Any = state.batches.to(wide)
        else:
            batches = int(state.batches)
        mean, var = state.mean, state.var
        ghost = self.options.ghost
        if ghost is not None:
            sets = -(-x.shape[0] // ghost)
            mean, var = mean.expand(sets, -1), var.expand(sets, -1)
        return Renorm(mean, var, *schedule.at(batches))

    # --- sets that are too small ----------------------------------------------------------------

    def _small_sets(self, plan: Plan, x: Tensor, domain: int | None) -> _SmallSets | None:
        """What stands in for the statistics of sets with a single element, if there are any."""
        smallest = self._smallest_set(x)
        if self.options.on_small_batch == "running":
            masked = plan.mask is not None or plan.lengths is not None
            if smallest < 2 or masked or plan.reducer is not None:
                state = self._reference(x, domain)
                return _SmallSets(state.mean, state.var, plan.reducer)
        elif smallest < 2 and self.training and plan.reducer is None:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size "
                f"{tuple(x.shape)}{self._ghost_words()}. {type(self).__name__}(..., "
                'on_small_batch="running") normalizes such sets with the running statistics.'
            )
        return None

    def _smallest_set(self, x: Tensor) -> int:
        samples, ghost = x.shape[0], self.options.ghost
        if ghost is not None:
            samples = samples % ghost or min(ghost, samples)
        return samples * (x[0, 0].numel() if x.dim() > 2 else 1)

    def _ghost_words(self) -> str:
        ghost = self.options.ghost
        return "" if ghost is None else f" with ghost batches of {ghost} samples"

    # --- one domain a sample --------------------------------------------------------------------

    def _by_domains(
        self, plan: Plan, x: Tensor, weight: Any, bias: Any, residual: Any, domain: Tensor
    ) -> Tensor:
        """Each domain's samples as a batch of their own."""
        if domain.shape != x.shape[:1]:
            raise ShapeError(
                "domain= does not fit the input",
                received=f"shape {tuple(domain.shape)} with input of shape {tuple(x.shape)}",
                expected=f"({x.shape[0]},), one a sample, or a number",
                remedy="Give every sample its domain.",
            )
        if plan.lengths is not None or plan.mask is not None:
            raise OptionError(
                "Masks and a domain for each sample do not go together",
                received="mask= or lengths= with a tensor domain=",
                expected="one of them",
                remedy="Call the layer once a domain, with domain=number.",
            )
        order = torch.argsort(domain, stable=True)
        sizes = torch.bincount(domain, minlength=self.options.domains or 1).tolist()
        parts, start = [], 0
        for number, size in enumerate(sizes):
            rows = order[start : start + size]
            start += size
            if size or self._has_company():  # other ranks may have samples of this domain
                gamma, beta, added = (_rows(values, rows, x) for values in (weight, bias, residual))
                parts.append(self._call(plan, x[rows], gamma, beta, added, number))
        return torch.cat(parts)[torch.argsort(order)] if parts else x.clone()


def _rows(values: Any, rows: Tensor, x: Tensor) -> Any:
    """A call's weight, bias or residual for some of the samples."""
    per_sample = values is not None and values.dim() > 1 and values.shape[0] == x.shape[0]
    return values[rows] if per_sample else values


@dataclass(eq=False)
class _SmallSets:
    """A reducer that puts running statistics where a set has fewer than two elements."""

    mean: Tensor
    var: Tensor
    inner: Reducer | None
    original: Any = None

    def moments(self, moments: Moments) -> Moments:
        if self.inner is not None:
            moments = self.inner.moments(moments)
        mean = moments.mean
        count = torch.as_tensor(moments.count, dtype=mean.dtype, device=mean.device)
        count = count.expand(mean.shape)
        small = count < 2
        none = torch.zeros_like(count)
        m2 = moments.m2
        # What is recorded: the sets that spoke for themselves.
        kept = torch.where(small, none, count).detach()
        self.original = Moments(kept, mean.detach(), m2.detach())
        mean = torch.where(small, self.mean.to(mean.dtype), mean)
        m2 = torch.where(small, 2 * self.var.to(m2.dtype), m2)
        return Moments(torch.where(small, none + 2, count), mean, m2)

    def sums(self, dz: Tensor, dzx: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("small sets are differentiated by PyTorch's operators")


class BatchNorm1d(BatchLayer, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` on normkit's kernels: (N, C) or (N, C, L) input.

    >>> import torch
    >>> layer = BatchNorm1d(3)
    >>> isinstance(layer, torch.nn.BatchNorm1d), tuple(layer.running_mean.shape)
    (True, (3,))
    >>> BatchNorm1d(3, ghost=16, running="population")
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, ..., ghost=16, running='population')
    """


class BatchNorm2d(BatchLayer, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` on normkit's kernels: (N, C, H, W) input, either memory format."""


class BatchNorm3d(BatchLayer, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` on normkit's kernels: (N, C, D, H, W) input."""


class _Lazy(BatchLayer):
    """A layer that learns its number of channels from the first input."""

    def initialize_parameters(self, input: Tensor) -> None:
        super().initialize_parameters(input)  # type: ignore[misc]
        self._make_option_buffers()


class LazyBatchNorm1d(_Lazy, nn.LazyBatchNorm1d):
    """``torch.nn.LazyBatchNorm1d``; becomes :class:`BatchNorm1d` at the first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, nn.LazyBatchNorm2d):
    """``torch.nn.LazyBatchNorm2d``; becomes :class:`BatchNorm2d` at the first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, nn.LazyBatchNorm3d):
    """``torch.nn.LazyBatchNorm3d``; becomes :class:`BatchNorm3d` at the first input."""

    cls_to_become = BatchNorm3d
