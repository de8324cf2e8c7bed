"""Weights of norms from one framework into another, compared on random input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from normkit.errors import ModelError, OptionError
from normkit.models.porting.conventions import adapt, differences
from normkit.models.porting.frameworks import framework
from normkit.models.porting.frameworks.base import Framework
from normkit.models.porting.layer import PortedLayer
from normkit.models.porting.loading import check_same, silence
from normkit.models.porting.parity import compare
from normkit.models.porting.ported import Ported
from normkit.models.porting.sources import Found, Source, open_source
from normkit.models.porting.weights import NormWeights
from normkit.models.selecting import chosen
from normkit.words import counted, first_line, listed

__all__ = ["port", "port_source"]


def port(
    source: Any,
    target: str,
    *,
    only: str | Iterable[str] | None = None,
    channels: str | None = None,
    dims: int | None = None,
    eps: float | Mapping[str, float] | None = None,
    kinds: Mapping[str, str] | None = None,
    batch_elements: int | None = None,
    on_refused: str = "raise",
    report: Callable[[str], Any] | None = print,
) -> Any:
    """Port norms to another framework: their weights, eps, momentum and running statistics.

    What was read and what was made are run in their own frameworks on the same random input, in
    inference and, of a batch norm, in training, before anything is handed out.

    Args:
        source: a layer or a model of PyTorch (normkit's layers too), Keras 3, Flax NNX, Equinox (of
            a batch norm ``(module, state)``), Flax Linen (``(module, variables)``) or ONNX; a
            state_dict or Linen's variables; the path of a .keras, .onnx, .safetensors, .pt, .pt2
            file; or code, ``package.module:function``.
        target: ``"torch"``, ``"keras"``, ``"flax"``, ``"linen"``, ``"equinox"`` or ``"onnx"``.
        only: names or patterns of a model's layers; all without.
        channels: ``"first"`` or ``"last"``, where the target's layer leaves the choice.
        dims: axes of the input beside samples and channels, where a layer does not say: 2 for
            images.
        eps: of weights that do not say it, such as a state_dict; or for each name, pattern or
            kind its own: ``{"batch": 1e-5, "layer": 1e-6}``.
        kinds: of norms in such weights, by name or pattern, where names do not say it: ``"layer"``,
            ``"rms"``, ``"instance"``, ``"group:32"``.
        batch_elements: elements of a channel in a batch of training, to correct a running variance
            that is biased here and unbiased there, or the other way. Without, it is taken over as
            it is, so that inference computes the same.
        on_refused: what becomes of a model's norms that have no counterpart: ``"raise"`` or
            ``"skip"``.
        report: takes the lines that say what differs for a single layer; None for silence.

    Returns:
        A layer of the target for a layer; for a model or a file a :class:`Ported`.

    Raises:
        ModelError: a layer, or an option of it, has no counterpart; the message names it.
        ParityError: the two do not compute the same.
        FileError, OptionError: the source or an argument is not one of those above.

    >>> import torch
    >>> layer = port(torch.nn.LayerNorm(4), "torch")
    port: LayerNorm to PyTorch; PyTorch ... and PyTorch ... agree to ...
    >>> print(port(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)), "torch"))
    layer  kind   shape  eps    momentum    notes
    1      batch  8      1e-05  0.1 → 0.1
    1 norm ported to PyTorch; PyTorch ... and PyTorch ... agree to ...
    """
    opened = open_source(source, eps, kinds)
    ported = port_source(
        opened, target, only=only, channels=channels, dims=dims,
        batch_elements=batch_elements, on_refused=on_refused,
    )  # fmt: skip
    if not opened.single:
        return ported
    (one,) = ported.ported
    made = _make(framework(target), one.after, dims)
    say = report or silence
    say(f"port: {opened.title} to {framework(target).convention.title}; {one.parity}")
    for note in one.notes:
        say(f"port: {note}")
    return made


def port_source(
    source: Source,
    target: str,
    *,
    only: str | Iterable[str] | None = None,
    channels: str | None = None,
    dims: int | None = None,
    batch_elements: int | None = None,
    on_refused: str = "raise",
) -> Ported:
    """The same for a source that has been read; a layer by itself is a model of one."""
    there = framework(target)
    _check_choice("on_refused", on_refused, ("raise", "skip"))
    _check_choice("channels", channels, ("first", "last", None))
    _check_dims(dims)
    norms = {found.name: found for found in source.norms}
    wanted = [norms[name] for name in chosen(norms, only, "only")]
    if not wanted:
        raise ModelError(
            "There is nothing to port",
            received=f"{source.title} without a norm",
            expected="a model with a norm that is known",
            remedy="Norms are known by classes, or in files of weights by names.",
        )
    refused = {found.name: found.why_not for found in wanted if found.weights is None}
    done = []
    for found in wanted:
        if found.weights is None:
            continue
        try:
            after = adapt(
                found.weights, target, channels=channels, dims=dims, batch_elements=batch_elements
            )
            done.append(_compared(found, there, after))
        except ModelError as error:
            if source.single:
                raise
            refused[found.name] = str(error)
    if refused and on_refused == "raise":
        raise _refused(refused, len(wanted))
    return Ported(source.title, target, tuple(done), refused, source.note, source.path)


def _compared(found: Found, there: Framework, after: NormWeights) -> PortedLayer:
    before, here = found.weights, found.framework
    assert before is not None
    dims, made, missing = _dims(before, after), None, ""
    try:
        after = there.holds(after)
        made = there.write(replace(after, dims=dims) if there.unknown_rank(after) else after)
    except ModuleNotFoundError as error:  # weights are weights where their framework is missing
        missing = first_line(error)
    sides = here.side(found.layer, before, found.not_run), there.side(made, after, missing)
    if made is not None:
        _check_reread(there, made, after)
    parity = compare(*sides, dims)
    added = after.notes[len(before.notes) :]
    not_run = [f"NOT run in {title}: {why}" for title, why in parity.not_run.items()]
    notes = (*not_run, *before.notes, *added, *differences(before, after, there.name))
    return PortedLayer(before, after, parity, notes)


def _dims(before: NormWeights, after: NormWeights) -> int:
    """Axes of positions of the random input: as many as either side asks for.

    Raises:
        OptionError: they ask for different numbers.
    """
    if after.kind in ("layer", "rms"):
        return 0
    asked = before.dims if after.dims is None else after.dims
    either = before.framework == "torch" and {before.dims, asked} == {0, 1}  # BatchNorm1d
    if before.dims not in (None, asked) and not either:
        raise OptionError(
            "The layer is one for another number of axes",
            received=f"dims={asked}",
            expected=f"dims={before.dims}{before.place}",
            remedy="Leave dims= away: the layer says it.",
        )
    return 2 if asked is None else asked


def _check_reread(there: Framework, made: Any, wanted: NormWeights) -> None:
    """What was written is read again: conventions that no number shows are compared as well."""
    check_same(there.read(made, wanted.name), wanted)


def _make(there: Framework, weights: NormWeights, dims: int | None) -> Any:
    reason = there.unknown_rank(weights) if dims is None else ""
    if reason:
        raise OptionError(
            f"The number of axes is not known: {reason}",
            received="a layer that takes any, and no dims=",
            expected="dims=0 for (samples, channels), 1 for sequences, 2 for images, 3 for volumes",
            remedy="Say dims=2 for images.",
        )
    return there.write(weights)


def _check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise OptionError(
            f"{name}= has no such way",
            received=repr(value),
            expected=", ".join(repr(word) for word in known),
            remedy=f"The first, {known[0]!r}, is a safe one.",
        )


def _check_dims(dims: Any) -> None:
    if dims is not None and (type(dims) is not int or not 0 <= dims <= 3):
        raise OptionError(
            "No such number of axes",
            received=f"dims={dims!r}",
            expected="0 for (samples, channels), 1 for sequences, 2 for images, 3 for volumes",
            remedy="Leave dims= away where the layer says it.",
        )


def _refused(refused: dict[str, str], total: int) -> ModelError:
    first = next(iter(refused))
    return ModelError(
        f"{counted(len(refused), 'norm')} of {total} cannot be ported",
        received=listed(list(refused)),
        expected="norms with a counterpart",
        remedy=f'{first}: {refused[first]} on_refused="skip" ports the others.',
    )
