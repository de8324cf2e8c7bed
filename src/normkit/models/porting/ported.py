"""What a port of a model or a file gives: its layers, to load, to save, to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from normkit.errors import FileError, ModelError
from normkit.models.porting.conventions import convention
from normkit.models.porting.frameworks import framework
from normkit.models.porting.layer import PortedLayer
from normkit.models.porting.loading import load, silence
from normkit.models.porting.matching import renamed
from normkit.models.porting.parity import overall
from normkit.models.porting.stored import ENDINGS, write_stored
from normkit.models.porting.weights import NormWeights
from normkit.plain import plain
from normkit.words import counted, listed
from normkit.writing import check_output

__all__ = ["Ported", "check_ported_output"]


@dataclass(frozen=True, eq=False)
class Ported:
    """Norms on their way into another framework.

    Args:
        source: what they were read from.
        target: the framework.
        ported: the layers.
        refused: those without a counterpart, with the reason.
        note: on the source.
        path: of the source, where it is a file.
    """

    source: str
    target: str
    ported: tuple[PortedLayer, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    path: Path | None = None

    @property
    def layers(self) -> dict[str, NormWeights]:
        """The layers by name, as the target has them."""
        return {one.after.name: one.after for one in self.ported}

    def make(self, name: str, *, dims: int | None = None) -> Any:
        """A new layer of the target.

        Args:
            name: one of :attr:`layers`.
            dims: axes of its input beside samples and channels, where the source does not say.
        """
        held = self.layers
        if name not in held:
            raise ModelError(
                "No such layer was ported",
                received=repr(name),
                expected=f"one of {listed(list(held))}",
                remedy="layers lists them.",
            )
        weights = held[name] if dims is None else replace(held[name], dims=dims)
        reason = framework(self.target).unknown_rank(weights)
        if reason:
            raise ModelError(
                "The number of axes is not known",
                received=f"{name} without dims=",
                expected="dims=0 for (samples, channels), 1 for sequences, 2 for images",
                remedy=f"{reason[0].upper()}{reason[1:]}.",
            )
        return framework(self.target).write(weights)

    def into(
        self,
        model: Any,
        *,
        names: Mapping[str, str] | None = None,
        match: str = "names",
        report: Callable[[str], Any] | None = print,
    ) -> Any:
        """Load the layers into a model of the target framework.

        Weights, running statistics, eps and momentum are set; then each of the model's own layers
        is run beside the source. If one computes something else, the model is as it was. Linen's
        variables are the exception: they hold neither eps nor momentum, so nothing is run, and the
        report says what to set in the modules.

        Args:
            model: changed in place where its framework can (PyTorch, Keras, NNX); of Equinox
                ``(model, state)``, of ONNX the ModelProto, which stay. Of Linen the variables, or
                ``(norm, variables)``, whose kind, eps and momentum have to be the source's.
            names: the model's name for each of :attr:`layers` that is called differently there.
            match: ``"names"``: by names, or by kinds and shapes where there is one of each.
                ``"order"``: the first into the first, and so on. Look before you say so: two
                ResNets may list a block's shortcut before or after its third norm, and shapes do
                not tell.
            report: takes the lines that say which norms of the model were not filled, and what has
                to be set by hand; None for silence.

        Returns:
            The model, or the new one.

        Raises:
            ModelError: another framework's model, layers that do not fit, or that it cannot be told
                which is which.
            ParityError: a layer of the model computes something else.
        """
        return load(self.ported, self.target, model, names, match, report or silence)

    def save(
        self,
        path: str | Path,
        *,
        names: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the weights by the target's names, with what they mean beside them.

        ``.safetensors`` says eps, momentum and the rest in its metadata, and :func:`port` reads it
        again; ``.pt``, for PyTorch, holds the tensors only.

        Raises:
            FileError: the file exists, or is no place or format to write to.
            OptionError: names that are not there, or one for two layers.
        """
        path = Path(path)
        inputs = () if self.path is None else (self.path,)
        check_ported_output(path, self.target, inputs, overwrite=overwrite)
        named = renamed(self.layers, names)
        write_stored(path, [replace(w, name=named[name]) for name, w in self.layers.items()])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, as JSON can say it."""
        return plain({
            "source": self.source,
            "target": self.target,
            "note": self.note,
            "layers": [one.row() for one in self.ported],
            "refused": dict(self.refused),
        })  # fmt: skip

    def notes(self) -> dict[str, list[str]]:
        """What differs, each with the layers that it is true of."""
        found: dict[str, list[str]] = {}
        for one in self.ported:
            for note in one.notes:
                found.setdefault(note, []).append(one.before.name)
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows; notes by number, as :meth:`notes` has them."""
        numbers = {note: str(i) for i, note in enumerate(self.notes(), 1)}
        columns = ["layer", "kind", "shape", "eps", "momentum", "notes"]
        return columns, [_cells(one.row(), numbers) for one in self.ported]

    def lines(self) -> list[str]:
        """What a port has shown, beneath the table."""
        found = [f"[{i}] {note}" for i, note in enumerate(self.notes(), 1)]
        found += [f"refused: {name}: {reason}" for name, reason in self.refused.items()]
        if self.note:
            found.append(f"{self.source}: {self.note}")
        if self.ported:
            title = convention(self.target).title
            parity = overall([one.parity for one in self.ported])
            found.append(f"{counted(len(self.ported), 'norm')} ported to {title}; {parity}")
        return found

    def __str__(self) -> str:
        columns, rows = self.table()
        sizes = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        shown = [
            "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
            for row in (columns, *rows)
        ]
        return "\n".join([*shown, *self.lines()])


def check_ported_output(
    path: Path, target: str, inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> None:
    """Whether ported weights may be written to ``path``; asked before the work.

    Raises:
        FileError: they may not; see :func:`normkit.writing.check_output`.
    """
    check_output(path, inputs, overwrite=overwrite, example="ported.safetensors")
    endings = ENDINGS if target == "torch" else ENDINGS[:1]
    if path.suffix not in endings:
        raise FileError(
            "No such format for ported weights",
            received=str(path),
            expected=f"a name that ends in {', '.join(endings)}",
            remedy=f"For instance {path.with_suffix('.safetensors')}.",
        )


def _cells(row: Mapping[str, Any], numbers: Mapping[str, str]) -> list[str]:
    before, after = row["momentum"]
    momentum = "" if before is None else f"{before:g} → {after:g}"
    kind = row["kind"] if row["groups"] is None else f"{row['kind']}, {row['groups']} groups"
    shape = "×".join(map(str, row["shape"]))
    notes = " ".join(f"[{numbers[note]}]" for note in row["notes"])
    return [row["layer"], kind, shape, f"{row['eps']:g}", momentum, notes]
