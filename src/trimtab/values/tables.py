"""Scores as tables: the strongest cells with their intervals, and what a notebook shows. Plain HTML, no script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from trimtab.figures.numbers import Value, common_places, interval_of, mean_of
from trimtab.values.bootstrap import mean_interval, mean_over_examples
from trimtab.values.scores import AnyScores, By, Label

if TYPE_CHECKING:
    import pandas as pd

TOP = 10
"""Cells that a notebook lists under the figure."""


def strongest(
    scores: AnyScores, k: int | None, by: By | None = None, level: float = 0.95
) -> list[tuple[dict[str, Label], str, Value, int]]:
    """The strongest cells: labels by axis, address, mean with interval, and how many examples have a value."""
    found = scores.ranking(scores.mean().size if k is None else k, by)
    if not found:
        return []
    values = np.stack([effects for _, effects in found], axis=1)
    low, high = mean_interval(values, level=level, groups=scores.groups)
    ends = zip(mean_over_examples(values).tolist(), low.tolist(), high.tolist(), strict=True)
    counts = (~np.isnan(values)).sum(axis=0).tolist()
    return [
        (labels, scores.site.format(**labels), Value(*value), n)
        for (labels, _), value, n in zip(found, ends, counts, strict=True)
    ]


def summary(scores: AnyScores, k: int | None, by: By | None, level: float) -> pd.DataFrame:
    """`strongest` as a table with a column for each axis, then `site`, `mean`, `low`, `high` and `n`."""
    import pandas as pd

    rows = [(*labels.values(), site, *value, n) for labels, site, value, n in strongest(scores, k, by, level)]
    return pd.DataFrame(rows, columns=[*scores.places, "site", "mean", "low", "high", "n"])


def scores_html(scores: AnyScores) -> str:
    """What a notebook shows: the figure, and under it the strongest cells with their intervals."""
    rows = strongest(scores, TOP)
    places = common_places(value for _, _, value, _ in rows)
    cells = "".join(
        f"<tr><td><code>{escape(site)}</code></td><td>{mean_of(value, places=places)}</td>"
        f"<td>{interval_of(value, places)}</td></tr>"
        for _, site, value, _ in rows
    )
    if not cells:
        return f"<div>{escape(repr(scores))}: no place has a value</div>"
    head = f"<tr><th>site</th><th>mean{f', {escape(scores.unit)}' if scores.unit else ''}</th><th>95 %</th></tr>"
    table = (
        '<table style="border-collapse:collapse;font-size:small;font-variant-numeric:tabular-nums">'
        f"{head}{cells}</table>"
    )
    return scores.plot().with_details("The strongest", table)
