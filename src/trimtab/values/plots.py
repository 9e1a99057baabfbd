"""Scores as figures: which drawing fits which axes. Pure functions behind `Scores.plot`."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from trimtab.errors import TrimtabError, nearest
from trimtab.figures.bars import Bar, bars
from trimtab.figures.figure import Drawing, Figure
from trimtab.figures.heatmap import heatmap
from trimtab.figures.lines import SERIES, Curve, Mark, curves
from trimtab.figures.numbers import Value, counted
from trimtab.figures.ranges import Range, ranges
from trimtab.values.scores import AnyScores
from trimtab.values.slices import apart, select
from trimtab.values.tables import strongest

Kind = Literal["map", "lines", "bars"]

MOST_CELLS = 6000
"""Cells of a map; scores with more are drawn as their spread and their strongest cells."""
RANKED = 30
"""Bars at most."""
OUTLINED = 5
MOST_MAPS = 8
WIDE = 24
"""Columns from which on a map has the whole width of a page, and keeps its size on a small screen."""
ALONG = ("layer", "pos")
"""Axes whose labels are numbers with a distance between them."""

DIRECTIONS: dict[str, str] = {
    "denoise": "clean values put into the corrupt run",
    "noise": "corrupt values put into the clean run",
}
"""What each direction put where, in words."""


def plot(scores: AnyScores, kind: Kind | None = None) -> Figure:
    """The figure of scores: a drawing, or one for each label of an axis that is too many."""
    if kind not in (None, "map", "lines", "bars"):
        kinds = ("map", "lines", "bars")
        raise TrimtabError(f'kind is "map", "lines", "bars" or None, got {kind!r}{nearest(str(kind), kinds)}')
    parts = parted(scores)
    means = np.concatenate([part.mean().ravel() for part in parts])
    most = float(np.max(np.abs(means), where=np.isfinite(means), initial=0.0))
    strengths = np.concatenate([_framing(part).ravel() for part in parts])
    sizes = np.sort(strengths[np.isfinite(strengths)])[::-1]
    framed = float(sizes[min(OUTLINED, len(sizes)) - 1]) if len(sizes) else math.inf
    drawn = [(part, drawings(part, kind, most, framed)) for part in parts]
    found = [
        Drawing(d.svg, f"{pattern(part)}{f': {d.title}' if d.title else ''}" if len(parts) > 1 else d.title, d.caption)
        for part, several in drawn
        for d in several
    ]
    name = pattern(scores)
    return Figure(f"{scores.method}: {name}" if scores.method else name, tuple(found), about(scores))


def about(scores: AnyScores) -> str:
    """What the numbers of a figure are, in a sentence."""
    unit = f", in {scores.unit}" if scores.unit else ""
    direction = f"; {DIRECTIONS[scores.direction]}" if scores.direction else ""
    order = "" if scores.order == "abs" else f"; the {scores.order}est are the strongest"
    return f"Mean of {counted(len(scores), 'example')}{unit}{direction}{order}."


def pattern(scores: AnyScores) -> str:
    """The address that all cells share, a star for each axis of several labels; candidates by their number.

    >>> pattern(AnyScores(np.zeros((1, 2, 3)), ("example", "layer", "head"), {}, "L{layer}.head[{head}]@end"))
    'L*.head[*]@end'
    """
    if scores.site in {f"{{{dim}}}" for dim in scores.places}:
        return counted(scores.mean().size, scores.site.strip("{}"))
    return scores.site.format(
        **{dim: names[0] if len(names) == 1 else "*" for dim, names in scores.coords.items() if dim in scores.places}
    )


def parted(scores: AnyScores) -> list[AnyScores]:
    """Scores with two axes at most: those of one label are fixed, and the shortest of too many is taken apart."""
    for dim in scores.places:
        if len(scores.coords[dim]) == 1 and len(scores.places) > 1:
            scores = select(scores, {dim: scores.coords[dim][0]})
    if len(scores.places) <= 2:
        return [scores]
    spare = [dim for dim in scores.places if dim != "layer"]
    dim = "span" if "span" in spare else min(spare, key=lambda dim: len(scores.coords[dim]))
    found = [part for _, whole in apart(scores, dim) for part in parted(whole)]
    return found if len(found) <= MOST_MAPS else [scores]


def drawings(
    scores: AnyScores, kind: Kind | None = None, most: float | None = None, framed: float = math.inf
) -> list[Drawing]:
    """The drawings of scores with two axes at most; the strongest cells of others.

    `most` as in `heatmap`; cells of strength `framed` have a frame.
    """
    mean = scores.mean()
    places = scores.places
    if not np.isfinite(mean).any():
        return [Drawing(bars([], about="no place has a value", unit=scores.unit), "", "No place here has a value.")]
    if len(places) > 2 or kind == "bars" or (len(places) < 2 and (kind == "map" or not _along(scores))):
        return [ranking(scores)]
    if len(places) == 1 or (kind == "lines" and len(_second(scores)) <= SERIES):
        return [lines(scores)]
    if mean.size <= MOST_CELLS:
        count = int((_framing(scores) >= framed).sum())
        svg = map_svg(scores, most=most, outlined=count)
        return [Drawing(svg, "", "Framed: the strongest." if count else "")]
    return [spread(scores), ranking(scores)]


def map_svg(
    scores: AnyScores, words: str = "", more: str = "", most: float | None = None, outlined: int = OUTLINED
) -> str:
    """The map of scores with two axes, layers upwards where there are layers."""
    mean, strength, (down, across) = scores.mean(), _framing(scores), scores.places
    if across == "layer":
        mean, strength, down, across = mean.T, strength.T, across, down
    rows, columns = scores.coords[down], scores.coords[across]
    names = [[scores.site.format(**{down: row, across: column}) for column in columns] for row in rows]
    return heatmap(
        mean,
        [str(label) for label in rows],
        [str(label) for label in columns],
        names,
        about=f"{words or pattern(scores)}: mean {scores.unit} by {down} and {across}{more}",
        unit=scores.unit,
        across=across,
        down=down,
        outlined=outlined,
        strength=strength,
        kind="map large" if len(columns) > WIDE else "map",
        most=most,
    )


def ranking(scores: AnyScores, most: int = RANKED) -> Drawing:
    """The strongest cells as bars with their intervals."""
    cells = strongest(scores, most)
    size = scores.mean().size
    note = f"The {len(cells)} strongest of {size:,}" if size > len(cells) else ""
    rows = [Bar(site, value) for _, site, value, _ in cells]
    return Drawing(bars(rows, about=f"{pattern(scores)}: {note or 'every cell'}", unit=scores.unit), note)


def lines(scores: AnyScores) -> Drawing:
    """Means with their intervals along the layers or positions, a line for each label of the other axis."""
    along = next(dim for dim in scores.places if dim in ALONG)
    interval = scores.interval()
    mean, low, high = scores.mean(), interval.low, interval.high
    if scores.places[0] != along:
        mean, low, high = mean.T, low.T, high.T
    ends = [array.reshape(len(scores.coords[along]), -1) for array in (mean, low, high)]
    other = _second(scores)
    found = []
    for j, label in enumerate(other or ("",)):
        name = pattern(scores) if label == "" else str(label)
        values = [Value(float(m), float(a), float(b)) for m, a, b in zip(*(part[:, j] for part in ends), strict=True)]
        found.append(Curve(name, tuple(Mark(float(x), v) for x, v in zip(scores.coords[along], values, strict=True))))
    svg = curves(found, about=f"{pattern(scores)} along the {along}", x_axis=along, y_axis=scores.unit or "mean")
    return Drawing(svg, "", "Strokes: 95\u00a0% intervals." if np.isfinite(ends[1]).any() else "")


def spread(scores: AnyScores) -> Drawing:
    """How the means are spread in each row of a map that has too many cells, the strongest of all pointed out."""
    mean, (down, across) = scores.mean(), scores.places
    if across == "layer":
        mean, down, across = mean.T, across, down
    pointed: dict[object, list[tuple[str, float]]] = {}
    for labels, site, value, _ in strongest(scores, OUTLINED):
        pointed.setdefault(labels[down], []).append((site, value.mean))
    rows = [
        Range(str(label), row, tuple(pointed.get(label, ())))
        for label, row in zip(scores.coords[down], mean, strict=True)
    ]
    svg = ranges(rows, about=f"{pattern(scores)}: spread by {down}", unit=scores.unit, down=down)
    caption = f"Line: all {len(scores.coords[across]):,}; box: the middle half; points: the {OUTLINED} strongest."
    return Drawing(svg, f"Spread of the {across}s", caption)


def _framing(scores: AnyScores) -> np.ndarray:
    """How strong each cell is, NaN where none is to be framed: an effect of nothing is no effect."""
    strength = scores.strength()
    return np.where(strength == 0, np.nan, strength) if scores.order == "abs" else strength


def _along(scores: AnyScores) -> bool:
    """Whether a line can be drawn along an axis: its labels are numbers, and there are enough of them."""
    return any(
        dim in ALONG and len(scores.coords[dim]) > 2 and all(isinstance(label, int) for label in scores.coords[dim])
        for dim in scores.places
    )


def _second(scores: AnyScores) -> tuple[str | int, ...]:
    """The labels of the axis beside the one that lines go along."""
    along = next((dim for dim in scores.places if dim in ALONG), None)
    return next((scores.coords[dim] for dim in scores.places if dim != along), ())
