"""An ONNX model as a module whose norms can be listened to."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from normkit.errors import ModelError
from normkit.extras import needed
from normkit.models.auditing.onnx_batches import batch_size, cut, free, free_batch, is_joined
from normkit.models.auditing.onnx_inputs import Arrays, arrays_for
from normkit.models.auditing.onnx_statistics import switchable
from normkit.models.batches import Batch
from normkit.models.graphs.graph import Node
from normkit.models.graphs.reading import Call, Reading
from normkit.models.measuring.onnx_session import inputs_of, session_of
from normkit.models.sites import NormSite
from normkit.words import first_line

__all__ = ["OnnxModel", "OnnxNorm", "runnable"]

#: Bytes of what goes into the norms and comes out of them that may be held at once, and samples
#: that a batch is not cut below for it: fewer have no batch statistics worth the name.
_HELD, _FEWEST = 1 << 30, 16


def runnable(proto: Any, reading: Reading) -> tuple[nn.Module, list[NormSite]]:
    """A module that does what an ONNX model does, and the sites with a layer each in it.

    A norm in a graph within a node stays without a layer.
    """
    model = OnnxModel(proto)
    found = []
    for site in reading.sites:
        layer = None
        for node in reading.graph.calls(site.name):
            call = reading.calls.get(node.name)
            if node.op == "norm" and call is not None and model.gives(call.source):
                layer = layer or OnnxNorm(node)
                model.add(layer, site, call)
        found.append(replace(site, module=layer))
    return model.eval(), found


class OnnxNorm(nn.Module):
    """A norm that is told what has gone through it once the whole model has run.

    Attributes:
        batch_statistics: whether a batch norm is to take its statistics from the batch; set before
            the model runs. Training mode does the same.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.batch_statistics = False
        sizes = node.attributes.get("normalized_shape")
        if sizes is not None and all(isinstance(n, int) for n in sizes):
            self.normalized_shape = tuple(sizes)

    def forward(self, _x: Any, result: Any) -> Any:
        """The result: hooks hear of both."""
        return result


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a norm is called: the values that it takes and gives, and its switch, if it has one."""

    layer: OnnxNorm
    source: str
    result: str
    switch: str


class OnnxModel(nn.Module):
    """Runs an ONNX model by onnxruntime, node for node as the file has it, and then its norms.

    The session is made when it is first needed.
    """

    def __init__(self, proto: Any) -> None:
        super().__init__()
        self.hidden = [proto]  # copied for the session, and only read
        self.inputs = inputs_of(proto)
        self.outputs = [output.name for output in proto.graph.output]
        self.made = {name for node in proto.graph.node for name in node.output}
        self.norms = nn.ModuleList()
        self.places: list[_Place] = []
        self.calls: dict[str, tuple[str, Call]] = {}
        self._session: Any = None
        self._affordable: int | None = None
        self._takes_more: bool | None = None

    def gives(self, value: str) -> bool:
        """Whether a value is known after a run."""
        return value in self.made or any(value == given.name for given in self.inputs)

    def add(self, layer: OnnxNorm, site: NormSite, call: Call) -> None:
        """A call of a norm to tell the layer of."""
        if layer not in self.norms:
            self.norms.append(layer)
        result, switch = call.end.output[0], ""
        one = site.mean is not None and site.mean.dim() == 1
        if call.end.op_type == "BatchNormalization" and one:
            switch = f"normkit/switch/{list(self.norms).index(layer)}"
            self.calls[result] = switch, call
        self.places.append(_Place(layer, call.source, result, switch))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs, as tensors; one alone, or a tuple.

        Raises:
            DataError: the inputs are not the model's.
            ModelError: onnxruntime does not run models like this one.
        """
        feeds = arrays_for(self.inputs, args, kwargs)
        values = {name: _tensor(value) for name, value in self._run(feeds).items()}
        results = tuple(values[name] for name in self.outputs)
        for place in self.places:
            place.layer(values[place.source], values[place.result])
        return results[0] if len(results) == 1 else results

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """A batch in parts that the model takes, and that fit into memory with what is heard."""
        fixed = batch_size(self.inputs, batch.args, batch.kwargs)
        if fixed is not None and self._takes_more is None and batch.samples >= 2 * fixed:
            self._takes_more = self._is_same_together(batch, fixed)
            self.inputs = free(self.inputs) if self._takes_more else self.inputs
            fixed = None if self._takes_more else fixed
        if fixed is None and self._affordable is None and batch.samples > _FEWEST:
            self._affordable = self._within_memory(batch)
        size = fixed or self._affordable
        return iter([batch]) if size is None else cut(batch, size)

    def _is_same_together(self, batch: Batch, size: int) -> bool:
        """Whether a model for batches of one size gives as much for two of them at once."""
        parts = [next(cut(batch, 2 * size)), *islice(cut(batch, size), 2)]
        inputs = free(self.inputs)
        try:
            both, *each = (self._run(arrays_for(inputs, p.args, p.kwargs)) for p in parts)
        except RuntimeError:  # its inner shapes are fixed, too
            return False
        names = dict.fromkeys((*self.outputs, *self._heard()))
        return all(is_joined(both[n], [values[n] for values in each]) for n in names)

    def _within_memory(self, batch: Batch) -> int:
        """Samples of which all that is heard may be held at once."""
        arrays_for(self.inputs, batch.args, batch.kwargs)  # what is wrong is said of the whole
        one = next(cut(batch, 1))
        try:
            heard = self._run(arrays_for(self.inputs, one.args, one.kwargs))
        except RuntimeError:
            return batch.samples
        each = sum(v.nbytes for v in heard.values() if isinstance(v, np.ndarray))
        return max(_HELD // max(each, 1), _FEWEST)

    def _run(self, feeds: Arrays) -> dict[str, Any]:
        if self._session is None:
            self._session = self._open()
        for place in self.places:
            if place.switch:
                on = place.layer.batch_statistics or place.layer.training
                feeds[place.switch] = np.array(on)
        names = list(dict.fromkeys((*self.outputs, *self._heard())))
        try:
            return feeds | dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # onnxruntime's own classes, which have no base
            raise RuntimeError(str(error)) from error

    def _heard(self) -> list[str]:
        names = [name for place in self.places for name in (place.source, place.result)]
        return [name for name in names if name in self.made]

    def _open(self) -> Any:
        """A session of a copy that gives what goes through the norms, too."""
        proto = self.hidden[0]
        copied = type(proto)()
        copied.CopyFrom(proto)
        free_batch(copied)
        switchable(copied, self.calls)
        for name in dict.fromkeys(self._heard()):
            if name not in self.outputs:
                copied.graph.output.append(needed("onnx").ValueInfoProto(name=name))
        with contextlib.ExitStack() as stack:
            try:
                session = stack.enter_context(session_of(copied, optimized=False))
            except Exception as error:  # onnxruntime's own classes, which have no base
                raise ModelError(
                    "onnxruntime does not run this model",
                    received=first_line(error),
                    expected="operators and versions that it has",
                    remedy="Update onnxruntime, or audit the file without data.",
                ) from error
            weakref.finalize(self, stack.pop_all().close)
        return session


def _tensor(value: Any) -> Any:
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return torch.from_numpy(value) if numbers else value
