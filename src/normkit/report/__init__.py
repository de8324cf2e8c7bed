"""Self-contained HTML pages: words, tables, charts and maps in one file that loads nothing else.

>>> text = Text("What was done", ("Two networks were trained.",))
>>> "Two networks were trained." in page("A report", [text])
True

The colours are told apart with every common kind of colour blindness (after Okabe and Ito), and
nothing is told by colour alone. The page follows the reader's choice of dark or light, prints, fits
a telephone, and its policy forbids the browser every request.
"""

from __future__ import annotations

from normkit.report.diagram import Diagram, DiagramNode
from normkit.report.levels import LEVELS
from normkit.report.page import page
from normkit.report.plots import Bars, Curve, Dots, Plot, Plots
from normkit.report.sections import (
    Chart,
    Fold,
    Folds,
    Line,
    Notice,
    Notices,
    Place,
    Section,
    Table,
    Text,
    Verdict,
    Widget,
)

__all__ = [
    "LEVELS",
    "Bars",
    "Chart",
    "Curve",
    "Diagram",
    "DiagramNode",
    "Dots",
    "Fold",
    "Folds",
    "Line",
    "Notice",
    "Notices",
    "Place",
    "Plot",
    "Plots",
    "Section",
    "Table",
    "Text",
    "Verdict",
    "Widget",
    "page",
]
