"""What a norm can be converted to, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normkit.models.conversion import family, libraries, samples
from normkit.models.conversion.catalogue import NORMKIT_OF, TORCH_OF, Origin
from normkit.models.conversion.changing import Change
from normkit.models.conversion.reading import Source
from normkit.models.conversion.requests import Request
from normkit.models.sites import NormSite

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """One kind of norm.

    Args:
        make: the change of a layer; None where it is that already. Raises RefusedError.
        any_library: takes every norm that both libraries have; the others take batch norms, and
            what conversions made of them.
    """

    make: Callable[[Source, Request], Change | None]
    any_library: bool = False

    def means(self, site: NormSite) -> bool:
        """Whether a norm is one of those that are converted when none are named."""
        if site.kind == "batch" or isinstance(site.module.__dict__.get("converted_from"), Origin):
            return True
        twins = type(site.module) in NORMKIT_OF or type(site.module) in TORCH_OF
        return self.any_library and twins


TARGETS: dict[str, Target] = {
    "batch": Target(family.to_batch),
    "sync": Target(family.to_sync),
    "frozen": Target(family.to_frozen),
    "ghost": Target(family.to_ghost),
    "renorm": Target(family.to_renorm),
    "group": Target(samples.to_group),
    "layer": Target(samples.to_layer),
    "instance": Target(samples.to_instance),
    "frn": Target(samples.to_frn),
    "torch": Target(libraries.to_torch, any_library=True),
    "normkit": Target(libraries.to_normkit, any_library=True),
}
