"""insert(): batch norm added to a network that computes the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normkit.errors import ModelError
from normkit.models.batches import Batch, Forward, call
from normkit.models.conversion.catalogue import BATCH, LIBRARIES, SYNC
from normkit.models.conversion.surroundings import recorded
from normkit.models.folding.replacing import Edits
from normkit.models.graphs.module import trace
from normkit.models.inserting.measuring import Measured, measure
from normkit.models.inserting.pairs import (
    compared,
    deviation,
    dims_of,
    op_of,
    pairs_of,
    sayer,
)
from normkit.models.measuring.undisturbed import undisturbed
from normkit.models.proof import copied
from normkit.models.selecting import chosen
from normkit.torch.options import check_choice
from normkit.words import counted, listed

__all__ = ["insert"]

Tensor = torch.Tensor
After = str | type | Iterable[str | type] | Callable[[str, nn.Module], Any]


def insert(
    model: nn.Module,
    after: After,
    data: Any,
    *,
    kind: str = "batch",
    drop_bias: bool = False,
    layers: str = "normkit",
    forward: Forward | None = None,
    inplace: bool = False,
    report: Callable[[str], Any] | None = print,
) -> Any:
    """Add batch norm behind layers without changing what the network computes.

    The mean and variance of each layer's output over all the data become the running statistics;
    with γ = √(variance + ε) and β = mean, the norm gives back what comes in: exactly, but for
    rounding, in eval mode. In training it normalizes with the batch's statistics, which differ from
    these by chance.

    A layer ``x`` is replaced by an ``nn.Sequential`` of ``layer``, itself, and ``norm``: in
    ``state_dict``, ``x.weight`` becomes ``x.layer.weight``, beside ``x.norm.weight`` and so on. The
    norm learns; its tensors have the layer's dtype, but float32 behind bfloat16 and float16.

    Args:
        model: as it was trained.
        after: layers by name, by pattern (``"features.*"``), by type (``"conv"``,
            ``"conv_transpose"``, ``"linear"``, or a class), several of these, or a function of name
            and module. Patterns and types leave layers alone that a norm follows already.
        data: batches, as of :func:`normkit.models.batches.batches_of`; at least one. The model sees
            all of it once, in eval mode.
        kind: ``"batch"`` or ``"sync"``.
        drop_bias: leave the layers' biases out, which a batch norm makes redundant; mean and beta
            take account of it.
        layers: whose norms: ``"normkit"`` or ``"torch"``.
        forward: calls the model on a batch of the data, ``forward(model, batch)``.
        inplace: change the model itself, not a copy.
        report: takes the lines that say what was done; None for silence.

    Returns:
        The model with norms. Where the model is itself the layer, a new one even with ``inplace``.

    Raises:
        ModelError: a layer cannot be followed by a batch norm (its features are not second, it is
            called more than once, no data reaches it), or the function is not the same.
        DataError: there is no batch, the model does not take it, or gives NaN or infinity on it.
        OptionError: no such kind or library.

    Nothing is changed where it raises.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> x = torch.randn(16, 3, 8, 8)
    >>> with_norms = insert(net, "conv", x, drop_bias=True)
    insert: 2 batch norms, behind 0, 2, with the statistics of 16 samples in 1 batch
    insert: 2 biases, which they make redundant, are gone
    insert: in state_dict, '0.weight' is now '0.layer.weight', beside '0.norm.weight' and others
    insert: verified on the first batch: outputs differ by at most ... in float64, ... in float32
    >>> bool((with_norms.eval()(x) - net(x)).abs().max() < 1e-5)
    True
    """
    say = sayer("insert", model, report)
    check_choice("kind", kind, ("batch", "sync"))
    check_choice("layers", layers, tuple(reversed(LIBRARIES)))
    names, left = _wanted(model, after)
    biases = _biases(model, names) if drop_bias else 0
    trial = copied(model)
    dims = {name: dims_of(model.get_submodule(name)) for name in names}
    measured, batch = measure(trial, dims, data, forward)

    def with_norms(of: nn.Module) -> nn.Module:
        return _with_norms(of, measured, kind, layers, drop_bias)

    trial = with_norms(trial)
    words = compared(
        "insert", model, trial, lambda: (model, with_norms(copied(model).double())), batch, forward
    )
    _check_reached(trial, names, batch, forward)
    result = with_norms(model) if inplace else trial
    for line in _lines(names, measured, biases, left):
        say(line)
    say(f"verified on the first batch: {words}")
    return result


def _lines(
    names: list[str], measured: dict[str, Measured], biases: int, left: list[str]
) -> list[str]:
    most = max(measured.values(), key=lambda m: m.samples)
    lines = [f"left alone, as a norm follows already: {listed(left)}"] if left else []
    lines.append(
        f"{counted(len(names), 'batch norm')}, behind {listed(names)}, with the statistics of "
        f"{counted(most.samples, 'sample')} in {counted(most.batches, 'batch')}"
    )
    if biases:
        one = biases == 1
        lines.append(
            "1 bias, which it makes redundant, is gone" if one and len(names) == 1
            else f"{biases} bias{'' if one else 'es'}, which they make redundant, "
            f"{'is' if one else 'are'} gone"
        )  # fmt: skip
    quiet = [name for name in names if measured[name].is_quiet]
    if quiet:
        lines.append(
            f"behind {listed(quiet)} a channel hardly varies in this data: γ starts near 0 there, "
            "and training will make noise of it; give more, or other, data"
        )
    prefix = f"{names[0]}." if names[0] else ""
    lines.append(
        f"in state_dict, '{prefix}weight' is now '{prefix}layer.weight', beside "
        f"'{prefix}norm.weight' and others"
    )
    return lines


# --- which layers ---------------------------------------------------------------------------------


def _wanted(model: nn.Module, after: After) -> tuple[list[str], list[str]]:
    """Names of the layers to be followed, and of those that a norm follows already."""
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if op_of(m)}
    found, exact = _named(layers, after)
    first: dict[int, str] = {}
    for name in found:
        first.setdefault(id(layers[name]), name)
    followed = _followed(model)
    names = [n for key, n in first.items() if key not in followed or n in exact]
    left = [n for n in first.values() if n not in names]
    for name in names:
        _check_layer(name, layers[name], id(layers[name]) in followed)
    if not names:
        words = f", but a norm follows already: {listed(left)}" if left else ""
        raise ModelError(
            "There is no layer to put a batch norm behind",
            received=f"after={after!r}{words}",
            expected="convolutions or linear layers",
            remedy="Name others.",
        )
    return names, left


def _named(layers: dict[str, nn.Module], after: After) -> tuple[list[str], set[str]]:
    """The layers that ``after`` means, and those among them that it names one by one."""
    if isinstance(after, type):
        after = (after,)
    if callable(after):
        exact = {name for name, module in layers.items() if after(name, module)}
        return [name for name in layers if name in exact], exact
    found: set[str] = set()
    patterns: list[str | type] = [after] if isinstance(after, str) else list(after)
    for pattern in patterns:
        if isinstance(pattern, type):
            found |= {name for name, module in layers.items() if isinstance(module, pattern)}
            continue
        by_type = {name for name, module in layers.items() if op_of(module) == pattern}
        if pattern in layers or not by_type:  # a layer may be called conv
            by_type = set(chosen(layers, pattern, "after"))
        found |= by_type
    return [n for n in layers if n in found], {p for p in patterns if isinstance(p, str)}


def _followed(model: nn.Module) -> set[int]:
    """Layers with a norm for the only user of their output, as far as that is known."""
    graph, found = trace(model), {id(pair[0]) for pair, _ in pairs_of(model).values()}
    for node in graph:
        user = graph.only_user(node.name)
        if user is not None and user.op == "norm" and node.target:
            found.add(id(model.get_submodule(node.target)))
    return found


def _check_layer(name: str, layer: nn.Module, followed: bool) -> None:
    lazy = any(is_lazy(p) for p in layer.parameters(recurse=False))
    if followed or lazy:
        raise ModelError(
            "No batch norm can be put behind this layer; nothing was changed",
            received=f"{name!r}, "
            + ("which a norm follows already" if followed else "which does not know its shape yet"),
            expected="layers without a norm behind them, that have seen an input",
            remedy="Leave it out." if followed else "Run an input through the model first.",
        )


def _biases(model: nn.Module, names: list[str]) -> int:
    """How many of the layers have a bias to drop."""
    found = [name for name in names if model.get_submodule(name).bias is not None]
    for name in found:
        if "bias" not in model.get_submodule(name)._parameters:
            raise ModelError(
                "A bias cannot be dropped; nothing was changed",
                received=f"{name!r}, whose bias is parametrized",
                expected="a parameter",
                remedy="Leave drop_bias= or that layer away.",
            )
    return len(found)


def _check_reached(trial: nn.Module, names: list[str], batch: Batch, forward: Any) -> None:
    """A model may hold a layer in a list too, and call it there, past its new norm."""
    norms = {name: trial.get_submodule(f"{name}.norm".lstrip(".")) for name in names}
    missed = set(names)
    with undisturbed(trial), torch.no_grad(), recorded(norms, lambda n, *_: missed.discard(n)):
        call(trial.eval(), batch, forward)
    if missed:
        raise ModelError(
            "The model calls a layer past the norm behind it; nothing was changed",
            received=listed([name for name in names if name in missed]),
            expected="a layer that is called as the model's child",
            remedy="It may stand in a list, or its weight may be read: change that, or leave it "
            "out.",
        )


# --- a layer and its norm -------------------------------------------------------------------------


def _with_norms(
    model: nn.Module, measured: dict[str, Measured], kind: str, library: str, drop_bias: bool
) -> nn.Module:
    """The model with norms that start as the identity."""
    edits, result = Edits(), model
    for name, statistics in measured.items():
        layer: Any = model.get_submodule(name)
        bias = layer.bias if drop_bias else None
        norm = _norm(layer, statistics, bias, kind, library).train(layer.training)
        pair = nn.Sequential(OrderedDict(layer=layer, norm=norm))
        pair.training = layer.training
        if bias is not None:
            edits.tensor(layer, "bias", None)
            vars(pair)["dropped_bias"] = True  # so that remove() gives it back
        if layer is model:
            result = pair
        else:
            edits.replace(model, layer, pair)
    edits.make()
    return result


def _norm(layer: Any, measured: Measured, bias: Any, kind: str, library: str) -> nn.Module:
    """A batch norm that gives back what comes in, and the bias that the layer had."""
    weight = layer.weight
    narrow = torch.finfo(weight.dtype).bits < 32
    dtype = torch.float32 if narrow else weight.dtype
    make = SYNC[library] if kind == "sync" else BATCH[library][max(dims_of(layer), 1)]
    norm: Any = make(len(measured.mean), device=weight.device, dtype=dtype)
    mean = measured.mean.to(weight.device)
    with torch.no_grad():
        norm.running_mean.copy_(mean if bias is None else mean - bias.double())
        norm.running_var.copy_(measured.var)
        norm.num_batches_tracked.fill_(measured.batches)
        norm.weight.copy_(deviation(norm))
        norm.bias.copy_(mean)
    return norm
