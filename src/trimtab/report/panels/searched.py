"""Panels of a search: effects along the coefficient, and effect against side effect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.figures.lines import SERIES, Curve, Mark, curves
from trimtab.figures.numbers import common_places, counted, estimate, exact, interval_of, mean_of, number
from trimtab.figures.pareto import Spot, pareto
from trimtab.report.panels.panel import Panel, Table
from trimtab.values.findings import Point, Search

MOST_POINTS = 1500
"""Points of the table and of the Pareto chart; beyond that the front and the largest effects are kept."""

Place = tuple[str, str, str]


def direction_of(search: Search) -> int:
    """+1 where the effect is to be raised, −1 where lowered: the way the picked point goes, else the front's points."""
    point = picked_point(search)
    effects = [point.effect.mean] if point else [p.effect.mean for p in search.points if p.front]
    return -1 if sum(effect for effect in effects if math.isfinite(effect)) < 0 else 1


def picked_point(search: Search) -> Point | None:
    """The point that the rule picked, if any."""
    if search.picked is None or not 0 <= search.picked < len(search.points):
        return None
    return search.points[search.picked]


def curve_panels(search: Search) -> list[Panel]:
    """The six lines whose best allowed point has the largest effect, a panel for each method among them."""
    lines = _ranked(search)
    shown = lines[:SERIES]
    panels = []
    for method in dict.fromkeys(place[0] for place, _ in shown):
        chosen = [(place, points) for place, points in shown if place[0] == method]
        drawn = [Curve(_named(place), tuple(_mark(p, search) for p in _known(points))) for place, points in chosen]
        if not any(curve.marks for curve in drawn):
            continue
        svg = curves(
            drawn,
            about=f"Effect along the coefficient, {method}; the table of points holds the numbers",
            x_axis="coefficient",
            y_axis=f"effect, {search.unit}" if search.unit else "effect",
        )
        panels.append(Panel(f"Along the coefficient: {method}", "", svg))
    return panels


def other_lines(search: Search) -> Table | None:
    """The lines that are not drawn, each by its best point."""
    rest = _ranked(search)[SERIES:]
    places = common_places(point.effect for _, points in rest for point in points)
    rows = []
    for place, points in rest:
        best = _best(points, direction_of(search))
        effect = (mean_of(best.effect, places=places), interval_of(best.effect, places))
        limit = "yes" if best.allowed else "no"
        rows.append((place[1], place[2], place[0], limit, exact(best.coefficient), *effect, number(best.kl)))
    columns = ("site", "scope", "method", "within the limit", "coefficient", "effect", "95 %", "KL")
    about = f"{counted(len(rest), 'more line')}, each at its best point"
    return Table(about, columns, tuple(rows), 4, (0, 1), _WHY) if rows else None


def pareto_panel(search: Search) -> Panel:
    """Every point by its KL and its effect."""
    if not any(math.isfinite(p.kl) and math.isfinite(p.effect.mean) for p in search.points):
        return Panel("Effect against side effect", "No point has both an effect and a KL that could be measured.")
    spots = [
        Spot(
            f"{p.method}, {p.site}, {p.scope} × {exact(p.coefficient)}",
            p.kl,
            p.effect,
            p.front,
            p.allowed,
            p is picked_point(search),
        )
        for p in _kept(search)
    ]
    return Panel(
        "Effect against side effect",
        "Each point is one intervention. Large: the front, which no other point beats in both. Hollow: over the limit.",
        pareto(
            spots,
            about="Effect against KL, every point tried; the table of points holds the numbers",
            x_axis="KL, nats per token of neutral text",
            y_axis=f"effect, {search.unit}" if search.unit else "effect",
            limit=search.limit,
        ),
    )


def point_table(search: Search) -> Table:
    """Every point, as long as they are not too many."""
    kept = _kept(search)
    lost = any(p.capability is not None for p in kept)
    places = common_places(p.effect for p in kept)
    rows = [
        (
            p.site,
            p.scope,
            p.method,
            ", ".join(
                word
                for word, holds in (("picked", p is picked_point(search)), ("front", p.front), ("over", not p.allowed))
                if holds
            ),
            exact(p.coefficient),
            mean_of(p.effect, places=places),
            interval_of(p.effect, places),
            number(p.kl),
            *((number(math.nan if p.capability is None else p.capability.mean),) if lost else ()),
        )
        for p in kept
    ]
    cut = f" (the front and the largest effects of {len(search.points):,})" if len(kept) < len(search.points) else ""
    columns = (
        "site",
        "scope",
        "method",
        "which",
        "coefficient",
        "effect",
        "95 %",
        "KL",
        *(("accuracy lost",) if lost else ()),
    )
    return Table(f"{counted(len(kept), 'point')}{cut}", columns, tuple(rows), 4, (0, 1), _WHY)


def picked_words(search: Search) -> str:
    """The picked point in words."""
    point = picked_point(search)
    if point is None:
        return ""
    place = f"{point.method} at {_named(('', point.site, point.scope))}, coefficient {exact(point.coefficient)}"
    if not (math.isfinite(point.effect.mean) and math.isfinite(point.kl)):
        return f"{place} (its effect and KL could not be measured)"
    return f"{place}: effect {estimate(point.effect, search.unit)} at a KL of {number(point.kl)}"


_WHY = "the point could not be measured, or has too few examples for an interval"


def _ranked(search: Search) -> list[tuple[Place, list[Point]]]:
    lines: dict[Place, list[Point]] = {}
    for point in search.points:
        lines.setdefault((point.method, point.site, point.scope), []).append(point)
    aim = direction_of(search)

    def worth(points: list[Point]) -> tuple[bool, float]:
        best = _best(points, aim)
        return best.allowed, _size(best, aim)

    return sorted(lines.items(), key=lambda item: worth(item[1]), reverse=True)


def _best(points: Sequence[Point], aim: int) -> Point:
    return max(points, key=lambda p: (p.allowed and math.isfinite(p.effect.mean), _size(p, aim)))


def _size(point: Point, aim: int) -> float:
    return aim * point.effect.mean if math.isfinite(point.effect.mean) else -math.inf


def _known(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.coefficient) and math.isfinite(point.effect.mean)]


def _mark(point: Point, search: Search) -> Mark:
    return Mark(point.coefficient, point.effect, point.allowed, point is picked_point(search))


def _named(place: Place) -> str:
    return f"{place[1]} · {place[2]}" if place[2] else place[1]


def _kept(search: Search) -> list[Point]:
    if len(search.points) <= MOST_POINTS:
        return list(search.points)
    aim, chosen = direction_of(search), picked_point(search)
    order = sorted(search.points, key=lambda p: (p is chosen, p.front, _size(p, aim)), reverse=True)[:MOST_POINTS]
    kept = {id(point) for point in order}
    return [point for point in search.points if id(point) in kept]
