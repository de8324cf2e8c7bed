"""Formulas become MathML when the site is built, which browsers draw by themselves.

A script for formulas would come from another host, or be a megabyte of the site's own.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

__all__ = ["on_page_content"]

_FORMULA = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>'
    r'|<div class="arithmatex">\\\[(?P<block>.*?)\\\]</div>',
    re.DOTALL,
)


def on_page_content(content: str, **_: Any) -> str:
    """A page's HTML with every formula in it drawn."""
    return _FORMULA.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    block = found["block"] is not None
    tex = html.unescape(found["block"] if block else found["inline"]).strip()
    drawn = convert(tex, display="block" if block else "inline")
    return drawn.replace('<mi mathvariant="script">L</mi>', "<mi>ℒ</mi>")  # browsers want it so
