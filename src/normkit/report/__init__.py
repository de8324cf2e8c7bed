"""Self-contained HTML pages: words, tables and line charts in one file that loads nothing else.

>>> text = Text("What was done", ("Two networks were trained.",))
>>> "Two networks were trained." in page("A report", [text])
True

The colours are told apart with every common kind of colour blindness (after Okabe and Ito), the
page follows the reader's choice of dark or light, and its policy forbids the browser every request.
"""

from __future__ import annotations

from normkit.report.page import page, save
from normkit.report.sections import Chart, Line, Section, Table, Text

__all__ = ["Chart", "Line", "Section", "Table", "Text", "page", "save"]
