"""Ranked bars with their intervals, each with its control's beside it where there is one, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.figures.numbers import NONE, Estimate, common_places, estimate, fixed, has_interval, mean_of
from trimtab.figures.scales import Scale, linear, step_of
from trimtab.figures.svg import SMALL, drawing, element, line, room, shortened, text, title

WIDTH, RIGHT, TOP, FOOT = 384.0, 50.0, 8.0, 36.0
BESIDE = 150.0
"""Pixels that labels may take beside their bars; longer ones stand above them."""


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value with an interval, what it is held against, and whether it is drawn pale."""

    label: str
    value: Estimate
    control: Estimate | None = None
    pale: bool = False


def bars(rows: Sequence[Bar], *, about: str, unit: str, mono: bool = True) -> str:
    """Bars from zero, in the order given; a control is a grey point with its interval under the bar."""
    longest = max((room(bar.label, mono) for bar in rows), default=0.0)
    above = longest > BESIDE
    left = 8.0 if above else longest + 10
    controlled = any(bar.control is not None for bar in rows)
    thick = 10.0
    pitch = thick + (14 if controlled else 6) + (SMALL + 5 if above else 0)
    places = common_places(bar.value for bar in rows)
    bottom = TOP + pitch * len(rows)
    known = [end for bar in rows for value in (bar.value, bar.control) if value is not None for end in _ends(value)]
    scale = linear(known, left, WIDTH - RIGHT)
    parts = _axis(scale, TOP, bottom, unit)
    for i, bar in enumerate(rows):
        y = TOP + i * pitch + (SMALL + 5 if above else 0)
        parts += _bar(bar, scale, y, thick, unit, places)
        label = shortened(bar.label, WIDTH - RIGHT if above else BESIDE, mono)
        place = {"x": left, "y": y - 4} if above else {"x": left - 6, "y": y + thick - 2, "text_anchor": "end"}
        parts.append(text(label, **place, class_="mono" if mono else None))
    return drawing(WIDTH, bottom + FOOT, about, *parts, kind="bars")


def histogram(values: np.ndarray, *, about: str, axis: str, aim: int, most: int = 18) -> str:
    """How many values lie where; those on the wrong side of zero (`aim` −1: above it) in the colour of the wrong
    way."""
    known = values[np.isfinite(values)]
    left, right, top, bottom = 34.0, WIDTH - 10, 22.0, 200.0
    scale = linear(known.tolist(), left, right, most=8)
    step = step_of(scale.low, scale.high, most)
    edges = np.arange(round(scale.low / step), round(scale.high / step) + 1) * step
    counts = np.histogram(known, edges)[0]
    up = linear([float(counts.max(initial=1))], bottom, top, most=4)
    parts = _axis(scale, top, bottom, axis)
    parts += [
        text(words, left - 6, up(tick) + 4, text_anchor="end") for tick, words in up.ticks(4) if tick == round(tick)
    ]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        x, y, wrong = scale(float(low)), up(float(count)), (low + high) / 2 * aim < 0
        said = f"{axis} {fixed(low, 2)} to {fixed(high, 2)}: {count} of {len(known)}"
        size = {"width": max(1.0, scale(float(high)) - x - 1), "height": bottom - y}
        if count:
            parts.append(element("rect", title(said), x=x + 0.5, y=y, **size, class_="wrong" if wrong else "bar"))
    if len(known):
        mean = float(known.mean())
        x, middle = scale(mean), (left + right) / 2
        parts.append(line(x, top - 4, x, bottom, class_="mean"))
        parts.append(
            text(
                f"mean {fixed(mean, 2, sign=True)}",
                x + (-4 if x > middle else 4),
                top - 8,
                text_anchor="end" if x > middle else "start",
                class_="strong",
            )
        )
    return drawing(WIDTH, bottom + FOOT, about, *parts, kind="histogram")


def _axis(scale: Scale, top: float, bottom: float, unit: str) -> list[str]:
    parts = []
    for tick, words in scale.ticks():
        x = scale(tick)
        parts.append(line(x, top, x, bottom, class_="zero" if tick == 0 else "rule"))
        parts.append(text(words, x, bottom + 15, text_anchor="middle"))
    return [
        *parts,
        text(
            shortened(unit, scale.stop - scale.start + 40),
            (scale.start + scale.stop) / 2,
            bottom + 31,
            text_anchor="middle",
            class_="axis",
        ),
    ]


def _bar(bar: Bar, scale: Scale, y: float, thick: float, unit: str, places: int) -> list[str]:
    if not math.isfinite(bar.value.mean):
        return [text(f"{NONE} (no value)", scale(0) + 4, y + thick - 2)]
    zero, end = scale(0), scale(bar.value.mean)
    against = "" if bar.control is None else f"; control {estimate(bar.control, unit)}"
    box = {"x": min(zero, end), "y": y, "width": max(abs(end - zero), 0.5), "height": thick}
    parts = [
        element(
            "rect",
            title(f"{bar.label}: {estimate(bar.value, unit)}{against}"),
            **box,
            class_="bar pale" if bar.pale else "bar",
        ),
        *_whisker(bar.value, scale, y + thick / 2, 3.0, "whisker"),
        text(mean_of(bar.value, places=places), WIDTH - 2, y + thick - 2, text_anchor="end", class_="strong"),
    ]
    if bar.control is not None and math.isfinite(bar.control.mean):
        under = y + thick + 4.5
        parts += _whisker(bar.control, scale, under, 2.0, "control")
        parts.append(
            element(
                "circle",
                title(f"control of {bar.label}: {estimate(bar.control, unit)}"),
                cx=scale(bar.control.mean),
                cy=under,
                r=2.5,
                class_="control",
            )
        )
    return parts


def _whisker(value: Estimate, scale: Scale, y: float, cap: float, kind: str) -> list[str]:
    if not has_interval(value):
        return []
    low, high = scale(value.low), scale(value.high)
    return [
        line(low, y, high, y, class_=kind),
        line(low, y - cap, low, y + cap, class_=kind),
        line(high, y - cap, high, y + cap, class_=kind),
    ]


def _ends(value: Estimate) -> tuple[float, ...]:
    return (value.mean, value.low, value.high)
