"""Scores as a small table of coloured cells for notebooks: plain HTML, no script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trimtab.values.scores import Scores

MOST_CELLS = 2500  # a larger map is shown by its strongest sites only
TOP = 20


def scores_html(scores: Scores) -> str:
    """The mean over examples: a map where there are one or two axes and not too many cells, else the strongest
    sites."""
    mean = scores.mean()
    facts = [f"{len(scores)} example{'s' * (len(scores) != 1)}", scores.direction, scores.unit, scores.site]
    title = f"<b>{escape(scores.method or 'scores')}</b> " + escape(", ".join(fact for fact in facts if fact))
    rows = _map(scores, mean) if 1 <= mean.ndim <= 2 and 0 < mean.size <= MOST_CELLS else _strongest(scores)
    return f'<div>{title}<table style="border-collapse:collapse;font-size:small">{"".join(rows)}</table></div>'


def _map(scores: Scores, mean: np.ndarray) -> list[str]:
    grid = mean[:, None] if mean.ndim == 1 else mean
    down = scores.places[0]
    across = scores.coords[scores.places[1]] if mean.ndim == 2 else ("",)
    corner = f"{down} \\ {scores.places[1]}" if mean.ndim == 2 else down
    largest = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 0.0
    head = "".join(f"<th>{escape(str(label))}</th>" for label in across)
    rows = [f"<tr><th>{escape(corner)}</th>{head}</tr>"]
    for label, line in zip(scores.coords[down], grid, strict=True):
        cells = "".join(_cell(float(value), largest) for value in line)
        rows.append(f"<tr><th>{escape(str(label))}</th>{cells}</tr>")
    return rows


def _strongest(scores: Scores) -> list[str]:
    sizes = {str(site): float(value) for site, value in zip(scores.sites(), scores.mean().ravel(), strict=True)}
    top = [str(site) for site in scores.top(TOP)]
    largest = abs(sizes[top[0]]) if top else 0.0
    return [f"<tr><th>{escape(site)}</th>{_cell(sizes[site], largest)}</tr>" for site in top]


def _cell(value: float, largest: float) -> str:
    """One cell: red for positive, blue for negative, the stronger the larger."""
    if np.isnan(value):
        return '<td style="color:#999;text-align:right">–</td>'
    strength = min(1.0, abs(value) / largest) if largest else 0.0
    colour = f"rgba({'214,69,65' if value > 0 else '52,101,164'},{0.8 * strength:.2f})"
    return f'<td style="background:{colour};text-align:right;padding:1px 4px">{value:.3g}</td>'
