"""Where a value lies on an axis, and which round numbers stand beside it. Shared by all figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from trimtab.figures.numbers import fixed, number

_LEAST = 1e-100  # what is smaller counts as zero


@dataclass(frozen=True)
class Scale:
    """A map of values from `low` to `high` onto pixels from `start` to `stop`, straight or by logarithm.

    What lies outside is put at the nearer end: nothing is drawn beyond the frame.

    >>> Scale(0, 10, 100, 200)(2.5), Scale(0.01, 1, 0, 100, log=True)(0.1), Scale(0, 1, 0, 100)(7)
    (125.0, 50.0, 100.0)
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        value = min(max(value, self.low), self.high)
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        part = ((math.log(value) if self.log else value) - low) / (high - low)
        return round(self.start + part * (self.stop - self.start), 6)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Round values on the axis, and how they are written."""
        if self.log:
            return _decades(self.low, self.high)
        step = step_of(self.low, self.high, most)
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, fixed(i * step, places) if i else "0") for i in range(first, last + 1)]


def linear(values: Iterable[float], start: float, stop: float, zero: bool = True, most: int = 6) -> Scale:
    """A straight scale that covers the finite values, widened to round numbers; with zero on it, unless told
    otherwise."""
    known = [value if abs(value) > _LEAST else 0.0 for value in values if math.isfinite(value)] + [0.0] * zero
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all the same, but for the last digits
        low, high = (low, high + (high or 1.0)) if low >= 0 else (2 * low, high)
    step = step_of(low, high, most)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, stop)


def logarithmic(values: Iterable[float], start: float, stop: float) -> Scale:
    """A scale by logarithm that covers the positive finite values, a little wider; what is not positive lies at its
    low end."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    return Scale(low / 1.6, high * 1.6, start, stop, log=True)


def step_of(low: float, high: float, most: int) -> float:
    """The smallest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that cuts the way into at most so many parts."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= rough * (1 - 1e-9))


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return [(tick, number(tick, 1)) for tick in ticks]
