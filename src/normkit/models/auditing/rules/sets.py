"""What several rules ask of a norm: its numbers, and the set that its statistics are taken over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from normkit.models.auditing.evidence import Evidence
from normkit.models.graphs.graph import Graph, Node
from normkit.models.sites import NormSite
from normkit.words import counted

__all__ = [
    "OFF",
    "SHARE",
    "channels_where",
    "is_initial",
    "learns_statistics",
    "listed",
    "moving",
    "named",
    "never_moves",
    "numbers",
    "option",
    "positions",
    "samples_in_a_set",
]

Tensor = torch.Tensor

#: Of a layer's channels: below it, a fault that a channel alone may have by chance is not reported.
SHARE = 0.05
#: Divergence from which statistics count as off: a mean by a fifth of a standard deviation, or a
#: variance by a quarter.
OFF = 0.02


# --- values ---------------------------------------------------------------------------------------


def numbers(tensor: Tensor | None) -> Tensor | None:
    """The values in float64 on the CPU; None where there are none to look at."""
    if tensor is None or tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return None
    return tensor.detach().to("cpu", torch.float64)


def channels_where(mask: Tensor) -> tuple[int, ...]:
    """Channels at which a mask holds, in any of a layer's domains."""
    found = mask.reshape(-1, mask.shape[-1]).any(0)
    return tuple(int(c) for c in found.nonzero().flatten())


def is_initial(site: NormSite) -> bool:
    """Whether the running statistics are exactly those that a new layer has."""
    mean, var = numbers(site.mean), numbers(site.var)
    if mean is None or var is None:
        return False
    return not bool(mean.any()) and bool((var == 1).all())


def option(site: NormSite, name: str) -> Any:
    """An option of a normkit layer; None for other layers."""
    return getattr(getattr(site.module, "options", None), name, None)


# --- words ----------------------------------------------------------------------------------------


def listed(channels: Sequence[int]) -> str:
    """Channels, for people.

    >>> listed([3]), listed(range(3)), listed(range(10))
    ('channel 3', 'channels 0, 1, 2', 'channels 0, 1, 2, 3 and 6 more')
    """
    first = ", ".join(map(str, channels[:4]))
    more = f" and {len(channels) - 4} more" if len(channels) > 4 else ""
    return f"channel{'s' if len(channels) > 1 else ''} {first}{more}"


def named(sites: Sequence[NormSite]) -> str:
    """How many norms, and which.

    >>> named([NormSite("bn1", "batch", ""), NormSite("bn2", "batch", "")])
    '2 norms (bn1, bn2)'
    """
    names = ", ".join(site.name or "the model itself" for site in sites[:3])
    more = ", …" if len(sites) > 3 else ""
    return f"{counted(len(sites), 'norm')} ({names}{more})"


# --- which norms, over which elements -------------------------------------------------------------


def moving(sites: Iterable[NormSite]) -> list[NormSite]:
    """The norms that take their statistics from the batch when the model is trained."""
    return [site for site in sites if site.kind == "batch" and not site.frozen]


def learns_statistics(site: NormSite) -> bool:
    """Whether batches move its running statistics in training mode."""
    return site.kind in ("batch", "instance") and site.tracks and not site.frozen


def never_moves(site: NormSite) -> bool:
    """Whether its momentum of 0 keeps batches from moving the running statistics.

    A program that was exported for inference has 0 also where there was a cumulative average.
    """
    return site.momentum == 0 and (site.module is not None or site.training)


def samples_in_a_set(site: NormSite, samples: int, world_size: int | None) -> int | None:
    """Samples in the smallest set of a batch; None for ranks together, not known how many.

    Args:
        samples: of a batch on one rank.
    """
    if site.synced:
        if world_size is None:
            return None
        samples *= world_size
    ghost = option(site, "ghost")
    return samples if not ghost or samples < ghost else samples % ghost or int(ghost)


def positions(evidence: Evidence, site: NormSite) -> float | None:
    """Elements that one sample gives to one channel of a batch norm; None where it is not known."""
    study, shape = evidence.study, evidence.shapes.get(site.name)
    seen = study.layers.get(site.name) if study else None
    if study and study.samples and seen and seen.input:
        count = float(torch.as_tensor(seen.input.elements.count, dtype=torch.float64).max())
        return count / study.samples / max(seen.calls, 1)
    if shape is not None and len(shape) > 1:
        # A layer may see several rows of each sample: none sees less than one.
        batch = min(other[0] for other in evidence.shapes.values() if other)
        return math.prod(shape[2:]) * shape[0] / batch if batch else None
    return 1.0 if evidence.graph is not None and _sees_rows(evidence.graph, site) else None


_SAME_SHAPE = ("activation", "dropout", "identity", "norm", "softmax")


def _sees_rows(graph: Graph, site: NormSite) -> bool:
    """Whether the graph alone shows that each sample is one row, or one pixel, to the norm."""
    calls = graph.calls(site.name)
    return bool(calls) and all(_is_row(graph, call) for call in calls)


def _is_row(graph: Graph, node: Node) -> bool:
    past_linear = False
    while len(node.inputs) == 1:
        node = graph[node.inputs[0]]
        if node.op == "linear":
            past_linear = True
        elif node.op == "input":
            return past_linear
        elif _flattens(node):
            return True
        elif _leaves_a_pixel(node):
            return not past_linear  # a linear layer there would mix positions, not channels
        elif node.op not in _SAME_SHAPE and not (is_pointwise(node) and not past_linear):
            return False
    return False


def _flattens(node: Node) -> bool:
    """Whether its result is (samples, features)."""
    if node.op != "reshape":
        return False
    args = node.attributes.get("args", ())
    if node.function.lower() == "flatten":
        start = node.attributes.get("start_dim", args[0] if args else 0)
        end = node.attributes.get("end_dim", args[1] if len(args) > 1 else -1)
        return start == 1 and end == -1
    if node.function in ("view", "reshape"):
        sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        return len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] == -1
    return False


def _leaves_a_pixel(node: Node) -> bool:
    if node.op in ("pool_average", "pool_max") and "adaptive" in node.function.lower():
        args = node.attributes.get("args", ())
        size = node.attributes.get("output_size", args[0] if args else None)
        return size is not None and all(s == 1 for s in _several(size))
    if node.function == "mean":
        args = node.attributes.get("args", ())
        over = node.attributes.get("dim", args[0] if args else ())
        return set(_several(over)) in ({2, 3}, {-2, -1})
    return False


def is_pointwise(node: Node) -> bool:
    """Whether it is a convolution that looks at one position at a time."""
    known = node.attributes
    if node.op != "conv" or "kernel_size" not in known:
        return False
    return all(k == 1 for k in _several(known["kernel_size"])) and not any(
        p != 0 for p in _several(known.get("padding", 0)) if not isinstance(p, str)
    )


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
