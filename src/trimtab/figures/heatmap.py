"""A map of layers and columns, coloured from blue (negative) through the page's own colour (zero) to orange (positive).

Blue and orange can be told apart with every common colour blindness. Steps grow evenly, as many up as down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.figures.colours import RGB, ramp
from trimtab.figures.numbers import NONE, number, with_unit
from trimtab.figures.svg import SMALL, drawing, element, line, room, shortened, text, title

STEPS = 21
LIGHT: tuple[RGB, ...] = ((8, 48, 107), (74, 144, 204), (250, 251, 253), (243, 147, 61), (127, 39, 4))
DARK: tuple[RGB, ...] = ((166, 216, 255), (38, 106, 170), (27, 31, 39), (176, 88, 20), (255, 205, 140))
LEFT, TOP, LEGEND = 34.0, 20.0, 46.0
NAMES = 100.0  # pixels of a row's or a column's name at most


def heatmap(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    names: Sequence[Sequence[str]],
    *,
    about: str,
    unit: str,
    across: str,
    down: str = "layer",
    outlined: int = 5,
    strength: np.ndarray | None = None,
    kind: str = "map",
    most: float | None = None,
) -> str:
    """Values (row column), the first row at the bottom; `names` says what each cell is when the pointer rests on it.

    The `outlined` cells of largest size, or of largest `strength` where that is given, have a frame. The strongest
    colour stands for `most`, by default the largest size: give it to maps that are to be compared.
    """
    n, wide = values.shape
    cell = min(64.0, max(14.0, 250 / wide))
    high = min(20.0, max(6.0, 340 / n))
    slanted = max(map(room, columns), default=0) > cell - 2
    below = 0.75 * min(max(map(room, columns)), NAMES) + 14 if slanted else SMALL + 6
    left = max(LEFT, min(max(map(room, rows), default=0), NAMES) + 8)
    if slanted:  # the first names reach out to the left
        left = max(left, *(0.75 * min(room(c), NAMES) - (j + 0.5) * cell + 6 for j, c in enumerate(columns)))
    width = max(left + cell * wide + 6, 262.0)
    bottom = TOP + high * n
    height = bottom + below + SMALL + LEGEND
    most = float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0)) if most is None else most
    strongest = set(_largest(np.where(values == 0, np.nan, np.abs(values)) if strength is None else strength, outlined))
    cells, frames = [], []
    for (i, j), value in np.ndenumerate(values):
        box = {"x": left + j * cell, "y": bottom - (i + 1) * high}
        said = f"{names[i][j]}: {with_unit(number(float(value), sign=True), unit)}"
        size = {"width": cell - 1, "height": high - 1}
        cells.append(element("rect", title(said), **box, **size, class_=shade(float(value), most)))
        if (i, j) in strongest:
            frames.append(element("rect", **box, **size, class_="frame"))
    return drawing(
        width,
        height,
        about,
        text(down, 2.0, TOP - 8, class_="axis"),
        *(
            text(shortened(rows[i], NAMES), left - 5, bottom - (i + 0.5) * high + 4, text_anchor="end")
            for i in _marked(n, high)
        ),
        *cells,
        *frames,
        *(_column(words, left + (j + 0.5) * cell, bottom, slanted) for j, words in _columns(columns, cell, slanted)),
        text(across, left + cell * wide / 2, bottom + below + SMALL, class_="axis", text_anchor="middle"),
        *_legend(left, height - LEGEND + 20, most, unit, bool(np.isnan(values).any())),
        kind=kind,
    )


def shade(value: float, most: float) -> str:
    """The class of a value's colour: `d0` at −most to `d20` at +most, `d10` at zero, `none` where there is no
    value."""
    if not math.isfinite(value):
        return "none"
    part = value / most if most else 0.0
    return f"d{round((min(max(part, -1.0), 1.0) + 1) / 2 * (STEPS - 1))}"


def diverging_css() -> str:
    """A class for each step, in both schemes."""
    dark = _rules(DARK).replace("\n", "\n  ")
    return f"{_rules(LIGHT)}\n@media screen and (prefers-color-scheme: dark) {{\n  {dark}\n}}\n"


def _rules(ends: tuple[RGB, ...]) -> str:
    return "\n".join(
        ".chart .d{} {{ fill: #{:02x}{:02x}{:02x}; }}".format(i, *c) for i, c in enumerate(ramp(ends, STEPS))
    )


def _largest(values: np.ndarray, k: int) -> list[tuple[int, int]]:
    sizes = np.where(np.isfinite(values), values, -np.inf)
    order = np.argsort(-sizes.ravel(), kind="stable")[:k]
    at = zip(*np.unravel_index(order, values.shape), strict=True)
    return [(int(i), int(j)) for i, j in at if np.isfinite(sizes[i, j])]


def _marked(n: int, high: float) -> list[int]:
    """Rows with a label: every so many from the first, and the last where there is room."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if s * high >= SMALL + 2)
    marked = list(range(0, n, step))
    return marked if (n - 1 - marked[-1]) * high < SMALL + 2 else [*marked, n - 1]


def _columns(columns: Sequence[str], cell: float, slanted: bool) -> list[tuple[int, str]]:
    step = max(1, math.ceil((SMALL + 3) / cell)) if slanted else 1
    return [(j, shortened(words, NAMES)) for j, words in enumerate(columns) if j % step == 0]


def _column(words: str, x: float, bottom: float, slanted: bool) -> str:
    if not slanted:
        return text(words, x, bottom + SMALL + 4, text_anchor="middle")
    return text(words, x + 4, bottom + 12, text_anchor="end", transform=f"rotate(-45 {x + 4:.1f} {bottom + 12:.1f})")


def _legend(x: float, y: float, most: float, unit: str, missing: bool) -> list[str]:
    """The colours in a row, with what both ends and the middle stand for."""
    if not most:
        return [text("no value differs from zero", x, y + 10)]
    step = 9.0
    end = x + STEPS * step
    parts = [
        *(element("rect", x=x + i * step, y=y, width=step, height=10.0, class_=f"d{i}") for i in range(STEPS)),
        element("rect", x=x, y=y, width=STEPS * step, height=10.0, class_="edge"),
        line(x + STEPS * step / 2, y + 10, x + STEPS * step / 2, y + 13, class_="edge"),
        text(number(-most, 2), x, y + 23),
        text("0", x + STEPS * step / 2, y + 23, text_anchor="middle"),
        text(number(most, 2, sign=True), end, y + 23, text_anchor="end"),
        text(shortened(unit, 230), x, y - 5, class_="axis"),
    ]
    if missing:
        parts += [
            element("rect", x=end + 8, y=y, width=10.0, height=10.0, class_="none"),
            text(NONE, end + 22, y + 9),
        ]
    return parts
