"""Figures: pure functions from numbers and names to SVG text, in colours that fit a light and a dark page.

Drawings (bars, dots, heatmap, lines, pareto, ranges) know numbers and names only; a `Figure` is some of them together,
to be shown or saved. A value that is NaN or infinite is left out of a drawing and said to be. Nothing here knows of
values, studies or models.
"""

from trimtab.figures.bars import Bar, bars, histogram
from trimtab.figures.dots import Row, draws
from trimtab.figures.figure import Drawing, Figure
from trimtab.figures.heatmap import heatmap
from trimtab.figures.lines import Curve, Mark, curves, slopes
from trimtab.figures.numbers import Value
from trimtab.figures.pareto import Spot, pareto
from trimtab.figures.ranges import Range, ranges

__all__ = [
    "Bar",
    "Curve",
    "Drawing",
    "Figure",
    "Mark",
    "Range",
    "Row",
    "Spot",
    "Value",
    "bars",
    "curves",
    "draws",
    "heatmap",
    "histogram",
    "pareto",
    "ranges",
    "slopes",
]
