"""Exported programs run for comparison: in any dtype, with some of their inner values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from normkit.models.folding.verifying import Example
from normkit.models.graphs import program_ops as ops

__all__ = ["Runner", "examples_for", "suited"]

Tensor = torch.Tensor


class Runner(nn.Module):
    """A program as a module whose dtype can be changed.

    Args:
        program: is not changed; its tensors are copied when the module is.
        watched: nodes whose values are given after the program's results.
    """

    def __init__(self, program: ExportedProgram, watched: Sequence[str] = ()) -> None:
        super().__init__()
        self.become(program, watched)

    def become(self, program: ExportedProgram, watched: Sequence[str] = ()) -> None:
        """Run another program from now on."""
        self._parameters.clear()
        self._buffers.clear()
        self.program, self.watched = program, list(watched)
        self.places: list[str] = []  # of the inputs before the user's, in order
        for place, spec in enumerate(program.graph_signature.input_specs):
            if spec.kind in (InputKind.USER_INPUT, InputKind.TOKEN):
                continue
            target = spec.target or ""
            stored = program.state_dict.get(target)
            value = program.constants[target] if stored is None else stored
            self.places.append(f"{place}")
            if isinstance(value, Tensor) and value.is_floating_point():
                self.register_parameter(f"{place}", nn.Parameter(value.detach(), False))
            elif isinstance(value, Tensor):
                self.register_buffer(f"{place}", value.detach())
            else:
                object.__setattr__(self, f"{place}", value)

    def __deepcopy__(self, memo: Any) -> Runner:
        new = Runner(self.program, self.watched)
        for name, tensor in self.named_parameters():
            new.get_parameter(name).data = tensor.detach().clone()
        for name, buffer in self.named_buffers():
            new._buffers[name] = buffer.clone()
        return new

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        flat = pytree.tree_leaves((args, kwargs))
        stored = [getattr(self, place) for place in self.places]
        held = [t.clone() if isinstance(t, Tensor) else t for t in stored]  # it may write on them
        interpreter = _Listener(self.program.graph_module, self.watched)
        results = interpreter.run(*held, *flat, enable_io_processing=False)
        return (*results, *(interpreter.heard[name] for name in self.watched))


class _Listener(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watched: Sequence[str]) -> None:
        super().__init__(module)
        self.heard: dict[str, Any] = dict.fromkeys(watched)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.heard:
            first = value[0] if isinstance(value, (tuple, list)) else value
            self.heard[n.name] = first.clone()
        return value


def suited(program: ExportedProgram, example: Example) -> Example:
    """An example as the program is called: keyword arguments where it has such.

    Raises:
        ValueError: it does not fit; the text says how.
    """
    names = list(program.graph_signature.user_inputs)
    if example.kwargs and set(example.kwargs) == set(names):
        flat = [example.kwargs[name] for name in names]
    else:
        flat = pytree.tree_leaves((example.args, example.kwargs))
    if len(flat) != len(names):
        raise ValueError(f"it takes {len(names)} inputs ({', '.join(names)}), not {len(flat)}")
    for node, value in zip(_inputs(program), flat, strict=True):
        shape = ops.shape_of(node)
        if shape is None or not isinstance(value, Tensor):
            continue
        fits = len(shape) == value.dim() and all(
            wanted == given or isinstance(wanted, str)
            for wanted, given in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{node.name} is of shape {shape}, not {tuple(value.shape)}")
    return _called(program, flat, example.words)


def _called(program: ExportedProgram, flat: Sequence[Any], words: str) -> Example:
    args, kwargs = pytree.tree_unflatten(list(flat), program.call_spec.in_spec)
    return Example(tuple(args), kwargs, words)


def _inputs(program: ExportedProgram) -> list[fx.Node]:
    names = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    return [n for n in placeholders if n.name in names or n.target in names]


# --- inputs to try --------------------------------------------------------------------------------

_SIZES = (16, 64, 224)


def examples_for(program: ExportedProgram) -> Iterator[Example]:
    """Random inputs of the shapes that the program was exported with, then of others it allows."""
    generator = torch.Generator().manual_seed(0)
    if program.example_inputs is not None:
        flat = pytree.tree_leaves(program.example_inputs)
        if len(flat) == len(_inputs(program)):
            drawn = [_redrawn(value, generator) for value in flat]
            yield _called(program, drawn, f"random input of shape {_shapes(drawn)}")
    for size in _SIZES:
        drawn = [_drawn(node, size, program, generator) for node in _inputs(program)]
        yield _called(program, drawn, f"random input of shape {_shapes(drawn)}")


def _shapes(values: Sequence[Any]) -> str:
    return ", ".join(str(tuple(v.shape)) for v in values if isinstance(v, Tensor))


def _redrawn(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=generator).to(value)


def _drawn(node: fx.Node, size: int, program: ExportedProgram, generator: torch.Generator) -> Any:
    """A placeholder's input; sizes that may vary are 2 in the first place, ``size`` elsewhere."""
    fake = node.meta.get("val")
    if not isinstance(fake, Tensor):
        return fake
    sizes: list[Any] = list(fake.shape)
    symbols = {
        symbol: _within(2 if place == 0 else size, program.range_constraints.get(symbol))
        for place, n in reversed(list(enumerate(sizes)))
        if isinstance(n, torch.SymInt)
        for symbol in n.node.expr.free_symbols
    }
    shape = [int(n.node.expr.subs(symbols)) if isinstance(n, torch.SymInt) else n for n in sizes]
    if fake.is_floating_point():
        return torch.randn(shape, generator=generator).to(fake.device, fake.dtype)
    return torch.randint(2, shape, generator=generator).to(fake.device, fake.dtype)


def _within(size: int, allowed: Any) -> int:
    if allowed is None:
        return size
    return int(min(max(size, allowed.lower), allowed.upper))
