"""Whole numbers as people give them: ints, and the lists and ranges in an address."""

from __future__ import annotations

import operator
import re
from typing import SupportsIndex

from trimtab.errors import SiteError

_MOST = 1 << 24  # in one range, so that a slip of the finger does not fill the memory
_NUMBER = re.compile(r"\d+", re.ASCII)
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)


def whole(value: object) -> int | None:
    """The int that a value is (numpy integers and integer tensors too), or None; booleans and floats are not.

    >>> whole(3), whole(3.0), whole(True)
    (3, None, None)
    """
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def read_numbers(text: str, address: str, what: str) -> tuple[int, ...]:
    """The numbers in a text such as "3,17,90" or "0-3"; `address` and `what` (unit or layer) are for the SiteError.

    >>> read_numbers("0-2,7", "L0-2,7.head", "layer")
    (0, 1, 2, 7)
    """
    numbers: list[int] = []
    if not text.strip():
        where = "brackets are empty" if what == "unit" else "layer is missing"
        raise SiteError(f'"{address}": the {where}; write {what}s as 7, as 3,17,90, as 0-3, or as *')
    for part in (part.strip() for part in text.split(",")):
        if match := _RANGE.fullmatch(part):
            first, last = int(match[1]), int(match[2])
            if first > last:
                raise SiteError(
                    f'"{address}": the range {part} runs backwards; write {last}-{first} (both ends are included)'
                )
            if last - first >= _MOST:
                raise SiteError(f'"{address}": the range {part} names too many {what}s; write * for all of them')
            numbers.extend(range(first, last + 1))
        elif _NUMBER.fullmatch(part):
            numbers.append(int(part))
        else:
            raise SiteError(f'"{address}": "{part}" is no {what}; write {what}s as 7, as 3,17,90, as 0-3, or as *')
    twice = [number for number in set(numbers) if numbers.count(number) > 1] if len(set(numbers)) < len(numbers) else []
    if twice:
        raise SiteError(f'"{address}" names {what} {min(twice)} twice; name each one once')
    return tuple(numbers)


def write_runs(numbers: tuple[int, ...]) -> str:
    """Numbers as text, runs of three or more as ranges.

    >>> write_runs((0, 3, 4, 5))
    '0,3-5'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in parts)
