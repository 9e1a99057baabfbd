"""Numbers as they are read in a page: rounded to what is known of them, with a true minus sign, and never NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

NONE = "–"
"""What stands where there is no number."""


class Estimate(Protocol):
    """A mean and the ends of its interval, which are NaN where it has none."""

    @property
    def mean(self) -> float:
        """The value itself."""
        ...

    @property
    def low(self) -> float:
        """The lower end."""
        ...

    @property
    def high(self) -> float:
        """The upper end."""
        ...


class Value(NamedTuple):
    """An estimate without a past."""

    mean: float
    low: float = math.nan
    high: float = math.nan


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """To so many significant digits, thousands apart; powers of ten beyond a million and below a ten-thousandth.

    >>> number(-0.04567), number(12345.6), number(0.0000123), number(float("nan")), number(2.0, sign=True)
    ('−0.0457', '12,346', '1.23×10⁻⁵', '–', '+2.00')
    """
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-4 <= size < 1e6:
        return fixed(value, max(0, digits - 1 - math.floor(math.log10(size))), sign)
    factor, _, power = f"{size:.{digits - 1}e}".partition("e")
    return _signed(f"{factor}×10{str(int(power)).translate(_SUPERSCRIPT)}", value, sign)


def fixed(value: float, places: int, sign: bool = False) -> str:
    """To so many places after the point; no sign before what rounds to zero.

    >>> fixed(-0.001, 2), fixed(-1.5, 1), fixed(1234.56, 1, sign=True)
    ('0.00', '−1.5', '+1,234.6')
    """
    if not math.isfinite(value):
        return NONE
    text = f"{abs(value):,.{places}f}"
    return text if not text.strip("0.") else _signed(text, value, sign)


def estimate(value: Estimate, unit: str = "", sign: bool = True) -> str:
    """A mean and its interval, all to the places that the interval's width allows, and the unit.

    >>> estimate(Value(1.30718, 1.02, 1.6))
    '+1.31 [1.02, 1.60]'
    >>> estimate(Value(-1.5))
    '−1.50 (no interval)'
    """
    if not math.isfinite(value.mean):
        return NONE
    if not has_interval(value):
        return with_unit(f"{number(value.mean, sign=sign)} (no interval)", unit)
    places = places_of(value)
    ends = f"[{fixed(value.low, places)}, {fixed(value.high, places)}]"
    return with_unit(f"{fixed(value.mean, places, sign)} {ends}", unit)


def exact(value: float) -> str:
    """A number that was set, not measured: no more digits than it has, up to six.

    >>> exact(0.05), exact(-2.0), exact(1500)
    ('0.05', '−2', '1500')
    """
    if not math.isfinite(value) or (value and not 1e-4 <= abs(value) < 1e6):
        return number(value, 2)
    return f"{value:.6g}".replace("-", "−")


def mean_of(value: Estimate, sign: bool = True, places: int | None = None) -> str:
    """The mean alone, to the places given, or those that its interval allows."""
    if places is None:
        return fixed(value.mean, places_of(value), sign) if has_interval(value) else number(value.mean, sign=sign)
    return fixed(value.mean, places, sign)


def interval_of(value: Estimate, places: int | None = None) -> str:
    """The interval alone."""
    if not has_interval(value):
        return NONE
    places = places_of(value) if places is None else places
    return f"[{fixed(value.low, places)}, {fixed(value.high, places)}]"


def common_places(values: Iterable[Estimate]) -> int:
    """Places at which a column of estimates can be read: those of the largest one."""
    known = [value for value in values if math.isfinite(value.mean)]
    if not known:
        return 2
    largest = max(known, key=lambda value: abs(value.mean))
    return places_of(largest) if has_interval(largest) else places_for(abs(largest.mean))


def places_for(most: float, digits: int = 3) -> int:
    """Places at which a number of this size shows so many digits."""
    return min(6, max(0, digits - 1 - math.floor(math.log10(most)))) if most > 0 else 0


def has_interval(value: Estimate) -> bool:
    """Whether both ends of the interval are numbers."""
    return math.isfinite(value.low) and math.isfinite(value.high)


def places_of(value: Estimate) -> int:
    """Places after the point at which half the interval's width shows two digits; those of the mean without width."""
    half = (value.high - value.low) / 2
    size = half if half > 0 else abs(value.mean) / 10
    return min(6, max(0, 1 - math.floor(math.log10(size)))) if size > 0 else 0


def with_unit(text: str, unit: str) -> str:
    """A number and its unit, not to be parted at the end of a line."""
    return f"{text}\u00a0{unit}" if unit and text != NONE else text


def share(part: float) -> str:
    """A fraction in per cent: 34 %, 7.5 %, <0.1 %.

    >>> share(0.34), share(0.075), share(0.0001), share(0), share(1), share(float("nan"))
    ('34\\xa0%', '7.5\\xa0%', '<0.1\\xa0%', '0\\xa0%', '100\\xa0%', '–')
    """
    if not math.isfinite(part):
        return NONE
    if 0 < part < 0.0005:
        return "<0.1\u00a0%"
    text = f"{100 * part:.0f}" if part >= 0.0995 or not part else f"{100 * part:.1f}"
    return f"{text}\u00a0%"


def probability(p: float) -> str:
    """A p-value.

    >>> probability(0.047619), probability(0.0004), probability(1)
    ('0.048', '<0.001', '1.00')
    """
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "<0.001"
    return fixed(p, 3 if p < 0.0995 else 2)


def duration(seconds: float) -> str:
    """A time to be read.

    >>> duration(0.84), duration(192), duration(7260)
    ('0.8\\xa0s', '3\\xa0min 12\\xa0s', '2\\xa0h 1\\xa0min')
    """
    if not math.isfinite(seconds):
        return NONE
    if 0 < seconds < 0.05:
        return "<0.1\u00a0s"
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f}\u00a0s"
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def date(text: str) -> str:
    """An ISO time as a date and a time of day in UTC; any other text as it is.

    >>> date("2026-03-05T09:07:00+00:00"), date("yesterday")
    ('5 March 2026, 09:07 UTC', 'yesterday')
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def counted(n: int, one: str, many: str = "") -> str:
    """A count and its noun.

    >>> counted(1, "draw"), counted(1200, "draw"), counted(2, "address", "addresses")
    ('1 draw', '1,200 draws', '2 addresses')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _signed(text: str, value: float, sign: bool) -> str:
    return f"−{text}" if value < 0 else f"+{text}" if sign else text
