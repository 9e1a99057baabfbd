"""Figures of monitors: what one is worth on held-out examples, and what it saw while a model wrote. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.figures.bars import Bar, bars
from trimtab.figures.figure import Drawing, Figure
from trimtab.figures.heatmap import heatmap
from trimtab.figures.lines import SERIES, Curve, Mark, curves
from trimtab.figures.numbers import Value, estimate, number
from trimtab.figures.ranges import Range, ranges
from trimtab.values.lens import visible
from trimtab.values.plots import WIDE

if TYPE_CHECKING:
    from trimtab.values.monitor import MonitorReport
    from trimtab.values.watched import Watched

RATES = np.linspace(0, 1, 21)
"""False positive rates at which points of a ROC curve stand."""
MOST_GROUPS = 20
MOST_POINTS = 48
"""Tokens of a line, whose points run together when there are more."""


def report_figure(report: MonitorReport) -> Figure:
    """The ROC curve with the rates at the thresholds on it, the margins of both sides, and each group alone."""
    sides = [Range("negative", report.negative), Range("positive", report.positive)]
    groups = sorted(report.by_group, key=lambda part: part.balanced_accuracy)[:MOST_GROUPS]
    rows = [Bar("all groups", report.balanced_accuracy, pale=True)]
    rows += [Bar(part.group, Value(part.balanced_accuracy)) for part in groups]
    left = len(report.by_group) - len(groups)
    drawings = (
        Drawing(_roc(report), "ROC curve", "Strokes: 95\u00a0% intervals over whole groups."),
        Drawing(
            ranges(sides, about="Spread of the margins of both sides", unit="margin", down="side"),
            "Margins of both sides",
            "Line: all; box: the middle half.",
        ),
        Drawing(
            bars(rows, about="Balanced accuracy of each group", unit="balanced accuracy", mono=False),
            "Balanced accuracy by group",
            "Pale: all groups, with the 95\u00a0% interval." + f" Left out: the {left} best groups." * bool(left),
        ),
    )
    words = (
        f"AUROC {estimate(report.auroc, sign=False)}; calibration error {estimate(report.ece, sign=False)}, "
        f"{number(report.ece_if_calibrated, 2)} if every probability were right."
    )
    return Figure(f"Monitor of {report.monitor}, on {report.task}", drawings, words)


def watched_figure(watched: Watched) -> Figure:
    """For each monitor the running margin of every text, token by token: lines for few texts, a map for many."""
    drawings = []
    for name, monitor in watched.monitors.items():
        running = watched.running(name)
        few = len(watched) < SERIES and running.shape[1] <= MOST_POINTS
        svg = _lines(watched, name, running) if few else _map(watched, name, running)
        what = "Mean margin of the tokens generated so far" if monitor.pooled else "Margin of the last token"
        marked = f" {'Ring' if few else 'Frame'}: where a text is flagged, looked at from token {monitor.least} on."
        note = f"{what}.{marked if monitor.stream_threshold is not None else ''}"
        drawings.append(Drawing(svg, f"{name} ({monitor.probe.poles[0]}) at {monitor.site}", note))
    return Figure("Monitors while the model writes", tuple(drawings))


def roc(
    positive: Float[np.ndarray, "p"], negative: Float[np.ndarray, "n"], rates: Float[np.ndarray, "point"] = RATES
) -> list[tuple[float, float]]:
    """False and true positive rates at the lowest thresholds that flag at most these shares of the negatives.

    >>> roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]), np.array([0.0, 0.5, 0.7, 1.0]))
    [(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]
    """
    highest = np.append(np.sort(negative)[::-1], -np.inf)
    thresholds = highest[np.floor(rates * len(negative) + 1e-9).astype(int)]
    points = [(float((negative > t).mean()), float((positive > t).mean())) for t in thresholds]
    return list(dict.fromkeys(points))


def _roc(report: MonitorReport) -> str:
    found = tuple(Mark(x, Value(y)) for x, y in roc(report.positive, report.negative))
    whole = Mark(report.false_positive_rate.mean, report.true_positive_rate)
    streamed = Mark(report.stream_false_positive_rate.mean, report.stream_true_positive_rate)
    lines = [
        Curve("any threshold", found),
        Curve("chance", (Mark(0.0, Value(0.0)), Mark(1.0, Value(1.0)))),
        Curve("at its threshold", (whole,)),
    ]
    if np.isfinite(streamed.x):
        lines.append(Curve("after every token, anywhere", (streamed,)))
    return curves(lines, about="ROC curve", x_axis="false positive rate", y_axis="true positive rate")


def _lines(watched: Watched, name: str, running: Float[np.ndarray, "row token"]) -> str:
    threshold = watched.monitors[name].stream_threshold
    lines = []
    for row, (margins, first) in enumerate(zip(running, watched.flagged_if_calibrated(name), strict=True)):
        marks = [Mark(j + 1.0, Value(m), picked=j == first) for j, m in enumerate(margins.tolist()) if np.isfinite(m)]
        said = " ".join("".join(watched.tokens[row][watched.prompt[row] :]).split())
        lines.append(Curve(f"{row + 1}: {said}", tuple(marks)))
    if threshold is not None:
        ends = dict.fromkeys((1.0, float(max(running.shape[1], 1))))
        lines.append(Curve("threshold", tuple(Mark(x, Value(threshold)) for x in ends)))
    about = f"Running margin of {name} over the tokens generated"
    return curves(lines, about=about, x_axis="tokens generated", y_axis="margin", ringed="flagged")


def _map(watched: Watched, name: str, running: Float[np.ndarray, "row token"]) -> str:
    """Margins less the threshold, where there is one, the first text at the top."""
    threshold = watched.monitors[name].stream_threshold
    flagged = watched.flagged_if_calibrated(name)
    framed = np.full(running.shape, np.nan)
    for row, first in enumerate(flagged):
        if first is not None:
            framed[row, first] = 1.0
    texts, columns = [f"{row + 1}" for row in range(len(watched))], range(running.shape[1])
    names = [[_token(watched, row, column) for column in columns] for row in range(len(watched))]
    return heatmap(
        (running - (threshold or 0.0))[::-1],
        texts[::-1],
        [f"{column + 1}" for column in columns],
        names[::-1],
        about=f"Running margin of {name}, by text and tokens generated",
        unit="margin" if threshold is None else "margin less the threshold",
        across="tokens generated",
        down="text",
        outlined=sum(first is not None for first in flagged),
        strength=framed[::-1],
        kind="map large" if running.shape[1] > WIDE else "map",
    )


def _token(watched: Watched, row: int, new: int) -> str:
    tokens = watched.tokens[row][watched.prompt[row] :]
    return f"text {row + 1}, {new + 1} “{visible(tokens[new])}”" if new < len(tokens) else f"text {row + 1}, ended"
