"""Figures: pure functions from numbers and names to SVG text, coloured by the style sheet of the page they stand in.

The drawings (bars, dots, heatmap, lines, pareto) know numbers and names only; the panels (where, checked, searched,
tested) know which value of a study makes which drawing, and the table behind it. A value that is NaN or infinite is
left out of a drawing and said to be. Nothing here knows of models.
"""

from trimtab.report.figures.bars import Bar, bars, histogram
from trimtab.report.figures.dots import Row, draws
from trimtab.report.figures.heatmap import heatmap
from trimtab.report.figures.lines import Curve, Mark, curves, slopes
from trimtab.report.figures.pareto import Spot, pareto

__all__ = ["Bar", "Curve", "Mark", "Row", "Spot", "bars", "curves", "draws", "heatmap", "histogram", "pareto", "slopes"]
