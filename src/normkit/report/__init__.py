"""Self-contained HTML pages: words, tables, charts and maps in one file that loads nothing else.

>>> text = Text("What was done", ("Two networks were trained.",))
>>> "Two networks were trained." in page("A report", [text])
True

The colours are told apart with every common kind of colour blindness (after Okabe and Ito), and
nothing is told by colour alone. The page follows the reader's choice of dark or light, prints, fits
a telephone, and its policy forbids the browser every request.
"""

from __future__ import annotations

from normkit.report.cards import Card, Cards, Code, Scoreboard, Tile, Tiles
from normkit.report.charts import COLOURS, SYMBOLS, Chart, Grid, Heat, Line
from normkit.report.diagram import Diagram, DiagramNode
from normkit.report.levels import LEVELS, MARKS
from normkit.report.page import page
from normkit.report.plots import Bars, Curve, Dots, Plot, Plots
from normkit.report.sections import (
    Fold,
    Folds,
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
    "COLOURS",
    "LEVELS",
    "MARKS",
    "SYMBOLS",
    "Bars",
    "Card",
    "Cards",
    "Chart",
    "Code",
    "Curve",
    "Diagram",
    "DiagramNode",
    "Dots",
    "Fold",
    "Folds",
    "Grid",
    "Heat",
    "Line",
    "Notice",
    "Notices",
    "Place",
    "Plot",
    "Plots",
    "Scoreboard",
    "Section",
    "Table",
    "Text",
    "Tile",
    "Tiles",
    "Verdict",
    "Widget",
    "page",
]
