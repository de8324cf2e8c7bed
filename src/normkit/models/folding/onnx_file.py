"""Norms of an ONNX model folded away, with proof by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from normkit.errors import DataError, DTypeError, ModelError
from normkit.extras import needed
from normkit.models.folding.onnx_edit import edited
from normkit.models.folding.onnx_run import Inputs, inputs_for, named, run
from normkit.models.folding.report import FoldReport, Verification, report_of
from normkit.models.folding.stored import StoredLayers
from normkit.models.folding.verifying import worst_difference
from normkit.models.graphs.graph import Node
from normkit.models.graphs.onnx_model import read_onnx_graph
from normkit.models.graphs.onnx_values import tensor_of
from normkit.models.graphs.reading import StandIns, Stored
from normkit.models.measuring.onnx_session import session_of
from normkit.models.racing import duel
from normkit.words import first_line

__all__ = ["fold_onnx"]

_NOISE = 30.0  # times what a change of the weights in their last digits does
_LEAST, _MOST = 1e-6, 1e-3  # relative differences always and never allowed
_HALF = 30.0  # times that in half precision


def fold_onnx(
    proto: Any, example: Any = None, *, tolerance: float | None = None, measure: bool = True
) -> tuple[Any, FoldReport]:
    """An ONNX model whose norms have gone into its layers, and what was done.

    Opsets, inputs and outputs stay. Norms that an exporter wrote in small operators count too.

    Args:
        proto: an ``onnx.ModelProto`` with its external data loaded. It is not changed.
        example: its input (an array or a tensor, a tuple of them in the order of its inputs, or a
            dictionary by their names), on which onnxruntime runs both: results and the values in
            which layers changed are compared. By default random inputs of the shapes that the model
            says it takes.
        tolerance: relative difference allowed; by default 30 times what other last digits of the
            weights do, but at most 1e-3 (3e-2 in half precision).
        measure: time both, as onnxruntime runs them by default, where it folds batch norms too.

    Raises:
        ModelError: the folded model does not do the same.
        DataError: the model does not take the example.

    >>> from onnx.parser import parse_model
    >>> proto = parse_model('''<ir_version: 10, opset_import: ["" : 20]>
    ...     net (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
    ...     <float[1, 1, 1, 1] w = {2}, float[1] g = {3}, float[1] b = {1}, float[1] v = {4}>
    ...     { a = Conv(x, w)  y = BatchNormalization<epsilon = 0.0>(a, g, b, b, v) }''')
    >>> folded, report = fold_onnx(proto, measure=False)
    >>> [node.op_type for node in folded.graph.node], [t.name for t in folded.graph.initializer]
    (['Conv'], ['w', 'w.bias'])
    """
    onnx = needed("onnx")
    if not isinstance(proto, onnx.ModelProto):
        raise DTypeError(
            "fold_onnx() has no ONNX model",
            received=type(proto).__name__,
            expected="an onnx.ModelProto",
            remedy="onnx.load(file) gives one.",
        )
    layers = _layers(proto)
    planned = layers.plan()
    statistics = _statistics(layers)
    before = _parameters(proto, statistics)
    if not planned.folds:
        nothing = Verification(why_not="nothing was folded")
        return proto, report_of(planned, (before, before), nothing)
    folded, same = edited(proto, layers, planned)
    _check(proto, folded)
    used, checked = _proved(proto, folded, same, example, tolerance)
    if measure and used is not None:
        checked = checked.timed(*_timed(proto, folded, used))
    return folded, report_of(planned, (before, _parameters(folded, statistics)), checked)


def _statistics(layers: StoredLayers) -> set[str]:
    """Names of what torch.nn keeps as buffers."""
    roles = ("running_mean", "running_var")
    calls = layers.reading.calls.values()
    return {call.stored[role].name for call in calls for role in roles if role in call.stored}


def _parameters(proto: Any, statistics: set[str]) -> int:
    """How many numbers, counted as in the module from which the file comes."""
    floating = (1, 10, 11, 16)  # float, float16, double, bfloat16
    weights = (t for t in proto.graph.initializer if t.name not in statistics)
    tensors = [t for t in weights if t.data_type in floating]
    return sum(int(np.prod(t.dims)) for t in tensors)


def _layers(proto: Any) -> StoredLayers:
    number = StandIns()

    def tensor(found: Stored) -> torch.Tensor:
        return found.handle

    def sizes(node: Node) -> tuple[int, ...] | None:
        shape = node.attributes.get("shape")
        if shape is None:
            return None
        return tuple(number(n) if isinstance(n, str) else n for n in shape)

    return StoredLayers(read_onnx_graph(proto), tensor, sizes)


def _check(before: Any, after: Any) -> None:
    """The checker has nothing to say of the new model, unless it has of the old one."""
    checker = needed("onnx").checker
    if after.ByteSize() >= checker.MAXIMUM_PROTOBUF:
        return
    try:
        checker.check_model(after)
    except checker.ValidationError as error:
        try:
            checker.check_model(before)
        except checker.ValidationError:
            return
        raise ModelError(
            "The folded model is not valid",
            received=str(error).splitlines()[0],
            expected="a model that onnx.checker accepts",
            remedy="Please report it, with the model if you can.",
        ) from error


# --- proof ----------------------------------------------------------------------------------------


def _proved(
    proto: Any, folded: Any, same: Mapping[str, str], example: Any, tolerance: float | None
) -> tuple[Inputs | None, Verification]:
    try:
        used, want = _first_run(proto, _examples(proto, example), list(same))
    except ValueError as error:
        if example is not None:
            raise DataError(
                "The model does not take the example",
                received=str(error),
                expected="what its inputs say",
                remedy="A tuple holds several inputs, a dictionary goes by their names.",
            ) from error
        return None, Verification(why_not=f"onnxruntime does not run the model: {error}")
    try:
        found = run(folded, used.arrays, list(same.values()))
    except Exception as error:  # onnxruntime's own classes
        raise ModelError(
            "The folded model does not run",
            received=first_line(error),
            expected="a model that onnxruntime runs like the one before",
            remedy="Please report it, with the model if you can.",
        ) from error
    got = {name: found[same.get(name, name)] for name in want}
    worst, where = worst_difference(got, want)
    dtype = _dtype(want)
    allowed = _allowed(proto, used, want, dtype) if tolerance is None else tolerance
    if not worst <= allowed:
        raise ModelError(
            "The folded model does not do the same; nothing was changed",
            received=f"a relative difference of {worst:.1e} in {where}",
            expected=f"at most {allowed:.1g} in {dtype}",
            remedy="A larger tolerance= serves where low precision explains it; else please "
            "report it.",
        )
    return used, Verification(worst, dtype, worst, dtype, used.words)


def _examples(proto: Any, example: Any) -> Iterable[Inputs]:
    return inputs_for(proto) if example is None else [Inputs(named(proto, example), "the example")]


def _first_run(
    proto: Any, examples: Iterable[Inputs], watched: list[str]
) -> tuple[Inputs, dict[str, torch.Tensor]]:
    said = "there is no input to try"
    for inputs in examples:
        try:
            return inputs, run(proto, inputs.arrays, watched)
        except Exception as error:  # onnxruntime's own classes
            said = first_line(error)
    raise ValueError(said)


def _dtype(results: Mapping[str, torch.Tensor]) -> str:
    """The least precise of the results' floating dtypes."""
    found = [t.dtype for t in results.values() if t.is_floating_point()]
    return str(max(found, key=lambda d: torch.finfo(d).eps, default=torch.float32))[6:]


def _allowed(proto: Any, used: Inputs, want: Mapping[str, torch.Tensor], dtype: str) -> float:
    """What rounding explains: many times what other last digits of the weights do."""
    generator = torch.Generator().manual_seed(0)
    moved = type(proto)()
    moved.CopyFrom(proto)
    for tensor in moved.graph.initializer:
        if tensor.data_type in (1, 10, 11) and len(tensor.dims):
            value = torch.tensor(needed("onnx").numpy_helper.to_array(tensor))
            noise = torch.randn(value.shape, generator=generator).to(value)
            noise *= torch.finfo(value.dtype).eps
            tensor.CopyFrom(tensor_of(tensor.name, value + value * noise))
    worst, _ = worst_difference(run(moved, used.arrays, list(want)), want)
    scale = _HALF if dtype == "float16" else 1.0
    return float(np.clip(_NOISE * worst, _LEAST, _MOST * scale))


def _timed(before: Any, after: Any, used: Inputs) -> tuple[float, float, bool]:
    with session_of(before, optimized=True) as old, session_of(after, optimized=True) as new:
        return duel(lambda: old.run(None, used.arrays), lambda: new.run(None, used.arrays))
