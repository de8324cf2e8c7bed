"""ONNX: a norm within a model, of one node or of several small ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normkit.errors import ModelError
from normkit.extras import needed
from normkit.models.graphs.onnx_model import read_onnx_graph
from normkit.models.graphs.onnx_values import Values, attributes_of
from normkit.models.graphs.reading import Call
from normkit.models.porting.frameworks.base import Framework, refuse
from normkit.models.porting.frameworks.onnx_edit import assign, new_model, one_norm
from normkit.models.porting.frameworks.torch_nn import weights_of_site
from normkit.models.porting.parity import Outcome
from normkit.models.porting.weights import NormWeights, whole_sizes
from normkit.models.sites import NormSite

__all__ = ["Onnx", "Within"]

Array = Any


@dataclass(frozen=True, eq=False)
class Within:
    """A norm within an ONNX model: its site, its call, and what the graph says of its input."""

    proto: Any
    site: NormSite
    call: Call | None
    attributes: Mapping[str, Any]
    obstacle: str = ""


class Onnx(Framework):
    """onnx.ModelProto."""

    name = "onnx"

    def owns(self, source: Any) -> bool:
        proto = type(source).__name__ == "ModelProto" and hasattr(source, "opset_import")
        return proto or isinstance(source, Within)

    def version(self) -> str:
        return f"ONNX {needed('onnx').__version__}"

    def is_layer(self, source: Any) -> bool:
        """A model that is one norm and nothing else."""
        return isinstance(source, Within) or len(self.layers(source)) == len(source.graph.node) == 1

    def layers(self, model: Any) -> list[tuple[str, Any]]:
        reading = read_onnx_graph(model)
        nodes = {node.target: node for node in reading.graph if node.op == "norm"}
        return [(site.name, _within(model, site, nodes, reading)) for site in reading.sites]

    def read(self, layer: Any, name: str = "") -> NormWeights:
        found = self._found(layer)
        name = name or found.site.name
        if found.obstacle:
            refuse(
                "onnx",
                name,
                f"{found.site.type_name}: {found.obstacle}",
                "Export the model with constant weights, and its norms at the top level.",
            )
        _check_not_reshaped(found, name)
        site = replace(found.site, name=name, **_gains(found, name))
        weights = weights_of_site(site, "onnx")
        shape = found.attributes.get("shape")
        if weights.kind in ("layer", "rms"):
            _check_span(weights, found.attributes.get("normalized_shape"))
            return weights
        _check_channels(weights, shape)
        dims = None if shape is None else len(shape) - 2
        variance = "biased" if weights.kind == "batch" else None
        noted = weights.noted("in training mode in the model" if site.training else "")
        return replace(noted, dims=dims, variance=variance)

    def write(self, weights: NormWeights) -> Any:
        return new_model(weights)

    def run(self, layer: Any, weights: NormWeights, x: Array, training: bool) -> Outcome:
        found = self._found(layer)
        assert found.call is not None
        trains = training and weights.kind == "batch"
        model, source = one_norm(found.proto, found.call, trains)
        given = x
        if weights.kind in ("layer", "rms"):  # axes may count from the front
            between = _rank(found, weights) - x.ndim
            given = x.reshape(x.shape[0], *[1] * between, *weights.shape)
        evaluator = needed("onnx.reference").ReferenceEvaluator(model)
        y, *after = evaluator.run(None, {source: given})
        return Outcome(np.asarray(y, np.float64).reshape(x.shape), *after)

    def assign(self, model: Any, weights: Mapping[str, NormWeights]) -> Any:
        layers = dict(self.layers(model))
        calls = {}
        for name in weights:
            found = layers[name]
            if found.obstacle or found.call is None:
                refuse("onnx", name, found.obstacle, "Export the model with constant weights.")
            calls[name] = found.call
        return assign(model, calls, weights)

    def holds(self, weights: NormWeights) -> NormWeights:
        if weights.dtype == np.float32:
            return weights
        return weights.rounded(np.float32).noted("float64 rounded to float32")

    def unknown_rank(self, weights: NormWeights) -> str:
        ranked = weights.kind not in ("layer", "rms") and weights.dims is None
        return "an ONNX model has a number of axes" if ranked else ""

    def _found(self, layer: Any) -> Within:
        return layer if isinstance(layer, Within) else self.layers(layer)[0][1]


def _within(model: Any, site: NormSite, nodes: Mapping[str, Any], reading: Any) -> Within:
    node = nodes.get(site.name)
    if node is None:
        return Within(
            model, site, None, {}, reading.hidden.get(site.name, "it is not in the graph")
        )
    return Within(model, site, reading.calls[node.name], node.attributes, node.obstacle)


def _check_not_reshaped(found: Within, name: str) -> None:
    """PyTorch's exporter writes a group norm as an instance norm of groups between two Reshapes.

    Their sizes hold for one shape alone, and gamma and beta come behind them.
    """
    if found.site.kind != "instance" or found.call is None:
        return
    maker = Values(found.proto).makers.get(found.call.source)
    if maker is not None and maker.op_type == "Reshape":
        refuse(
            "onnx",
            name,
            "InstanceNormalization behind a Reshape: a group norm in small operators",
            "Port the model that was exported, or export it with opset 21 or newer, which has "
            "GroupNormalization.",
        )


def _gains(found: Within, name: str) -> dict[str, Any]:
    """Gains of a group norm before opset 21 are one a group; made one a channel."""
    site = found.site
    if site.kind != "group" or site.gamma is None or Values(found.proto).opset >= 21:
        return {}
    shape = found.attributes.get("shape") or (None, None)
    (channels,) = whole_sizes((shape[1],), name)
    each = channels // site.gamma.numel()
    return {
        role: None if value is None else value.repeat_interleave(each)
        for role, value in (("gamma", site.gamma), ("beta", site.beta))
    }


def _rank(found: Within, weights: NormWeights) -> int:
    """Axes of the input of a layer or RMS norm."""
    shape = found.attributes.get("shape")
    axis = attributes_of(found.call.end).get("axis", -1) if found.call is not None else -1
    counted = len(weights.shape) + (axis if axis >= 0 else 1)
    return counted if shape is None else len(shape)


def _check_span(weights: NormWeights, sizes: Any) -> None:
    """The axes that are normalized over are those that gamma has."""
    pairs = zip(sizes or (), weights.shape, strict=False)
    if sizes is not None and (
        len(sizes) != len(weights.shape)
        or any(isinstance(one, int) and one != other for one, other in pairs)
    ):
        refuse(
            "onnx",
            weights.name,
            f"a norm over sizes {sizes} with gains of {weights.shape}",
            "Give it a gain for every element that it spans.",
        )


def _check_channels(weights: NormWeights, shape: Any) -> None:
    second = shape[1] if shape is not None and len(shape) > 1 else None
    if isinstance(second, int) and second != weights.size:
        raise ModelError(
            "The weights do not fit the channels of the input",
            received=f"{weights.size} for an input of shape {shape} ({weights.name})",
            expected=f"{second}",
            remedy="The file is damaged, or channels do not lie at axis 1.",
        )
