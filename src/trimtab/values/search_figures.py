"""A search as a figure: effect against each of its costs. Pure functions behind `Search.plot`."""

from __future__ import annotations

import math

from trimtab.figures.figure import Drawing, Figure
from trimtab.figures.numbers import counted, exact
from trimtab.figures.pareto import Spot, pareto
from trimtab.values.search import Point, Search

KL = "KL, nats per token of neutral text"
LOST = "accuracy lost on unrelated items"


def figure(search: Search) -> Figure:
    """Every point by its KL and its effect, and by the accuracy it loses where that was measured."""
    drawings = [Drawing(drawn(search, [p.kl for p in search.points], KL, search.limit), "Effect against KL")]
    lost = [math.nan if p.capability is None else p.capability.mean for p in search.points]
    if any(math.isfinite(value) for value in lost):
        svg = drawn(search, lost, LOST, math.inf)
        drawings.append(
            Drawing(svg, "Effect against capability", "What loses nothing, or gains, lies at the left end.")
        )
    words = (
        f"{counted(len(search.points), 'point')}; large: the front, which no other point beats. Hollow: over the limit."
    )
    return Figure("Search", tuple(drawings), words)


def drawn(search: Search, costs: list[float], axis: str, limit: float) -> str:
    """One drawing of effect against a cost."""
    spots = [
        Spot(name(point), cost, point.effect, point.front, point.allowed, i == search.picked)
        for i, (point, cost) in enumerate(zip(search.points, costs, strict=True))
    ]
    unit = f"effect, {search.unit}" if search.unit else "effect"
    return pareto(spots, about=f"Effect against {axis}, every point tried", x_axis=axis, y_axis=unit, limit=limit)


def name(point: Point) -> str:
    """A point in a few words."""
    return f"{point.method}, {point.site}, {point.scope} × {exact(point.coefficient)}"
