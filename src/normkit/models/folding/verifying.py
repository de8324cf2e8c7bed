"""A model against its folded self on one input: what comes out, and what comes out of the layers.

The comparison is made where rounding is all that may differ, in float64, on copies. The outputs of
changed layers are compared too: a branch that ends in a gamma of zero hides them from the model's.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from normkit.errors import DataError, ModelError
from normkit.models.batches import few
from normkit.models.folding.report import Verification
from normkit.models.racing import duel
from normkit.torch.comparing import arguments, relative_difference
from normkit.words import first_line

__all__ = ["TOLERANCE", "Example", "examples_for", "time_both", "verify", "worst_difference"]

Tensor = torch.Tensor
Change = Callable[[nn.Module], Any]

#: Relative difference allowed in float64.
TOLERANCE = 1e-8
_NOISE = 30.0  # times what a change of the weights in their last digits does
_WORST_NOISE = 1e-3
_SAMPLED = 1 << 14  # elements of a layer's output that are compared


@dataclass(frozen=True, eq=False)
class Example:
    """What a model is called with.

    Args:
        words: what it is, for the report.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    words: str

    @classmethod
    def of(cls, value: Any) -> Example:
        """A user's: a tensor, a tuple of arguments, or a dictionary of keyword arguments."""
        return cls(*arguments(value), "the example")

    def few(self) -> Example:
        """Some samples of it, which are enough to compare on."""
        args, kwargs = few((self.args, self.kwargs))
        cut = pytree.tree_leaves((args, kwargs))
        whole = pytree.tree_leaves((self.args, self.kwargs))
        if all(a is b for a, b in zip(cut, whole, strict=True)):
            return self
        return Example(args, kwargs, f"samples of {self.words}")

    def to(self, dtype: torch.dtype) -> Example:
        """The same in another floating dtype."""

        def cast(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().to(dtype) if floating else value

        args, kwargs = pytree.tree_map(cast, (self.args, self.kwargs))
        return Example(args, kwargs, self.words)


def verify(
    model: nn.Module,
    change: Change,
    examples: Iterable[Example],
    watched: Sequence[str],
    tolerance: float | None = None,
) -> tuple[Example, Verification]:
    """Compare a model with a copy of it that was changed: on which example, and the result.

    Args:
        model: is copied.
        change: folds a copy, in place.
        examples: the first that the model takes is used.
        watched: paths of layers whose outputs are to stay the same.
        tolerance: in the model's own dtype; None for none beside that in float64.

    Raises:
        ModelError: they differ, or the changed model does not run.
        DataError: the model takes none of the examples.
    """
    example, want, dtype = _first_run(model, examples, watched)
    if not any(what.startswith("output") for what in want):
        return example, Verification(why_not="the model's result holds no tensors")
    trial = _copy(model, dtype)
    change(trial)
    got = _changed_run(trial, example.to(dtype), watched)
    worst, where = worst_difference(got, want)
    allowed = TOLERANCE
    if not worst <= allowed:  # parts of it may compute in less
        allowed = max(allowed, _noise(model, example, want, watched, dtype))
    if not worst <= allowed:
        raise _differs(worst, where, allowed, dtype)
    own = _own_dtype(model)
    own_worst, where = worst, ""
    if own != dtype:
        trial = copy.deepcopy(model)
        want = _run(trial, example.to(own), watched)
        change(trial)
        own_worst, where = worst_difference(_changed_run(trial, example.to(own), watched), want)
    if tolerance is not None and not own_worst <= tolerance:
        raise _differs(own_worst, where, tolerance, own)
    return example, Verification(worst, _word(dtype), own_worst, _word(own), example.words)


def time_both(
    before: nn.Module, after: nn.Module, example: Example, seconds: float = 1.0
) -> tuple[float, float, bool]:
    """Seconds of a forward of each, both on copies, and whether they differ: see :func:`duel`."""

    def step(model: nn.Module) -> Callable[[], None]:
        model = copy.deepcopy(model)
        here = example.to(_own_dtype(model))

        def run() -> None:
            with torch.no_grad():
                model(*here.args, **here.kwargs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()

        return run

    with _own_random():
        return duel(step(before), step(after), seconds)


def _own_dtype(model: nn.Module) -> torch.dtype:
    tensors = (*model.parameters(), *model.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype) if dtype == torch.float64 else copy.deepcopy(model)


# --- runs -----------------------------------------------------------------------------------------


def _first_run(
    model: nn.Module, examples: Iterable[Example], watched: Sequence[str]
) -> tuple[Example, dict[str, Tensor], torch.dtype]:
    """The first example that the model takes, in float64 if it can, with the results."""
    said = "nothing was tried"
    for example in examples:
        for dtype in dict.fromkeys((torch.float64, _own_dtype(model))):
            try:
                return example, _run(_copy(model, dtype), example.to(dtype), watched), dtype
            except Exception as error:  # whatever a user's forward does
                said = first_line(error)
    raise DataError(
        "The model does not take the example",
        received=said,
        expected="an input with which its forward runs",
        remedy="A tuple holds several arguments, a dictionary keyword arguments.",
    )


def _changed_run(model: nn.Module, example: Example, watched: Sequence[str]) -> dict[str, Tensor]:
    try:
        return _run(model, example, watched)
    except Exception as error:
        raise ModelError(
            "The folded model does not run; nothing was changed",
            received=first_line(error),
            expected="a model that uses its norms by calling them",
            remedy="Its forward looks into a norm that is gone; plan_folds(model) says which.",
        ) from error


def _run(model: nn.Module, example: Example, watched: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of the model, and some elements of those of layers at these paths."""
    found: dict[str, Tensor] = {}

    def listener(path: str) -> Callable[..., None]:
        def listen(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                call = sum(what.startswith(f"{path}, call") for what in found)
                found[f"{path}, call {call + 1}"] = _sample(output)

        return listen

    with contextlib.ExitStack() as stack:
        for path in watched:
            hook = model.get_submodule(path).register_forward_hook(listener(path))
            stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_own_random())
        torch.manual_seed(0)
        args, kwargs = pytree.tree_map(_fresh, (example.args, example.kwargs))
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return found | {f"output {i}": t.detach().clone() for i, t in enumerate(outputs)}


def _own_random() -> Any:
    """Random numbers that leave the user's generators where they are, on every device."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices=list(devices))


def _fresh(value: Any) -> Any:
    """A forward may write on its input."""
    return value.clone() if isinstance(value, Tensor) else value


def _sample(output: Tensor) -> Tensor:
    flat = output.detach().reshape(-1)
    if flat.numel() > _SAMPLED:
        chosen = torch.Generator().manual_seed(flat.numel())
        places = torch.randint(flat.numel(), (_SAMPLED,), generator=chosen)
        return flat[places.to(flat.device)]
    return flat.clone()


# --- differences ----------------------------------------------------------------------------------


def worst_difference(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> tuple[float, str]:
    """The worst difference, relative to the largest element of the same value, and where it is."""
    worst, where = 0.0, ""
    for what, wanted in want.items():
        difference = relative_difference(got.get(what), wanted)
        if not difference <= worst:
            worst, where = difference, what
    return worst, where


def _noise(
    model: nn.Module,
    example: Example,
    want: dict[str, Tensor],
    watched: Sequence[str],
    dtype: torch.dtype,
) -> float:
    """What rounding explains: many times what other last digits of the weights do.

    The digits are those of the least precise dtype in which the model computes anything.
    """
    trial, least = _copy(model, dtype), _LeastPrecise()
    with least:
        _run(trial, example.to(dtype), ())
    if least.found == torch.float64:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trial.parameters():
            if weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.mul_(1 + torch.finfo(least.found).eps * noise)
    moved, _ = worst_difference(_run(trial, example.to(dtype), watched), want)
    return min(_NOISE * moved, _WORST_NOISE)


class _LeastPrecise(TorchDispatchMode):
    """Looks on while a model runs: the widest rounding in any result of more than one element."""

    def __init__(self) -> None:
        super().__init__()
        self.found = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 1:
                self.found = max(self.found, leaf.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


def _differs(worst: float, where: str, allowed: float, dtype: torch.dtype) -> ModelError:
    return ModelError(
        "The folded model does not do the same; nothing was changed",
        received=f"a relative difference of {worst:.1e} in {where}",
        expected=f"at most {allowed:.1g} in {_word(dtype)}",
        remedy="A larger tolerance= serves where low precision explains it; else the model uses "
        "its layers in a way that its graph does not show: please report it.",
    )


# --- inputs to try --------------------------------------------------------------------------------

_SIZES = {1: (32, 256, 2048, 16000), 2: (32, 64, 128, 224, 299, 384), 3: (8, 16, 32, 64)}


def examples_for(model: nn.Module, first: nn.Module | None) -> Iterator[Example]:
    """Inputs that the first layer would take, the smallest first."""
    own = next(iter(model.parameters()), None)
    device, dtype = (own.device, own.dtype) if own is not None else (None, torch.float32)
    generator = torch.Generator().manual_seed(0)
    if isinstance(first, (nn.Embedding, nn.EmbeddingBag)):
        for length in (16, 64):
            ints = torch.randint(first.num_embeddings, (2, length), generator=generator)
            yield Example((ints.to(device),), {}, f"whole numbers of shape (2, {length})")
    for shape in _shapes(first):
        x = torch.randn(shape, generator=generator).to(device, dtype)
        yield Example((x,), {}, f"random input of shape {shape}")


def _shapes(first: nn.Module | None) -> Iterator[tuple[int, ...]]:
    if isinstance(first, nn.Linear):
        yield from ((2, first.in_features), (2, 16, first.in_features))
    channels = getattr(first, "in_channels", None)
    if isinstance(channels, int) and isinstance(first, nn.modules.conv._ConvNd):
        dims = first.weight.dim() - 2
        yield from ((2, channels, *[size] * dims) for size in _SIZES[dims])
