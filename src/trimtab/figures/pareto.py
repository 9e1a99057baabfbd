"""Effect against side effect: every point that was tried, the front that none beats, the limit and the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.figures.numbers import Estimate, estimate, exact, number
from trimtab.figures.scales import linear, logarithmic
from trimtab.figures.svg import drawing, element, line, path, room, shortened, text, title

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 384.0, 44.0, 12.0, 32.0, 250.0


@dataclass(frozen=True)
class Spot:
    """One intervention: its name, its side effect (x) and its effect (y), and what is to be shown of it."""

    name: str
    x: float
    y: Estimate
    front: bool = False
    allowed: bool = True
    picked: bool = False


def pareto(spots: Sequence[Spot], *, about: str, x_axis: str, y_axis: str, limit: float) -> str:
    """Points on a logarithmic x axis (what is not above zero lies at its left end), the front's in order joined."""
    known = [spot for spot in spots if math.isfinite(spot.x) and math.isfinite(spot.y.mean)]
    across = logarithmic([*(spot.x for spot in known), limit], LEFT + 6, WIDTH - RIGHT)
    up = linear([spot.y.mean for spot in known], BOTTOM, TOP)
    parts = []
    for tick, words in up.ticks():
        parts.append(line(LEFT, up(tick), WIDTH - RIGHT, up(tick), class_="zero" if tick == 0 else "rule"))
        parts.append(text(words, LEFT - 6, up(tick) + 4, text_anchor="end"))
    for tick, words in across.ticks():
        parts.append(line(across(tick), TOP, across(tick), BOTTOM + 4, class_="rule"))
        parts.append(text(words, across(tick), BOTTOM + 16, text_anchor="middle"))
    if math.isfinite(limit) and limit > 0:
        parts += _limit(across(limit), exact(limit))
    front = sorted((spot for spot in known if spot.front), key=lambda spot: (spot.x, abs(spot.y.mean)))
    if len(front) > 1:
        parts.append(path([(across(spot.x), up(spot.y.mean)) for spot in front], class_="front"))
    for spot in sorted(known, key=lambda spot: (spot.picked, spot.front)):
        x, y = across(spot.x), up(spot.y.mean)
        notes = ", ".join(
            word
            for word, holds in (
                ("picked", spot.picked),
                ("on the front", spot.front),
                ("over the limit", not spot.allowed),
            )
            if holds
        )
        said = f"{spot.name}: {y_axis} {estimate(spot.y)}; {x_axis} {number(spot.x)}{notes and f'; {notes}'}"
        kind = f"spot{' front' if spot.front else ''}{'' if spot.allowed else ' hollow'}"
        parts.append(element("circle", title(said), cx=x, cy=y, r=4.5 if spot.front else 3.0, class_=kind))
        if spot.picked:
            parts += _picked(x, y)
    parts.append(text(shortened(y_axis, WIDTH / 2), 2.0, 10.0, class_="axis"))
    parts.append(
        text(
            shortened(x_axis, WIDTH - 60), (LEFT + WIDTH - RIGHT) / 2, BOTTOM + 32, text_anchor="middle", class_="axis"
        )
    )
    return drawing(WIDTH, BOTTOM + 40, about, *parts, kind="pareto")


def _limit(x: float, words: str) -> list[str]:
    words = f"limit {words}"
    left = x > WIDTH - RIGHT - room(words) - 6
    return [
        line(x, TOP - 6, x, BOTTOM, class_="limit"),
        text(words, x + (-4 if left else 4), TOP - 8, text_anchor="end" if left else "start", class_="strong"),
    ]


def _picked(x: float, y: float) -> list[str]:
    left = x > WIDTH / 2
    return [
        element("circle", cx=x, cy=y, r=9.0, class_="ring"),
        text("picked", x + (-13 if left else 13), y - 6, text_anchor="end" if left else "start", class_="chosen"),
    ]
