"""Control draws as dots, row by row, with the picked intervention's effect drawn through all rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.figures.numbers import NONE, Estimate, has_interval, mean_of, number
from trimtab.figures.scales import Scale, linear
from trimtab.figures.svg import SMALL, drawing, element, line, room, shortened, span, text, title

WIDTH, LEFT, RIGHT, TOP, FOOT = 384.0, 12.0, 12.0, 30.0, 36.0
RADIUS = 3.5


@dataclass(frozen=True)
class Row:
    """A control: its name, a number of its own to stand beside it, and the value of each draw."""

    name: str
    note: str
    values: np.ndarray


def draws(rows: Sequence[Row], picked: Estimate, *, about: str, axis: str) -> str:
    """Draws that would cover each other are stacked; the thin line is the picked effect, the band its interval."""
    known = [row.values[np.isfinite(row.values)] for row in rows]
    ends = [picked.mean, picked.low, picked.high, *(float(value) for values in known for value in values)]
    scale = linear(ends, LEFT, WIDTH - RIGHT)
    y, parts = TOP, []
    for row, values in zip(rows, known, strict=True):
        levels = stacked([scale(float(value)) for value in values])
        middle = y + SMALL + 8 + RADIUS + max(levels, default=0) * 2 * RADIUS
        parts += _lines(scale, y + SMALL + 5, middle + RADIUS + 10)
        parts += _row(row, values, levels, scale, y + SMALL, middle, axis)
        y = middle + RADIUS + 14
    return drawing(WIDTH, y + FOOT, about, *_picked(picked, scale, y), *parts, *_axis(scale, y, axis), kind="dots")


def stacked(places: Sequence[float], apart: float = 2 * RADIUS) -> list[int]:
    """The level of each dot, counted from 0, so that no two of one level are nearer than `apart`.

    >>> stacked([10.0, 11.0, 30.0, 12.0])
    [0, 1, 0, 2]
    """
    taken: list[list[float]] = []
    levels = [0] * len(places)
    for i in sorted(range(len(places)), key=lambda i: (places[i], i)):
        level = next((n for n, row in enumerate(taken) if places[i] - row[-1] >= apart), len(taken))
        if level == len(taken):
            taken.append([])
        taken[level].append(places[i])
        levels[i] = level
    return levels


def _row(
    row: Row, values: np.ndarray, levels: list[int], scale: Scale, y: float, middle: float, axis: str
) -> list[str]:
    name = shortened(row.name, WIDTH - LEFT - RIGHT - room(row.note) - 16)
    parts = [text(name, LEFT, y, span(row.note, dx=8.0, class_="axis"), class_="strong")]
    if not len(values):
        return [*parts, text(f"{NONE} (no draw has a value)", LEFT, middle + 4, class_="axis")]
    for i, (value, level) in enumerate(zip(values.tolist(), levels, strict=True)):
        said = f"{row.name}, draw {i + 1}: {axis} {number(value, sign=True)}"
        at = {"cx": scale(value), "cy": middle - level * 2 * RADIUS}
        parts.append(element("circle", title(said), **at, r=RADIUS, class_="draw"))
    mean = scale(float(np.mean(values)))
    return [*parts, line(mean, middle + RADIUS + 2, mean, middle + RADIUS + 8, class_="average")]


def _lines(scale: Scale, top: float, bottom: float) -> list[str]:
    return [
        line(scale(tick), top, scale(tick), bottom, class_="zero" if tick == 0 else "rule") for tick, _ in scale.ticks()
    ]


def _axis(scale: Scale, bottom: float, axis: str) -> list[str]:
    parts = [text(words, scale(tick), bottom + 15, text_anchor="middle") for tick, words in scale.ticks()]
    return [*parts, text(shortened(axis, WIDTH - 10), WIDTH / 2, bottom + 31, text_anchor="middle", class_="axis")]


def _picked(picked: Estimate, scale: Scale, bottom: float) -> list[str]:
    if not math.isfinite(picked.mean):
        return []
    x = scale(picked.mean)
    parts = []
    if has_interval(picked):
        low, high = scale(picked.low), scale(picked.high)
        parts.append(element("rect", x=low, y=TOP - 6, width=high - low, height=bottom - TOP + 6, class_="band"))
    words = f"picked {mean_of(picked)}"
    left = x > WIDTH / 2
    at = min(x + 4, WIDTH - RIGHT) if left else max(x - 4, LEFT)
    return [
        *parts,
        line(x, TOP - 6, x, bottom, class_="picked"),
        text(words, at, TOP - 12, text_anchor="end" if left else "start", class_="chosen"),
    ]
