"""Rules that look at how norms and other layers follow each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from normkit.models.auditing.evidence import Evidence
from normkit.models.auditing.findings import Finding
from normkit.models.auditing.rule import NotEnoughError, Rule, rule
from normkit.models.auditing.rules.sets import is_pointwise, moving, positions
from normkit.models.graphs.graph import Graph, Node
from normkit.models.sites import NormSite
from normkit.words import counted

Findings = Iterator[Finding]

# --- a bias that the norm subtracts ---------------------------------------------------------------


@rule(
    needs=("graph",),
    severity="info",
    why="The batch's mean takes the bias away again: it has no effect and no gradient in training, "
    "and costs memory and time.",
)
def redundant_bias(self: Rule, evidence: Evidence) -> Findings:
    """A bias that only a batch norm with the batch's statistics sees.

    Layers between the two must hand a constant on as a constant of the same channel: reshapes that
    keep channels apart, maxima, averages without padding. Dropout does not.
    """
    graph = evidence.graph
    assert graph is not None
    for site in moving(evidence.sites):
        calls = graph.calls(site.name)
        if len(calls) != 1 or (site.module is None and not site.training):
            continue  # an exported model that will not be trained: folding is its matter
        layer = _layer_before(graph, calls[0], site)
        bias = None if layer is None else _bias(evidence, layer)
        if layer is None or bias is None:
            continue
        yield self.finding(
            site.name,
            f"{layer.target} has a bias of {counted(bias.numel(), 'element')} that only "
            f"{site.name} sees",
            f"Make {layer.target} with bias=False; in a trained model subtract the bias from "
            f"{site.name}.running_mean, or let normkit.models.fold(model) take both.",
            value=float(bias.numel()),
        )


def _layer_before(graph: Graph, norm: Node, site: NormSite) -> Node | None:
    """The convolution or linear layer of which the norm sees all, and nothing else does."""
    node, finer = norm, False
    while len(node.inputs) == 1:
        node = graph[node.inputs[0]]
        if graph.only_user(node.name) is None:
            return None
        if node.op in ("conv", "conv_transpose", "linear"):
            break
        if node.op == "reshape":
            if node.function in _MIXING:
                return None
            finer = True
        elif node.op not in ("identity", "pool_max") and not _is_even_average(node):
            return None
    if node.op not in ("conv", "conv_transpose", "linear"):
        return None
    if node.obstacle or not node.target or len(graph.calls(node.target)) != 1:
        return None
    given = node.attributes.get("out_channels", node.attributes.get("out_features"))
    if given is None or site.channels is None:
        return None
    fits = given == site.channels or (finer and site.channels % given == 0)
    return node if fits else None


_MIXING = ("PixelShuffle", "PixelUnshuffle", "pixel_shuffle", "pixel_unshuffle")


def _is_even_average(node: Node) -> bool:
    """Whether it makes an average of every constant that constant."""
    if node.op != "pool_average":
        return False
    known = node.attributes
    if "adaptive" in node.function.lower():
        return True
    return (
        known.get("padding") in (0, (0,), (0, 0), (0, 0, 0))
        and known.get("divisor_override") is None
    )


def _bias(evidence: Evidence, layer: Node) -> torch.Tensor | None:
    name = f"{layer.target}.bias"
    if name in evidence.tensors:
        return evidence.tensors[name]
    if evidence.model is None:
        return None
    module = dict(evidence.model.named_modules()).get(layer.target)
    return getattr(module, "bias", None)


# --- sets of one element --------------------------------------------------------------------------


@rule(
    needs=("weights",),
    severity="error",
    why="A set of one element is its own mean: the output is the constant beta, "
    "whatever the input is; of two, only the sign of their difference is left.",
)
def single_element_group(self: Rule, evidence: Evidence) -> Findings:
    """Group, instance and layer norms whose sets have one element or two."""
    unknown = False
    for site in evidence.sites:
        if site.kind not in ("group", "instance", "layer") or (site.tracks and not site.training):
            continue
        size = _set_size(evidence, site)
        if size is None:
            unknown = True
        elif size <= 2:
            said = "one element: the output is constant" if size == 1 else "two elements"
            yield self.finding(
                site.name,
                f"each set of this {site.type_name} has {said}",
                _remedy(site),
                severity="error" if size == 1 else "warning",
                value=float(size),
                threshold=3.0,
            )
    if unknown and evidence.graph is None and not evidence.shapes:
        raise NotEnoughError("the shapes inside the model: pass data=, or example=, an input")


def _set_size(evidence: Evidence, site: NormSite) -> int | None:
    if site.kind == "layer":
        return site.channels
    if site.kind == "group" and (site.groups is None or site.channels is None):
        return None
    each = 1 if site.kind == "instance" else (site.channels or 0) // (site.groups or 1)
    if each > 2:
        return each  # enough, wherever it stands
    shape = evidence.shapes.get(site.name)
    if shape is None:
        one = positions(evidence, site) == 1
        return each if one else None
    if site.kind == "instance" and site.dims and len(shape) == site.dims + 1:
        return math.prod(shape[1:])  # no batch: (C, L)
    return each * math.prod(shape[2:])


def _remedy(site: NormSite) -> str:
    if site.kind == "layer":
        return "Remove the layer, or normalize over more features."
    channels = site.channels or 1
    fits = f"at most {counted(channels // 4, 'group')}" if channels >= 4 else "no groups that fit"
    return (
        f"A norm of {counted(channels, 'channel')} can have {fits} here: "
        'normkit.models.convert(model, to="layer"), or torch.nn.Identity().'
    )


# --- norms in the wrong place ---------------------------------------------------------------------


@rule(
    needs=("graph",),
    severity="warning",
    why="A norm there undoes what the layer beside it says: the scale of logits, "
    "probabilities that sum to one, or another norm.",
)
def misplaced_norm(self: Rule, evidence: Evidence) -> Findings:
    """Batch norms on logits, on probabilities, and right behind another batch norm."""
    graph = evidence.graph
    assert graph is not None
    sites = {site.name: site for site in evidence.sites if site.kind == "batch"}
    for node in graph:
        site = sites.get(node.target) if node.op == "norm" else None
        if site is None:
            continue
        first = _norm_before(graph, node, sites)
        if first is not None:
            yield self.finding(
                site.name,
                f"nothing but a scale and shift of each channel lies between it and {first}",
                f"Replace {site.name} by torch.nn.Identity() and train on.",
            )
        elif _origin(graph, node, _NO_CHANGE).op == "softmax":
            yield self.finding(
                site.name,
                "it normalizes what softmax gives",
                f"Replace {site.name} by torch.nn.Identity(), or put it before the layer whose "
                "output goes into the softmax.",
            )
        elif _makes_logits(evidence, graph, node) and _ends_as_logits(graph, node, site):
            yield self.finding(
                site.name,
                f"it normalizes the {site.channels} outputs of the last layer",
                f"Replace {site.name} by torch.nn.Identity(), and give the layer before it a bias.",
            )


_NO_CHANGE = ("identity", "dropout", "reshape")


def _origin(graph: Graph, node: Node, through: tuple[str, ...]) -> Node:
    """What a node's input comes from, behind operations of the given kinds; itself for none."""
    start = node
    while len(node.inputs) == 1:
        node = graph[node.inputs[0]]
        if node.op not in through:
            return node
    return start


def _norm_before(graph: Graph, node: Node, sites: Mapping[str, NormSite]) -> str | None:
    """A batch norm of which this node normalizes a per-channel affine map that no other sees."""
    second = sites[node.target]
    while True:
        sources = [s for s in graph.sources(node.name) if s.op != "constant"]
        if len(sources) != 1 or graph.only_user(sources[0].name) is None:
            return None
        node = sources[0]
        if node.op == "norm":
            first = sites.get(node.target)
            live = first is not None and not first.frozen and not second.frozen
            return node.target if live and node.target != second.name else None
        if not _is_channelwise(node):
            return None


def _is_channelwise(node: Node) -> bool:
    """Whether its output is a scale times its input plus a shift, channel by channel."""
    if node.op in ("add", "multiply"):
        return not node.obstacle  # of one operand: the others are constants
    if node.op in ("identity", "dropout"):
        return True
    known = node.attributes
    width = known.get("groups")
    alone = is_pointwise(node) and width == known.get("in_channels") == known.get("out_channels")
    return alone and width is not None


def _makes_logits(evidence: Evidence, graph: Graph, node: Node) -> bool:
    source = _origin(graph, node, _NO_CHANGE)
    if source.op == "linear":
        return True
    site = next(site for site in evidence.sites if site.name == node.target)
    return is_pointwise(source) and positions(evidence, site) == 1


def _ends_as_logits(graph: Graph, node: Node, site: NormSite) -> bool:
    """Whether the model's output is the norm's, or its probabilities.

    A norm at the end of an embedding is usual and right (faces, contrastive learning): no gamma,
    or a power of two from 64, is taken for that unless probabilities follow.
    """
    probabilities = False
    while True:
        users = graph.users(node.name)
        if len(users) != 1:
            return False
        node = users[0]
        if node.op == "output":
            break
        if node.op == "softmax" or _is_sigmoid(node):
            probabilities = True
        elif node.op not in ("identity", "reshape"):
            return False
    if not _is_the_models(graph, node):
        return False
    width = site.channels or 0
    embeds = site.gamma is None or (width >= 64 and width & (width - 1) == 0)
    return probabilities or not embeds


def _is_sigmoid(node: Node) -> bool:
    return node.op == "activation" and node.function.lower() in ("sigmoid", "sigmoid_")


def _is_the_models(graph: Graph, output: Node) -> bool:
    """Whether an output is the whole model's, not that of an island in an untraceable one."""
    unknown: dict[str, Any] = graph.unknown
    if not unknown:
        return True
    ends = [node for node in graph if node.op == "output"]
    return "" not in unknown and output is ends[-1]
