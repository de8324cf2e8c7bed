"""Layer and RMS norms that an exporter wrote in small operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from normkit.models.graphs.onnx_values import Values, attributes_of

__all__ = ["Composite", "composites"]


@dataclass(frozen=True, eq=False)
class Composite:
    """A norm, of one node or of several.

    Args:
        kind: as of a NormSite.
        source: the value that it normalizes.
        parameters: values by their names in torch.nn.
        function: what it is called where no node says it.
        eps, axis: where they are no attributes of a node.
        inside: the nodes of it but for the last.
        plain: the normalized value, before gamma and beta.
    """

    kind: str
    source: str
    parameters: dict[str, str]
    function: str = ""
    eps: float | None = None
    axis: int | None = None
    inside: tuple[Any, ...] = ()
    plain: str = ""


def composites(graph: Any, values: Values) -> Iterator[tuple[str, Composite]]:
    """The norms in small operators, each by the name of its result.

    RMS norm: ``x * (1 / sqrt(mean(x * x) + eps)) * weight``; layer norm: the same of
    ``x - mean(x)``, and ``+ bias``.
    """
    matcher = _Matcher(values)
    taken: set[str] = set()
    for node in reversed(graph.node):
        name = node.output[0] if node.output else ""
        found = None if name in taken else matcher.norm(node)
        if found is not None:
            taken |= {n for inner in found.inside for n in inner.output}
            yield name, found


class _Matcher:
    def __init__(self, values: Values) -> None:
        self.values = values

    def norm(self, node: Any) -> Composite | None:
        """The norm that ends with this node."""
        if node.op_type == "Add":
            for gained, bias in _orders(node):
                scaled = self.maker(gained, "Mul", takers=1)
                found = self.scaled(scaled) if scaled is not None else None
                fits = found is not None and found.kind == "layer" and self.is_gain(bias, found)
                if found is not None and fits:
                    parameters = {**found.parameters, "bias": bias}
                    return replace(found, parameters=parameters, inside=(scaled, *found.inside))
        return self.scaled(node) if node.op_type == "Mul" else None

    def scaled(self, node: Any) -> Composite | None:
        for plain, weight in _orders(node):
            found = self.normalized(plain) if self.values.still(weight) else None
            if found is not None and self.is_gain(weight, found):
                return replace(found, parameters={"weight": weight}, plain=plain)
        return None

    def is_gain(self, name: str, found: Composite) -> bool:
        shape, source = self.values.shape(name), self.values.shape(found.source)
        assert found.axis is not None
        return bool(shape) and source is not None and source[found.axis :] == shape

    def normalized(self, name: str) -> Composite | None:
        """x / sqrt(mean(x * x) + eps), or this of x less its mean; used once."""
        node = self.maker(name, "Div", takers=1) or self.maker(name, "Mul", takers=1)
        if node is None:
            return None
        for x, other in _orders(node) if node.op_type == "Mul" else (tuple(node.input),):
            inverse = self.maker(other, "Reciprocal", takers=1)
            if (inverse is None) == (node.op_type == "Mul"):
                continue
            root = inverse.input[0] if inverse is not None else other
            chain = self.deviation(root, x)
            if chain is not None:
                eps, mean, inside = chain
                inside = (node, *([inverse] if inverse is not None else []), *inside)
                return self.centred(x, mean, eps, inside)
        return None

    def deviation(self, name: str, x: str) -> tuple[float, Any, tuple[Any, ...]] | None:
        """sqrt(mean(x * x) + eps): its eps, the mean's node, and all of its nodes."""
        root = self.maker(name, "Sqrt", takers=1)
        shifted = self.maker(root.input[0], "Add", takers=1) if root is not None else None
        for value, added in _orders(shifted) if shifted is not None else ():
            mean = self.maker(value, "ReduceMean", takers=1)
            eps = self.number(added)
            square = self.square(mean.input[0], x) if mean is not None else None
            if eps is not None and square is not None:
                return eps, mean, (root, shifted, mean, square)
        return None

    def square(self, name: str, x: str) -> Any:
        node = self.maker(name, "Mul", takers=1)
        if node is not None and tuple(node.input) == (x, x):
            return node
        node = self.maker(name, "Pow", takers=1)
        fits = node is not None and node.input[0] == x and self.number(node.input[1]) == 2
        return node if fits else None

    def centred(self, x: str, mean: Any, eps: float, inside: tuple[Any, ...]) -> Composite | None:
        axis = self.last_axes(mean)
        if axis is None:
            return None
        less = self.maker(x, "Sub", takers=2)
        middle = self.maker(less.input[1], "ReduceMean", takers=1) if less is not None else None
        if less is not None and middle is not None:
            inside = (*inside, less, middle)
            if middle.input[0] == less.input[0] and self.last_axes(middle) == axis:
                return Composite("layer", less.input[0], {}, "layer_norm", eps, axis, inside)
            return None
        return Composite("rms", x, {}, "rms_norm", eps, axis, inside)

    def last_axes(self, mean: Any) -> int | None:
        """The first of the axes of a mean, from the end, if they are the last ones."""
        said, shape = attributes_of(mean), self.values.shape(mean.input[0])
        axes = said.get("axes")
        if axes is None and len(mean.input) > 1:
            array = self.values.constant(mean.input[1])
            axes = None if array is None else array.reshape(-1).tolist()
        if not axes or not said.get("keepdims", 1):
            return None
        if shape is not None:
            axes = [a % len(shape) - len(shape) for a in axes]
        return min(axes) if sorted(axes) == list(range(min(axes), 0)) else None

    def maker(self, name: str, op: str, takers: int) -> Any:
        """The node that makes a value, if it is this operator and nothing else takes it."""
        node = self.values.makers.get(name)
        if node is None or node.op_type != op or node.domain not in ("", "ai.onnx"):
            return None
        hidden = name not in self.values.outputs
        return node if hidden and len(self.values.takers.get(name, ())) <= takers else None

    def number(self, name: str) -> float | None:
        array = self.values.constant(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _orders(node: Any) -> tuple[tuple[str, str], ...]:
    """The two inputs of an operator in which they may change places."""
    one, other = node.input
    return (one, other), (other, one)
