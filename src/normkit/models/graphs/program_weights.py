"""The stored tensors of an exported program, and which of its calls take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from normkit.models.graphs import program_ops as ops
from normkit.models.graphs.reading import Stored

__all__ = ["StoredTensors"]

Tensor = torch.Tensor


class StoredTensors:
    """Finds, for the values in a program's graph, the parameters and buffers that they are."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        signature = program.graph_signature
        self.names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.outer: dict[fx.Node, Any] = {}  # what placeholders of inner graphs are given
        self._tied: dict[Any, str] = {}
        self._users: dict[str, list[fx.Node]] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in self.names:
                users = self._users.setdefault(self.key(self.names[node.name]), [])
                users += _final_users(node)

    def tensor(self, name: str) -> Any:
        """None where the program stores nothing under this name."""
        found = self.program.state_dict.get(name)
        return self.program.constants.get(name) if found is None else found

    def of(self, value: Any) -> Stored | None:
        """What a value is, through transposes; None where it is computed."""
        turned = False
        while value in self.outer or _is_call(value):
            if value in self.outer:
                value = self.outer[value]
                continue
            turn = _turn(value)
            if turn is None:
                return None
            turned ^= turn
            value = value.args[0]
        if not isinstance(value, fx.Node) or value.name not in self.names:
            return None
        return Stored(self.names[value.name], turned, value)

    def key(self, name: str) -> str:
        """One name for a tensor that is stored under several."""
        tensor = self.tensor(name)
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
            return name
        place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        return self._tied.setdefault(place, name)

    def weight(self, node: fx.Node) -> Stored | None:
        """The weight of a layer's call; None for other calls."""
        layer = ops.layer_of(node) if node.op == "call_function" else None
        return self.of(ops.arguments_of(node).get(layer[1]["weight"])) if layer else None

    def used_elsewhere(self, node: fx.Node, stored: dict[str, Stored]) -> str:
        """What else takes a layer's tensors than calls of the same layer; "" for nothing."""
        own = self.key(stored["weight"].name)
        for role, tensor in stored.items():
            for user in self._users.get(self.key(tensor.name), ()):
                weight = self.weight(user)
                same = weight is not None and self.key(weight.name) == own
                if user is not node and not same:
                    return f"its {role} is used by {user.name} too"
        return ""


def _is_call(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_function"


def _final_users(node: fx.Node) -> list[fx.Node]:
    """The calls that take a value as it is or transposed."""
    found: list[fx.Node] = []
    for user in node.users:
        turns = user.op == "call_function" and user.args[0] is node and _turn(user) is not None
        found += _final_users(user) if turns else [user]
    return found


def _turn(node: fx.Node) -> bool | None:
    """Whether a call transposes a matrix (True), leaves its argument (False), or neither."""
    step = _TURNS.get(ops.name_of(node)) if ops.is_aten(node) else None
    return step(node) if step is not None else None


def _dims(node: fx.Node) -> int:
    return len(ops.shape_of(node.args[0]) or ())


def _permuted(node: fx.Node) -> bool | None:
    dims = [d % max(_dims(node), 1) for d in ops.arguments_of(node)["dims"]]
    if dims == sorted(dims):
        return False
    return True if dims == [1, 0] else None


def _transposed(node: fx.Node) -> bool | None:
    return True if _dims(node) == 2 else None


def _broadcast(node: fx.Node) -> bool | None:
    """A batched product repeats its weight along new first dimensions."""
    before, after = ops.shape_of(node.args[0]), ops.shape_of(node)
    if not before or not after or len(before) < 2:
        return None
    repeats = len(before) == 2 or before == after
    return False if repeats and after[-2:] == before[-2:] else None


def _left(node: fx.Node) -> bool:
    del node
    return False


_TURNS: dict[str, Callable[[fx.Node], bool | None]] = {
    "t": _transposed,
    "numpy_T": _transposed,
    "mT": _transposed,
    "transpose": _transposed,
    "permute": _permuted,
    "expand": _broadcast,
    "view": _broadcast,
    "_unsafe_view": _broadcast,
    **dict.fromkeys(("detach", "alias", "contiguous", "clone"), _left),
}
