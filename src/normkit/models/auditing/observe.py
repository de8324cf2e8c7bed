"""One pass over the data: what every norm sees, and what the model does, in memory of O(channels).

Each batch goes through the model in eval mode and, where there are batch norms, a second time with
these on the batch's own statistics: as in training, but for dropout.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normkit.errors import DataError
from normkit.models.auditing.evidence import Accuracy, Labels, Study
from normkit.models.auditing.listener import Listener
from normkit.models.auditing.onnx_models import OnnxModel
from normkit.models.batches import (
    Batch,
    Forward,
    batches_of,
    call,
    count_of,
    example_batch,
    fitting,
)
from normkit.models.measuring.undisturbed import undisturbed
from normkit.models.progress import track
from normkit.models.sites import NormSite
from normkit.words import counted

__all__ = ["observe", "shapes_of"]

Tensor = torch.Tensor
#: Batches with fewer samples say too little about what batch statistics do.
SMALLEST = 8


def observe(
    model: nn.Module,
    sites: Sequence[NormSite],
    data: Any,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> tuple[Study, dict[str, tuple[int, ...]]]:
    """Run the model over the data, and leave it as it was.

    Args:
        data: what :func:`normkit.models.batches.batches_of` takes, or a dictionary of such by
            domain. A batch that is a dictionary may name its ``"domain"``: of all its samples, or
            of each.

    Returns:
        the study, and by site the shape of its first input.

    Raises:
        DataError: there is no batch, or the model does not take it.
    """
    training = model.training
    with _running(model):
        listeners = [Listener(site) for site in sites if site.module is not None]
        handles = [handle for listener in listeners for handle in listener.attach()]
        try:
            run = _Pass(model, listeners, forward, training)
            for domain, batch in track(
                _batches(model, data, forward), "audit", _length(data), progress
            ):
                run.take(domain, batch)
        finally:
            for handle in handles:
                handle.remove()
    return run.study(), {each.site.name: each.shape for each in listeners if each.shape}


def shapes_of(
    model: nn.Module, sites: Sequence[NormSite], example: Any, forward: Forward | None = None
) -> dict[str, tuple[int, ...]]:
    """By site the shape of its input when the model runs on an example."""
    batch = example_batch(example, model)
    with _running(model):
        listeners = [Listener(site) for site in sites if site.module is not None]
        handles = [handle for listener in listeners for handle in listener.attach()]
        try:
            call(model, batch, forward)
        finally:
            for handle in handles:
                handle.remove()
    return {each.site.name: each.shape for each in listeners if each.shape}


@contextlib.contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # what torch.compile made of a part hears no hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        yield


def _batches(model: nn.Module, data: Any, forward: Forward | None) -> Iterator[tuple[Any, Batch]]:
    """Batches with the domain that they name, if any."""
    groups: Mapping[Any, Any] = data if _is_by_domain(data) else {None: data}
    takes_domain = _takes(model, "domain")
    for group, part in groups.items():
        batches = batches_of(part, opaque=forward is not None)
        for batch in batches if forward is not None else _in_parts(model, batches):
            domain = batch.kwargs.get("domain", group)
            kwargs = dict(batch.kwargs)
            if not takes_domain:
                kwargs.pop("domain", None)
            yield domain, fitting(replace(batch, kwargs=kwargs), model)


def _in_parts(model: nn.Module, batches: Iterator[Batch]) -> Iterator[Batch]:
    """As large as the model takes them."""
    for batch in batches:
        yield from model.parts(batch) if isinstance(model, OnnxModel) else (batch,)


def _is_by_domain(data: Any) -> bool:
    return (
        isinstance(data, Mapping)
        and bool(data)
        and not any(
            hasattr(value, "__array__") or isinstance(value, (Tensor, str, int))
            for value in data.values()
        )
    )


def _takes(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def _length(data: Any) -> int | None:
    counts = [count_of(part) for part in (data.values() if _is_by_domain(data) else [data])]
    return None if None in counts else sum(filter(None, counts))


class _Pass:
    """The pass as far as it has come."""

    def __init__(
        self, model: nn.Module, listeners: list[Listener], forward: Forward | None, training: bool
    ) -> None:
        self.model, self.listeners, self.forward = model, listeners, forward
        self.samples = self.batches = self.left_out = self.small = 0
        self.counts: Counter[int] = Counter()
        self.sizes: list[int] = []
        self.entropy = 0.0
        self.right = [0, 0, 0, 0]  # as in Accuracy
        self.judged = 0
        self.alone: bool | None = None
        # Those whose statistics are the batch's although the model is in eval mode.
        self.live = [e for e in listeners if e.site.uses_batch and not training]
        self.movable = [e for e in listeners if e.site.kind == "batch" and _is_movable(e.site)]

    def take(self, domain: Any, batch: Batch) -> None:
        """One batch."""
        if not _is_finite(batch):
            self.left_out += 1
            return
        samples = batch.samples
        if not samples and any(isinstance(v, Tensor) and v.dim() for v in batch.args):
            return
        self._begin(samples, domain)
        result = call(self.model, batch, self.forward)
        self.batches += 1
        self.samples += samples
        self._count(batch.labels)
        scores = _scores(result, batch.labels)
        if self.alone is None and samples > 1 and self.forward is None:
            self._try_alone(batch)
        if not self.movable:
            return
        if samples < SMALLEST:
            self.small += 1
            return
        other = self._with_batch_statistics(domain, batch)
        if scores is not None:
            self._judge(scores, _scores(other, batch.labels), batch.labels)

    def _begin(self, samples: int, domain: Any, batch_statistics: bool = False) -> None:
        for each in self.listeners:
            moved = batch_statistics and each in self.movable
            each.begin(samples, domain, moved)
            each.deaf = batch_statistics and not moved

    def _with_batch_statistics(self, domain: Any, batch: Batch) -> Any:
        with _buffers_kept([each.site.module for each in self.movable]):
            self._begin(batch.samples, domain, True)
            return call(self.model, batch, self.forward)

    def _try_alone(self, batch: Batch) -> None:
        """Whether the first sample comes out alike without the others, in the modes it came in."""
        for each in self.listeners:
            each.deaf = True
        with _buffers_kept([each.site.module for each in self.live]):
            for each in self.live:
                _copy_buffers(each.site.module)
                each.site.module.training = True
            try:
                whole, alone = (self._call_part(batch, samples) for samples in (SMALLEST, 1))
            except Exception:  # such as a batch norm that refuses a single element a channel
                self.alone = False
            else:
                self.alone = _are_alike(whole, alone)
            finally:
                for each in self.live:
                    each.site.module.training = False

    def _call_part(self, batch: Batch, samples: int) -> Any:
        def part(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.dim() and len(value) == batch.samples
            return value[:samples] if whole else value

        kwargs = {name: part(value) for name, value in batch.kwargs.items()}
        return self.model(*map(part, batch.args), **kwargs)

    # --- labels ---------------------------------------------------------------------------------

    def _count(self, labels: Tensor | None) -> None:
        if labels is None or not len(labels):
            return
        counts = torch.unique(labels, return_counts=True)
        self.counts.update(dict(zip(*(c.tolist() for c in counts), strict=True)))
        share = counts[1].double() / len(labels)
        self.entropy += float(-(share * share.log()).sum())
        self.sizes.append(len(labels))

    def _judge(self, scores: Tensor, other: Tensor | None, labels: Any) -> None:
        if other is None:
            return
        one, two = (s.argmax(1) == labels.to(s.device) for s in (scores, other))
        for i, right in enumerate((one, two, one & ~two, two & ~one)):
            self.right[i] += int(right.sum())
        self.judged += len(labels)

    # --- result ---------------------------------------------------------------------------------

    def study(self) -> Study:
        """All that was seen.

        Raises:
            DataError: not one batch could be used.
        """
        if not self.batches:
            raise DataError(
                "No batch could be used",
                received=f"{self.left_out} with NaN or infinity in them"
                if self.left_out
                else "batches without samples",
                expected="numbers",
                remedy="Look at what the data holds.",
            )
        labels = None
        if self.sizes:
            entropy = self.entropy / len(self.sizes)
            labels = Labels(sorted(self.counts.values()), self.sizes, entropy)
        seen = {each.site.name: each.observation() for each in self.listeners}
        return Study(
            layers={name: each for name, each in seen.items() if each is not None},
            samples=self.samples,
            batches=self.batches,
            labels=labels,
            accuracy=Accuracy(self.judged, *self.right) if self.judged else None,
            alone=self.alone,
            notes=list(self._notes(seen)),
        )

    def _notes(self, seen: Mapping[str, Any]) -> Iterator[str]:
        if self.left_out:
            yield f"{counted(self.left_out, 'batch')} held NaN or infinity and were left out"
        if self.small > self.batches / 2:
            yield (
                f"{counted(self.small, 'batch')} had fewer than {SMALLEST} samples: what batch "
                "statistics do with them was not measured"
            )
        silent = [name for name, each in seen.items() if each is None]
        if silent:
            yield f"not called, or with an input whose channels are unclear: {', '.join(silent)}"


def _is_movable(site: NormSite) -> bool:
    """Whether it takes the batch's statistics in training, and others in eval mode."""
    known = site.mean is not None and site.mean.dim() == 1
    return site.tracks and not site.frozen and known


@contextlib.contextmanager
def _buffers_kept(modules: list[Any]) -> Iterator[None]:
    kept = [(own, dict(own)) for m in modules for own in (m._buffers, m._parameters)]
    try:
        yield
    finally:
        for own, before in kept:
            own.update(before)


def _is_finite(batch: Batch) -> bool:
    values = (*batch.args, *batch.kwargs.values())
    floating = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    return all(bool(v.isfinite().all()) for v in floating)


def _copy_buffers(module: nn.Module) -> None:
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.clone()


def _are_alike(whole: Any, alone: Any) -> bool | None:
    """None where the results do not compare."""
    if not (isinstance(whole, Tensor) and isinstance(alone, Tensor)):
        return None
    if not whole.is_floating_point() or whole[:1].shape != alone.shape or not alone.numel():
        return None
    one, other = whole[0].double(), alone[0].double()
    scale = max(float(one.abs().max()), float(whole.double().std()), 1e-30)
    allowed = max(1e-3, 8 * torch.finfo(whole.dtype).eps)  # narrow dtypes round by batch size
    return float((one - other).abs().max()) <= allowed * scale


def _scores(result: Any, labels: Tensor | None) -> Tensor | None:
    """One score a class and sample, where the model's result holds such."""
    if labels is None:
        return None
    if isinstance(result, Mapping):
        result = result.get("logits")
    elif hasattr(result, "logits"):
        result = result.logits
    elif isinstance(result, (tuple, list)) and result:
        result = result[0]
    fits = isinstance(result, Tensor) and result.dim() == 2 and result.is_floating_point()
    if not fits or len(result) != len(labels) or not len(labels):
        return None
    known = int(labels.min()) >= 0 and int(labels.max()) < result.shape[1]
    return result if known and result.shape[1] > 1 else None
