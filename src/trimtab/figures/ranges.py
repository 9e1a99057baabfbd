"""How values are spread, row by row: from the least to the largest, the middle half, and the median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.figures.numbers import NONE, number, with_unit
from trimtab.figures.scales import Scale, linear
from trimtab.figures.svg import SMALL, drawing, element, line, room, shortened, text, title

WIDTH, RIGHT, TOP, FOOT = 384.0, 12.0, 20.0, 36.0
NAMES = 120.0
TALL = 520.0
"""Pixels that all rows together may take."""


@dataclass(frozen=True)
class Range:
    """A row: its name, its values, and which of them (name, value) are to be pointed out."""

    label: str
    values: np.ndarray
    pointed: tuple[tuple[str, float], ...] = ()


def ranges(rows: Sequence[Range], *, about: str, unit: str, down: str = "layer") -> str:
    """The spread of each row's values, the first row at the bottom: a thin line for all, thick for the middle half, a
    stroke at the median, a point for each that is pointed out."""
    pitch = min(20.0, max(4.0, TALL / max(len(rows), 1)))
    left = max(34.0, max((min(room(row.label), NAMES) for row in rows), default=0.0) + 10)
    bottom = TOP + pitch * len(rows)
    known = [row.values[np.isfinite(row.values)] for row in rows]
    scale = linear([float(end) for k in known if len(k) for end in (k.min(), k.max())], left, WIDTH - RIGHT)
    parts = [text(down, 2.0, TOP - 8, class_="axis")]
    for tick, words in scale.ticks():
        parts.append(line(scale(tick), TOP, scale(tick), bottom, class_="zero" if tick == 0 else "rule"))
        parts.append(text(words, scale(tick), bottom + 15, text_anchor="middle"))
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if s * pitch >= SMALL + 2)
    for i, (row, values) in enumerate(zip(rows, known, strict=True)):
        y = bottom - (i + 0.5) * pitch
        if i % step == 0:
            parts.append(text(shortened(row.label, NAMES), left - 6, y + 4, text_anchor="end"))
        parts += _spread(row, values, scale, y, pitch, unit, down)
    middle = (scale.start + scale.stop) / 2
    parts.append(text(shortened(unit, WIDTH - 40), middle, bottom + 31, text_anchor="middle", class_="axis"))
    return drawing(WIDTH, bottom + FOOT, about, *parts, kind="ranges")


def _spread(row: Range, values: np.ndarray, scale: Scale, y: float, pitch: float, unit: str, down: str) -> list[str]:
    if not len(values):
        return [text(f"{NONE} (no value)", scale.start + 4, y + 4, class_="axis")]
    least, low, median, high, most = (float(q) for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    said = (
        f"{down} {row.label}: {len(values):,} values from {number(least)} to "
        f"{with_unit(number(most), unit)}, half between {number(low)} and {number(high)}, median {number(median)}"
    )
    thick = min(10.0, 0.6 * pitch)
    box = {"x": scale(low), "y": y - thick / 2, "width": max(scale(high) - scale(low), 0.5), "height": thick}
    hit = {"x": scale(least), "y": y - pitch / 2, "width": max(scale(most) - scale(least), 1.0), "height": pitch}
    return [
        line(scale(least), y, scale(most), y, class_="reach"),
        element("rect", **box, class_="bar"),
        line(scale(median), y - thick / 2, scale(median), y + thick / 2, class_="median"),
        element("rect", title(said), **hit, class_="hit"),
        *(
            element(
                "circle",
                title(f"{name}: {with_unit(number(value, sign=True), unit)}"),
                cx=scale(value),
                cy=y,
                r=min(3.5, 0.4 * pitch + 1),
                class_="pointed",
            )
            for name, value in row.pointed
        ),
    ]
