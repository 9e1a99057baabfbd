"""Figures: pure functions from numbers and names to SVG text, coloured by the style sheet of the page they stand in.

A value that is NaN or infinite is left out of a drawing and said to be; nothing here knows of studies or of models.
"""

from trimtab.report.figures.bars import Bar, bars, histogram
from trimtab.report.figures.dots import Row, draws
from trimtab.report.figures.heatmap import heatmap
from trimtab.report.figures.lines import Curve, Mark, curves, slopes
from trimtab.report.figures.pareto import Spot, pareto

__all__ = ["Bar", "Curve", "Mark", "Row", "Spot", "bars", "curves", "draws", "heatmap", "histogram", "pareto", "slopes"]
