"""Formulae as MathML, which browsers draw by themselves, from the few words of TeX needed here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

__all__ = ["mathml"]

_LETTERS = {
    "beta": "β", "gamma": "γ", "varepsilon": "ε", "mu": "μ", "loss": "ℒ", "partial": "∂",
}  # fmt: skip
_SIGNS = {
    "cdot": "·", "approx": "≈", "to": "→", "sum": "∑", "langle": "⟨", "rangle": "⟩",
    "ne": "≠", "ge": "≥", "le": "≤", "times": "×", "leftarrow": "←",
}  # fmt: skip
_SPACES = {",": ".17em", "quad": "1em"}
_ABOVE = {"hat": "^"}
_FUNCTIONS = ("mean",)
_TOKEN = re.compile(r"\\text\{[^}]*\}|\\[A-Za-z]+|\\,|\d+(?:\.\d+)?|\S")


def mathml(tex: str, *, display: bool = False) -> str:
    """A formula as an element of HTML.

    Args:
        tex: letters, numbers, signs, Greek letters,
            ``_ ^ \\frac \\sqrt \\hat \\sum \\mean \\text``.
        display: larger, on a line of its own.

    Raises:
        ValueError: a word that is not known, or a brace without its fellow.

    >>> mathml(r"s^2")
    '<math><msup><mi>s</mi><mn>2</mn></msup></math>'
    """
    reader = _Reader(tex)
    inside = "".join(reader.row(""))
    kind = ' display="block"' if display else ""
    return f"<math{kind}>{inside}</math>"


class _Reader:
    def __init__(self, tex: str) -> None:
        self.tex, self.tokens = tex, _TOKEN.findall(tex)

    def row(self, end: str) -> Iterator[str]:
        """Parts up to ``end``, which is taken too; "" for the end of the formula."""
        while self.tokens and self.tokens[0] != end:
            yield self._part()
        if end:
            self._take(end)

    def _take(self, wanted: str = "") -> str:
        if not self.tokens or (wanted and self.tokens[0] != wanted):
            raise self._wrong(f"{wanted or 'an argument'} is missing")
        return self.tokens.pop(0)

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{what} in the formula {self.tex!r}")

    def _part(self) -> str:
        """An atom with what stands below and above it."""
        limits = self.tokens[0] == r"\sum"
        atom, below, above = self._atom(), "", ""
        while self.tokens and self.tokens[0] in "_^":
            if self._take() == "_":
                below = self._argument()
            else:
                above = self._argument()
        if below and limits:
            return f"<munder>{atom}{below}</munder>"
        if below and above:
            return f"<msubsup>{atom}{below}{above}</msubsup>"
        kind = "msub" if below else "msup"
        return f"<{kind}>{atom}{below}{above}</{kind}>" if below or above else atom

    def _argument(self) -> str:
        if self.tokens and self.tokens[0] == "{":
            self._take()
            return f"<mrow>{''.join(self.row('}'))}</mrow>"
        return self._atom()

    def _atom(self) -> str:
        token = self._take()
        if token.startswith("\\"):
            return self._word(token[1:])
        if token == "{":
            return f"<mrow>{''.join(self.row('}'))}</mrow>"
        if token == "(":  # a row of its own: the brackets are as high as what is in them
            return f"<mrow><mo>(</mo>{''.join(self.row(')'))}<mo>)</mo></mrow>"
        if token.isalpha():
            return f"<mi>{token}</mi>"
        if token[0].isdigit():
            return f"<mn>{token}</mn>"
        if token in "}_^)":
            raise self._wrong(f"{token} comes too early")
        return f"<mo>{escape(token.replace('-', '−'))}</mo>"

    def _word(self, word: str) -> str:
        if word.startswith("text{"):
            return f"<mtext>{escape(word[5:-1]).replace(' ', '&nbsp;')}</mtext>"
        if word in _FUNCTIONS:
            return f"<mi>{word}</mi>"
        if word in _LETTERS:
            return f"<mi>{_LETTERS[word]}</mi>"
        if word in _SIGNS:
            return f"<mo>{_SIGNS[word]}</mo>"
        if word in _SPACES:
            return f'<mspace width="{_SPACES[word]}"></mspace>'
        if word in _ABOVE:
            sign = f'<mo stretchy="false">{_ABOVE[word]}</mo>'
            return f'<mover accent="true">{self._argument()}{sign}</mover>'
        if word == "frac":
            return f"<mfrac>{self._argument()}{self._argument()}</mfrac>"
        if word == "sqrt":
            return f"<msqrt>{self._argument()}</msqrt>"
        raise self._wrong(f"\\{word} is not known")
