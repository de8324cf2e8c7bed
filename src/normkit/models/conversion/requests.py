"""What a conversion was asked for, as a value that is checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from normkit.errors import OptionError
from normkit.models.conversion.catalogue import LIBRARIES
from normkit.torch.options import BatchOptions, RenormSchedule, check_choice

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """The options of :func:`normkit.models.conversion.convert`, but for those of the model.

    Args:
        to: the target's name.
        groups, ghost, renorm, process_group, layers: as of ``convert``.
        surroundings: of the model's norms.
        like: where, and in which dtype, tensors are made for a layer that has none.

    Raises:
        OptionError, DTypeError: an option has a value that it cannot have, or belongs to another
            target.
    """

    to: str
    groups: int | str = "auto"
    ghost: int | None = None
    renorm: bool | RenormSchedule | None = None
    process_group: Any = None
    layers: str = "same"
    surroundings: Any = field(default=None, repr=False)
    like: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_choice("layers", self.layers, ("same", *LIBRARIES))
        self._check_groups()
        for name, target, absent in (
            ("ghost", "ghost", None), ("renorm", "renorm", None), ("groups", "group", "auto"),
            ("process_group", "sync", None),
        ):  # fmt: skip
            if getattr(self, name) != absent and self.to != target:
                raise OptionError(
                    f"{name}= belongs to another kind",
                    received=f"{name}={getattr(self, name)!r} with to={self.to!r}",
                    expected=f"to={target!r}",
                    remedy="Leave one of them away.",
                )
        if self.to == "ghost" and self.ghost is None:
            raise OptionError(
                "Ghost batches have no size",
                received="ghost=None",
                expected="ghost=, the samples in one",
                remedy="ghost=32 is a fair start.",
            )
        BatchOptions(ghost=self.ghost, renorm=self.renorm)  # complains about what it cannot be
        self._check_layers()

    def _check_groups(self) -> None:
        whole = isinstance(self.groups, int) and not isinstance(self.groups, bool)
        if self.groups != "auto" and not (whole and int(self.groups) > 0):
            raise OptionError(
                "groups= is no number of groups",
                received=repr(self.groups),
                expected='"auto" or a whole number of at least 1',
                remedy='"auto" takes at most 32, by what divides the channels.',
            )

    def _check_layers(self) -> None:
        normkits = ("frozen", "ghost", "renorm", "frn", "normkit")
        contrary = self.to == "torch" and self.layers == "normkit"
        if contrary or (self.layers == "torch" and self.to in normkits):
            raise OptionError(
                "There is no such layer",
                received=f"layers={self.layers!r} with to={self.to!r}",
                expected='layers="same"',
                remedy="frozen, ghost, renorm and frn layers are normkit's; torch.nn has none.",
            )

    def library(self, known: str) -> str:
        """Whose layer it is to be, where ``known`` is whose it was."""
        return known if self.layers == "same" else self.layers
