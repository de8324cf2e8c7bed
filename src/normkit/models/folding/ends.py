"""The two ends of a fold: a norm that does the same to every input, and a layer to take it in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from normkit.models.folding.algebra import Affine, Layer, affine_of
from normkit.models.folding.passing import Blocked, Layout, Passage
from normkit.models.graphs.graph import Node
from normkit.models.sites import NormSite

__all__ = [
    "LAYER_OPS",
    "Form",
    "called",
    "check_passage",
    "entered",
    "ranks_of",
    "spread",
    "usable",
]

#: What a norm can go into.
LAYER_OPS = ("conv", "conv_transpose", "linear")


@dataclass(frozen=True)
class Form:
    """What a format adds to a NormSite.

    Args:
        axis: of the channels; -1 for the last.
        tail: what the layer does behind the norm itself, such as ``"ReLU"``; "" for nothing.
    """

    axis: int = 1
    tail: str = ""


def called(node: Node) -> str:
    """A node's name for people."""
    return node.target or node.function or node.name


def usable(site: NormSite) -> Affine:
    """The norm's scale and shift.

    Raises:
        Blocked: it has none that stay the same for every input, or unusable ones.
    """
    if site.kind == "other":
        raise Blocked(f"{site.type_name} is no norm with a scale and a shift of its own")
    if site.channels is None:
        raise Blocked("it does not know its channels")
    if site.uses_batch or (site.tracks and site.training and not site.frozen):
        if site.tracks:
            raise Blocked("it is in training mode: call eval() first")
        raise Blocked("it keeps no running statistics: every batch is normalized with its own")
    if not site.tracks and site.gamma is None and site.beta is None:
        raise Blocked("it has neither gamma nor beta: there is nothing to fold")
    if site.mean is not None and site.mean.dim() > 1:
        raise Blocked("it keeps running statistics for more than one domain")
    held = [t for t in (site.gamma, site.beta, site.mean, site.var) if t is not None]
    if any(t.is_meta for t in held):
        raise Blocked("its tensors are on the meta device, without values")
    if not all(bool(t.isfinite().all()) for t in held):
        raise Blocked("its tensors hold NaN or infinity")
    if site.tracks:
        assert site.var is not None
        if bool((site.var < 0).any()) or bool((site.var + (site.eps or 0.0) <= 0).any()):
            raise Blocked("its running variance is negative, or zero without eps")
    affine = affine_of(site)
    if any(len(v) != site.channels for v in (affine.scale, affine.shift)):
        raise Blocked("its gamma or beta is not one value for each channel")
    return affine


def ranks_of(site: NormSite, form: Form) -> tuple[int, ...]:
    """How many axes its input may have, the likeliest first."""
    if form.axis == -1:
        return (3, 2, 4, 5)
    if site.dims is not None and site.dims > 1:
        return (site.dims + 2,)
    return (2, 3) if site.dims == 1 else (4, 3, 2, 5)


def spread(affine: Affine, layout: Layout, node: Node, layer: Layer) -> Affine:
    """A value for each of the layer's inputs."""
    axis = layout.rank - 1 if node.op == "linear" else 1
    if layout.axis != axis or (node.op == "conv" and layer.weight.dim() != layout.rank):
        raise Blocked(f"the {node.op} there mixes another axis than that of the channels")
    times = layer.inputs // (len(affine.scale) * (layout.outer or 1) * (layout.inner or 1))
    outer = times if layout.outer is None else layout.outer
    inner = times if layout.inner is None else layout.inner
    if outer * inner * len(affine.scale) != layer.inputs:
        raise Blocked(f"{called(node)} has {layer.inputs} inputs for {len(affine.scale)} channels")
    return affine.repeated(outer, inner)


def entered(passage: Passage, node: Node, layer: Layer) -> Passage:
    """The passage through the layer's own padding."""
    padding = node.attributes.get("padding", 0)
    amounts = padding if isinstance(padding, (tuple, list)) else (padding,)
    if padding == "same":
        amounts = tuple(size - 1 for size in layer.weight.shape[2:])
    zeros = node.attributes.get("padding_mode", "zeros") == "zeros"
    if node.op == "linear" or not zeros or padding == "valid" or not any(amounts):
        return passage
    why = f"{called(node)} pads with zeros, which a shift would not reach"
    return replace(passage, shift_stop=passage.shift_stop or why)


def check_passage(passage: Passage, affine: Affine) -> None:
    """Scale and shift come through.

    Raises:
        Blocked: they do not.
    """
    if passage.shift_stop and affine.has_shift:
        raise Blocked(passage.shift_stop)
    if passage.order_stop and not affine.keeps_order:
        raise Blocked(passage.order_stop)
