"""Small line drawings over layers: where each point lies, worked out here and drawn by the page as SVG.

A drawing has one line for each position of the prompt; the page shows one of them at a time. It knows numbers and
names, and nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 340, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 26


def log_chart(name: str, labels: Sequence[str], values: np.ndarray, most: float) -> dict[str, Any]:
    """Values (position layer) from 1 at the top to `most` at the bottom, on a logarithmic axis."""
    decades = math.ceil(math.log10(most) - 1e-9)
    ticks = [(i / decades, f"{10**i:,}") for i in range(decades + 1)]
    return _chart(name, labels, np.log10(values) / decades, ticks)


def share_chart(name: str, labels: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """Values (position layer) from 1 at the top to 0 at the bottom."""
    return _chart(name, labels, 1 - values, [(0.0, "100%"), (0.5, "50%"), (1.0, "0%")])


def _chart(name: str, labels: Sequence[str], down: np.ndarray, ticks: list[tuple[float, str]]) -> dict[str, Any]:
    n = len(labels)
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / n for i in range(n)]
    points = [[(x, _y(part)) for x, part in zip(xs, line, strict=True)] for line in down.tolist()]
    step = max(1, math.ceil(n / 8))
    return {
        "name": name,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "xs": [round(x, 1) for x in xs],
        "ys": [[round(y, 1) for _, y in line] for line in points],
        "paths": ["M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) for line in points],
        "ticks": [(_y(part), text) for part, text in ticks],
        "marks": [(round(xs[i], 1), labels[i]) for i in range(n) if (n - 1 - i) % step == 0],
    }


def _y(part: float) -> float:
    return round(TOP + min(max(part, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM), 1)
