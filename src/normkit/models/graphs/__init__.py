"""What a model computes and in which order: one graph, read from modules, programs and ONNX."""

from __future__ import annotations

from normkit.models.graphs.graph import OPS, Graph, Node
from normkit.models.graphs.module import trace

__all__ = ["OPS", "Graph", "Node", "trace"]
