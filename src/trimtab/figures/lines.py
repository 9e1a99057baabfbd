"""Effects along a coefficient, a line for each place; and every example before and after, a line for each example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.figures.numbers import Estimate, estimate, exact, fixed, has_interval
from trimtab.figures.scales import Scale, linear
from trimtab.figures.svg import drawing, element, line, path, shortened, text, title

WIDTH, LEFT, RIGHT, TOP, INSET = 384.0, 44.0, 12.0, 26.0, 12.0
SERIES = 6
"""Lines that can be told apart in one drawing, by colour and by the shape of their points."""

_SHAPES = (
    [(-3.4, -3.4), (3.4, -3.4), (3.4, 3.4), (-3.4, 3.4)],
    [(0, -4.8), (4.8, 0), (0, 4.8), (-4.8, 0)],
    [(0, -4.6), (4.4, 3.2), (-4.4, 3.2)],
    [(0, 4.6), (4.4, -3.2), (-4.4, -3.2)],
    [(-4.6, 0), (-2.3, -4), (2.3, -4), (4.6, 0), (2.3, 4), (-2.3, 4)],
)


@dataclass(frozen=True)
class Mark:
    """A point of a line: where, how large the effect, whether it may be picked, and whether it was."""

    x: float
    y: Estimate
    allowed: bool = True
    picked: bool = False


@dataclass(frozen=True)
class Curve:
    """A named line through points, in the order of `x`."""

    name: str
    marks: tuple[Mark, ...]


def curves(
    lines: Sequence[Curve], *, about: str, x_axis: str, y_axis: str, first: int = 0, ringed: str = "picked"
) -> str:
    """At most six lines; points that may not be picked are hollow, the picked one has a ring.

    `first` is the number of the first line's colour, so that several drawings can share one order; `ringed` is the word
    for a point with a ring.
    """
    bottom = 236.0
    marks = [mark for curve in lines for mark in curve.marks]
    across = linear([mark.x for mark in marks], LEFT + INSET, WIDTH - RIGHT - INSET, most=7)
    up = linear([end for m in marks for end in (m.y.mean, m.y.low, m.y.high)], bottom, TOP)
    parts = _frame(across, up, x_axis, y_axis)
    for i, curve in enumerate(lines):
        kind = f"s{(first + i) % SERIES}"
        known = [mark for mark in sorted(curve.marks, key=lambda m: m.x) if math.isfinite(mark.y.mean)]
        points = [(across(mark.x), up(mark.y.mean)) for mark in known]
        for (x, _), mark in zip(points, known, strict=True):
            if has_interval(mark.y):
                parts.append(line(x, up(mark.y.low), x, up(mark.y.high), class_=f"spread {kind}"))
        if len(points) > 1:
            parts.append(path(points, class_=f"line {kind}"))
        for (x, y), mark in zip(points, known, strict=True):
            limit = "" if mark.allowed else "; over the limit"
            ring = f"; {ringed}" if mark.picked else ""
            said = f"{curve.name}, {x_axis} {exact(mark.x)}: {y_axis} {estimate(mark.y)}{limit}{ring}"
            parts.append(_point(x, y, first + i, f"point {kind}{'' if mark.allowed else ' hollow'}", said))
            if mark.picked:
                parts.append(element("circle", cx=x, cy=y, r=8.5, class_="ring"))
    below = bottom + 52
    for i, curve in enumerate(lines):
        y = below + 17.0 * i
        parts.append(line(LEFT - 8, y, LEFT + 12, y, class_=f"line s{(first + i) % SERIES}"))
        parts.append(_point(LEFT + 2, y, first + i, f"point s{(first + i) % SERIES}"))
        parts.append(text(shortened(curve.name, WIDTH - LEFT - 24, True), LEFT + 20, y + 4, class_="mono"))
    return drawing(WIDTH, below + 17.0 * len(lines), about, *parts, kind="curves")


def slopes(before: np.ndarray, after: np.ndarray, *, about: str, unit: str, aim: int) -> str:
    """Every example's value before (left) and after (right); those that moved against the aim in a colour of their own
    and dashed, the mean thick."""
    bottom, left, right = 236.0, 84.0, WIDTH - 48.0
    both = np.isfinite(before) & np.isfinite(after)
    before, after = before[both], after[both]
    up = linear([*before.tolist(), *after.tolist()], bottom, TOP, zero=False)
    parts = []
    for tick, words in up.ticks():
        parts.append(line(left, up(tick), right, up(tick), class_="zero" if tick == 0 else "rule"))
        parts.append(text(words, 30.0, up(tick) + 4, text_anchor="end"))
    for i, (old, new) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        wrong = (new - old) * aim < 0
        said = f"example {i + 1}: {fixed(old, 2)} → {fixed(new, 2)} {unit}{', against the aim' * wrong}"
        ends = {"x1": left, "y1": up(old), "x2": right, "y2": up(new)}
        parts.append(element("line", title(said), **ends, class_="slope wrong" if wrong else "slope"))
    if len(before):
        old, new = float(before.mean()), float(after.mean())
        parts.append(line(left, up(old), right, up(new), class_="mean"))
        parts.append(text(fixed(old, 2), left - 6, up(old) + 4, text_anchor="end", class_="strong"))
        parts.append(text(fixed(new, 2), right + 6, up(new) + 4, class_="strong"))
    parts.append(text("before", left, bottom + 18, text_anchor="middle"))
    parts.append(text("after", right, bottom + 18, text_anchor="middle"))
    parts.append(text(shortened(unit, WIDTH - 10), 2.0, 10.0, class_="axis"))
    return drawing(WIDTH, bottom + 26, about, *parts, kind="slopes")


def _frame(across: Scale, up: Scale, x_axis: str, y_axis: str) -> list[str]:
    parts = []
    for tick, words in up.ticks():
        parts.append(line(LEFT, up(tick), WIDTH - RIGHT, up(tick), class_="zero" if tick == 0 else "rule"))
        parts.append(text(words, LEFT - 6, up(tick) + 4, text_anchor="end"))
    for tick, words in across.ticks(7):
        parts.append(line(across(tick), up.start, across(tick), up.start + 4, class_="rule"))
        parts.append(text(words, across(tick), up.start + 16, text_anchor="middle"))
    parts.append(text(shortened(y_axis, WIDTH - 10), 2.0, 10.0, class_="axis"))
    parts.append(
        text(
            shortened(x_axis, WIDTH - 60),
            (across.start + across.stop) / 2,
            up.start + 32,
            text_anchor="middle",
            class_="axis",
        )
    )
    return parts


def _point(x: float, y: float, series: int, kind: str, said: str = "") -> str:
    shape = series % SERIES
    inside = (title(said),) if said else ()
    if shape == 0:
        return element("circle", *inside, cx=x, cy=y, r=4.0, class_=kind)
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _SHAPES[shape - 1])
    return element("polygon", *inside, points=corners, class_=kind)
