"""Folds made in a copy of an exported program."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)

from normkit.models.folding.algebra import Layer, changed
from normkit.models.folding.planning import Fold, Plan
from normkit.models.folding.stored import StoredLayers
from normkit.models.graphs import program_ops as ops
from normkit.models.graphs.reading import Call, Reading, Stored

__all__ = ["edited"]

Tensor = torch.Tensor


def edited(
    program: ExportedProgram, layers: StoredLayers, plan: Plan, dtype: torch.dtype | None = None
) -> tuple[ExportedProgram, dict[str, str]]:
    """A program with the folds of a plan made, and which of its values stay what they are.

    Those are the changed layers' results, or of norms behind them: names in the old program, with
    those in the new one. The old program is only read.

    Args:
        dtype: of the new weights; their own by default.
    """
    editor = _Editor(program, layers.reading)
    for fold in plan.folds:
        editor.take_out(fold)
    for name, changes in plan.changes.items():
        before = layers.layer(layers.reading.graph[name])
        assert isinstance(before, Layer)
        editor.set_layer(name, changed(before, changes), dtype or before.weight.dtype)
    return editor.program(), {name: node.name for name, node in editor.same.values()}


class _Editor:
    def __init__(self, program: ExportedProgram, reading: Reading) -> None:
        self.old, self.reading = program, reading
        self.graph = copy.deepcopy(program.graph)
        self.nodes: dict[str, fx.Node] = {}
        for before, node in zip(program.graph.nodes, self.graph.nodes, strict=True):
            node.name = before.name  # a copy avoids Python's names, such as "input"
            self.nodes[node.name] = node
        self.specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.state = dict(program.state_dict)
        self.constants = dict(program.constants)
        self.same: dict[str, tuple[str, fx.Node]] = {}  # by layer: a value before, and after
        self.unused: list[str] = []  # placeholders that may have lost their last user

    # -- norms --------------------------------------------------------------------------------

    def take_out(self, fold: Fold) -> None:
        """Remove a norm, or its gamma and beta."""
        node, call = self.nodes[fold.norm.name], self.reading.calls[fold.norm.name]
        if fold.whole:
            source = ops.arguments_of(node)["input"]
            self.replace(node, source)
            if fold.direction == "before":
                self.same[fold.into[0].name] = fold.norm.name, source
            counter = f"{fold.site.name}.num_batches_tracked"
            self.unused += [n for n, spec in self.specs.items() if spec.target == counter]
        elif call.plain is not None:
            self.replace(node, self.nodes[call.plain.name])
        else:
            for role in call.stored:
                self.set_argument(node, role, None)
        self.unused += [stored.handle.name for stored in call.stored.values()]

    def replace(self, node: fx.Node, value: fx.Node) -> None:
        """Let a value stand for a call's first result."""
        parts = [user for user in node.users if ops.is_first_of(user)]
        if isinstance(node.meta.get("val"), (tuple, list)):
            for part in parts:
                part.replace_all_uses_with(value)
                self.graph.erase_node(part)
        else:
            node.replace_all_uses_with(value)
        for rest in list(node.users):  # results that nothing takes
            self.graph.erase_node(rest)
        self.graph.erase_node(node)

    def set_argument(self, node: fx.Node, name: str, value: Any) -> None:
        """Give a call one argument by its name."""
        arguments = ops.arguments_of(node)
        assert isinstance(node.target, torch._ops.OpOverload)
        names = [a.name for a in node.target._schema.arguments]
        place = names.index(name)
        if place < len(node.args):
            node.update_arg(place, value)
        elif node.target._schema.arguments[place].kwarg_only:
            node.update_kwarg(name, value)
        else:
            missing = [arguments[n] for n in names[len(node.args) : place]]
            node.args = (*node.args, *missing, value)

    # -- layers -------------------------------------------------------------------------------

    def set_layer(self, name: str, layer: Layer, dtype: torch.dtype) -> None:
        """Give a layer's call new weights."""
        call = self.reading.calls[name]
        weight = call.stored["weight"]
        self.same.setdefault(name, (call.end.name, self.nodes[call.end.name]))
        self.set_tensor(weight, layer.weight, dtype)
        if layer.bias is None:
            return
        if "bias" in call.stored:
            self.set_tensor(call.stored["bias"], layer.bias, dtype)
        else:
            self.add_bias(name, call, layer.bias, dtype)

    def set_tensor(self, stored: Stored, value: Tensor, dtype: torch.dtype) -> None:
        home = self.state if stored.name in self.state else self.constants
        value = (value.t() if stored.turned else value).to(dtype).contiguous()
        home[stored.name] = _like(home[stored.name], value)

    def add_bias(self, name: str, call: Call, value: Tensor, dtype: torch.dtype) -> None:
        """A bias for a layer that had none: a new parameter, which the call takes."""
        weight, end = call.stored["weight"], self.nodes[call.end.name]
        place, spec = self.nodes[weight.handle.name], self.specs[weight.handle.name]
        path = self.free_beside(weight.name)
        with self.graph.inserting_after(place):
            bias = self.graph.placeholder(f"p_{path.replace('.', '_')}")
        fake = place.meta["val"]
        bias.meta["val"] = fake.new_empty((len(value),))
        self.state[path] = _like(self.state.get(weight.name), value.to(dtype))
        argument = TensorArgument(name=bias.name)
        self.specs[bias.name] = InputSpec(InputKind.PARAMETER, argument, path, None)
        if not isinstance(self.state[path], torch.nn.Parameter):
            persistent = spec.persistent is not False
            self.specs[bias.name] = InputSpec(InputKind.BUFFER, argument, path, persistent)
        if "bias" in ops.arguments_of(end) or ops.name_of(end) in _TAKE_A_BIAS:
            self.set_argument(end, "bias", bias)
            return
        with self.graph.inserting_after(end):
            added = self.graph.call_function(torch.ops.aten.add.Tensor, (end, bias))
        added.meta = dict(end.meta)
        if self.same[name][1] is end:
            self.same[name] = self.same[name][0], added
        end.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)

    def free_beside(self, weight: str) -> str:
        """A bias's name for a layer with this weight."""
        path, _, leaf = weight.rpartition(".")
        own = f"{path}.bias".lstrip(".") if leaf == "weight" else f"{weight}_bias"
        taken = {spec.target for spec in self.specs.values()} | {*self.state, *self.constants}
        return own if own not in taken else f"{weight}_bias_of_fold"

    # -- the program --------------------------------------------------------------------------

    def program(self) -> ExportedProgram:
        """The edited program; parameters that nothing takes any more are gone."""
        for name in dict.fromkeys(self.unused):
            node, spec = self.nodes[name], self.specs[name]
            if not node.users:
                self.graph.erase_node(node)
                del self.specs[name]
                if all(other.target != spec.target for other in self.specs.values()):
                    self.state.pop(spec.target or "", None)
                    self.constants.pop(spec.target or "", None)
        self.graph.lint()
        names = [node.name for node in self.graph.nodes if node.op == "placeholder"]
        signature = ExportGraphSignature(
            input_specs=[self.specs[name] for name in names], output_specs=self.output_specs()
        )
        return ExportedProgram(
            root=self.old.graph_module,
            graph=self.graph,
            graph_signature=signature,
            state_dict=self.state,
            range_constraints=copy.copy(self.old.range_constraints),
            module_call_graph=copy.deepcopy(self.old.module_call_graph),
            example_inputs=self.old.example_inputs,
            constants=self.constants,
            verifiers=self.old.verifiers,
        )

    def output_specs(self) -> list[OutputSpec]:
        """Those of the old program, with the names of the values that are results now."""
        results = self.graph.find_nodes(op="output")[0].args[0]
        return [
            OutputSpec(spec.kind, TensorArgument(name=value.name), spec.target)
            if isinstance(spec.arg, TensorArgument) and isinstance(value, fx.Node)
            else spec
            for spec, value in zip(self.old.graph_signature.output_specs, results, strict=True)
        ]


_TAKE_A_BIAS = ("linear",)


def _like(old: Any, value: Tensor) -> Tensor:
    """The new value of a tensor, a parameter where that was one."""
    if isinstance(old, torch.nn.Parameter):
        return torch.nn.Parameter(value, requires_grad=old.requires_grad)
    return value
