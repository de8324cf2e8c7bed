"""What a report shows of every norm, and of the network around them."""

from __future__ import annotations

from typing import Any

from normkit.models.auditing.evidence import Evidence, Observation
from normkit.models.auditing.findings import LayerRecord
from normkit.models.graphs.graph import Graph
from normkit.models.sites import NormSite

__all__ = ["layer_records", "network_map"]


def layer_records(evidence: Evidence) -> list[LayerRecord]:
    """One a norm, in the order of the model."""
    seen = evidence.study.layers if evidence.study else {}
    return [_record(site, seen.get(site.name)) for site in evidence.sites]


def _record(site: NormSite, seen: Observation | None) -> LayerRecord:
    one = site.mean is None or site.mean.dim() == 1  # not several domains
    record: dict[str, Any] = {
        "gamma": _row(site.gamma),
        "beta": _row(site.beta),
        "running_mean": _row(site.mean) if one else [],
        "running_var": _row(site.var) if one else [],
        "eps": site.eps,
    }
    if seen is not None:
        record |= {"samples": seen.samples, "edges": list(seen.edges), "counts": list(seen.counts)}
        if seen.input is not None:
            moments = seen.input.elements
            record |= {
                "elements": int(moments.count),
                "fresh_mean": _row(moments.mean),
                "fresh_var": _row(moments.population_var),
            }
    return LayerRecord(site.name, site.kind, site.type_name, site.channels, **record)


def _row(tensor: Any) -> list[float]:
    """Numbers by channel; none of what is not there."""
    if tensor is None or tensor.is_meta or not tensor.is_floating_point():
        return []
    return tensor.detach().double().cpu().flatten().tolist()


def network_map(
    graph: Graph | None,
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """The nodes (name, op, the norm's site or "") and the edges between their names.

    What only reckons with shapes is left out: it is not part of how data flows.
    """
    if graph is None:
        return [], []
    shapes = _shapes(graph)
    kept = [node for node in graph if node.name not in shapes]
    nodes = [(node.name, node.op, node.target if node.op == "norm" else "") for node in kept]
    names = {node.name for node in kept}
    edges = [(source, node.name) for node in kept for source in dict.fromkeys(node.inputs)]
    return nodes, [(a, b) for a, b in edges if a in names]


_SIZES = ("size", "dim", "Shape", "Size", "sym_size")  # PyTorch's methods, ONNX's operators
_FACTS = ("shape", "ndim", "dtype", "device")  # attributes of a tensor that hold no data of it


def _shapes(graph: Graph) -> set[str]:
    """Nodes whose results are sizes, or follow from sizes alone."""
    found: set[str] = set()
    for node in graph:
        asked = node.function.split(".")[0] in _SIZES or (
            node.function == "getattr" and node.attributes.get("args") in [(f,) for f in _FACTS]
        )
        reckoned = bool(node.inputs) and found.issuperset(node.inputs) and node.op != "norm"
        if asked or (reckoned and node.op != "output"):
            found.add(node.name)
    return found
