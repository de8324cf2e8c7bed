"""Templates and other parts of pages that lie beside the modules of a package."""

from __future__ import annotations

from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING

from normkit.extras import needed

if TYPE_CHECKING:
    import jinja2

__all__ = ["asset", "environment"]


@cache
def asset(package: str, name: str) -> str:
    """The text of a file in a package's folder."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


@cache
def environment(package: str) -> jinja2.Environment:
    """For a package's templates: everything is escaped, and what is not given is an error.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    library = needed("jinja2")
    made: jinja2.Environment = library.Environment(
        autoescape=True,
        undefined=library.StrictUndefined,
        loader=library.FunctionLoader(partial(asset, package)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return made
