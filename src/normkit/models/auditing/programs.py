"""A torch.export program as a module whose norms can be listened to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from normkit.models.graphs.graph import Graph
from normkit.models.sites import NormSite

__all__ = ["listenable"]

Tensor = torch.Tensor
#: Operators that take the input first, and where some of them take running statistics.
_STATISTICS = {"batch_norm": 3, "_native_batch_norm_legit_no_training": 3, "instance_norm": 3}
_OPERATORS = (
    *_STATISTICS, "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "rms_norm",
)  # fmt: skip


def listenable(
    program: ExportedProgram, sites: Sequence[NormSite], graph: Graph
) -> tuple[nn.Module, list[NormSite]]:
    """A module that does what the program does, and the sites with a layer each in it.

    A norm that the program writes out in elementary operators stays without a layer.
    """
    program_of_norms = _Program(program.module())
    found = []
    for site in sites:
        layer = None
        for node in graph.calls(site.name):
            if _operator(node.handle) in _OPERATORS:
                layer = layer or _Norm(site, node.handle)
                program_of_norms.add(node.handle.name, layer)
        found.append(replace(site, module=layer))
    return program_of_norms, found


def _operator(node: Any) -> str:
    target = getattr(node, "target", None)
    packet = getattr(target, "overloadpacket", None)
    return getattr(packet, "__name__", "")


class _Norm(nn.Module):
    """One norm's operator, with its running statistics where those of a layer are."""

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, site: NormSite, node: fx.Node) -> None:
        super().__init__()
        operator: Any = node.target
        self.operator = operator
        self.place = _STATISTICS.get(_operator(node))
        self.register_buffer("running_mean", site.mean)
        self.register_buffer("running_var", site.var)
        if site.kind in ("layer", "rms"):
            self.normalized_shape = tuple(node.args[1])  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The operator's result."""
        given = list(args)
        if self.place is not None and self.running_mean is not None:
            given[self.place : self.place + 2] = self.running_mean, self.running_var
        return self.operator(*given, **kwargs)


class _Program(nn.Module):
    """Runs a program's graph node by node."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.hidden = [module]  # as a child it would refuse eval()
        self.norms = nn.ModuleDict()
        for i, parameter in enumerate(module.parameters()):
            self.register_parameter(f"parameter_{i}", parameter)
        for i, buffer in enumerate(module.buffers()):
            self.register_buffer(f"buffer_{i}", buffer)

    def add(self, node: str, layer: _Norm) -> None:
        """Let a layer do a node's work."""
        self.norms[node] = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the program."""
        module = self.hidden[0]
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        flat = module.graph.process_inputs(*bound.args, **bound.kwargs)
        try:
            result = _Interpreter(module, self.norms).run(*flat, enable_io_processing=False)
        except AssertionError as error:  # a guard's, on shapes that the program is not for
            raise ValueError(str(error).partition("\n")[0]) from error
        return module.graph.process_outputs(result)


class _Interpreter(fx.Interpreter):
    def __init__(self, module: Any, norms: nn.ModuleDict) -> None:
        super().__init__(module)
        self.norms = norms

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and n.name in self.norms:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return self.norms[n.name](*args, **kwargs)
        return super().run_node(n)
