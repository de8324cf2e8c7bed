"""The nodes of batch norm's graph: what each computes, its gradient, and why.

The names are those of :class:`normkit.trace.Trace`; formulae are in the TeX of
:mod:`normkit.explain.formula`. The page's cards, its derivation and the terminal read from here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EDGES", "NODES", "Node"]


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        name: of its value; its gradient is ``d_`` and the name, for x ``dx``.
        symbol: in formulae.
        forward, backward: the formula, and that of its gradient.
        plain: the gradient's formula for the terminal.
        words: what it is.
        why: what the chain rule says of the step; "" for what the user puts in.
        sources: the nodes that it is computed from.
        passes: formulae of what it hands back to them.
        step: 1 to 9; 0 for what the user puts in.
        statistic: one number a channel, and not one an element.
    """

    name: str
    symbol: str
    forward: str
    backward: str
    plain: str
    words: str
    why: str = ""
    sources: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    step: int = 0
    statistic: bool = False

    @property
    def gradient(self) -> str:
        return "dx" if self.name == "x" else f"d_{self.name}"


#: In the order of the forward pass.
NODES = (
    Node(
        "x", "x", "x", r"dx = dc + \frac{1}{m} d\mu", "d_centered + d_mean / m",
        "what comes in; change it",
    ),
    Node(
        "mean", r"\mu", r"\mu = \frac{1}{m} \sum_S x", r"d\mu = -\sum_S dc", "-sum(d_centered)",
        "the mean of the batch",
        "A mean hands each of its m terms 1/m of its gradient. That is added to what x gets from "
        "step 2, and the gradient of x is complete.",
        ("x",),
        (r"dx = dx_1 + \frac{1}{m} d\mu",),
        1, True,
    ),
    Node(
        "centered", "c", r"c = x - \mu", r"dc = i \, d\hat x + 2 c \, dq",
        "inverse * d_normalized + 2 * centered * d_squared",
        "the distance from the mean",
        "A difference hands its gradient on to x as it is, and to the mean with the sign turned. "
        "Every element of S has used the mean, so the mean gets a sum over S.",
        ("x", "mean"),
        ("dx_1 = dc", r"d\mu = -\sum_S dc"),
        2,
    ),
    Node(
        "squared", "q", "q = c^2", r"dq = \frac{1}{m} dv", "d_var / m",
        "its square",
        "The derivative of a square is twice what was squared. This is the second share of c; it "
        "was used in step 7 as well, and where a value is used twice its gradients add up.",
        ("centered",),
        (r"dc_2 = 2 c \, dq", "dc = dc_1 + dc_2"),
        3,
    ),
    Node(
        "var", "v", r"v = \frac{1}{m} \sum_S q", r"dv = \frac{ds}{2 s}", "d_std / (2 * std)",
        "the variance, divided by m",
        "A mean again: each of the m squares gets 1/m of the variance's gradient.",
        ("squared",),
        (r"dq = \frac{1}{m} dv",),
        4, True,
    ),
    Node(
        "std", "s", r"s = \sqrt{v + \varepsilon}", r"ds = -\frac{di}{s^2}", "-d_inverse / std ** 2",
        "the deviation, kept off zero by ε",
        "The derivative of a root is one over twice the root. ε is a constant: it shifts what "
        "stands below the root, and has no gradient that anyone needs.",
        ("var",),
        (r"dv = \frac{ds}{2 s}",),
        5, True,
    ),
    Node(
        "inverse", "i", r"i = \frac{1}{s}", r"di = \sum_S c \, d\hat x",
        "sum(centered * d_normalized)",
        "one over it",
        "The derivative of 1/s is −1/s².",
        ("std",),
        (r"ds = -\frac{di}{s^2}",),
        6, True,
    ),
    Node(
        "normalized", r"\hat x", r"\hat x = c \, i", r"d\hat x = \gamma \, dh", "gamma * d_scaled",
        "mean 0, variance v/(v + ε)",
        "A product hands each factor the gradient times the other factor. All m elements have used "
        "the one number i, so its gradient is a sum over S. For c this is the first of two shares.",
        ("centered", "inverse"),
        (r"di = \sum_S c \, d\hat x", r"dc_1 = i \, d\hat x"),
        7,
    ),
    Node(
        "gamma", r"\gamma", r"\gamma", r"d\gamma = \sum_S \hat x \, dh",
        "sum(normalized * d_scaled)", "the new scale; learned",
        statistic=True,
    ),
    Node(
        "scaled", "h", r"h = \gamma \, \hat x", "dh = dy", "d_out",
        "scaled",
        "A product again: x̂ gets the gradient times γ. All m elements have used γ, so γ gets the "
        "sum of gradient times x̂ over S.",
        ("normalized", "gamma"),
        (r"d\hat x = \gamma \, dh", r"d\gamma = \sum_S \hat x \, dh"),
        8,
    ),
    Node(
        "beta", r"\beta", r"\beta", r"d\beta = \sum_S dy", "sum(d_out)", "the new mean; learned",
        statistic=True,
    ),
    Node(
        "out", "y", r"y = h + \beta", r"dy = \frac{\partial \loss}{\partial y}", "given",
        "what goes out; the loss sends dy back, which you can change",
        "A sum hands its gradient to both sides as it is. All m elements have used β, so β gets "
        "the sum over S.",
        ("scaled", "beta"),
        ("dh = dy", r"d\beta = \sum_S dy"),
        9,
    ),
)  # fmt: skip

#: (from, to), by name.
EDGES = tuple((source, node.name) for node in NODES for source in node.sources)
