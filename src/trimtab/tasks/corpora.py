"""Corpora: data sets of the field whose files are not tables of examples, brought into columns.

Parallel lines, WinoBias and Winogender. What the columns mean is said in `tasks.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trimtab.errors import TaskError
from trimtab.tasks.records import Place, Row, lines, opened


def parallel(one: Path, other: Path, encoding: str) -> Iterator[Row]:
    """Line by line of two files."""
    for place, first, second in _together(one, other, encoding):
        yield place, {"first": first, "second": second}


def _together(one: Path, other: Path, encoding: str) -> Iterator[tuple[Place, str, str]]:
    for path in (one, other):
        if not path.is_file():
            raise TaskError(f"{(one if path == other else other).name} goes with {path.name}, which is not beside it")
    with opened(one, encoding) as left, opened(other, encoding) as right:
        left_lines, others = lines(one, left), lines(other, right)
        for number, first in enumerate(left_lines, 1):
            second = next(others, None)
            if second is None:
                raise TaskError(
                    f"{other.name} ends after line {number - 1}, and {one.name} goes on: lines must correspond"
                )
            yield Place(one.name, number), first.strip("\r\n"), second.strip("\r\n")
        if next(others, None) is not None:
            raise TaskError(f"{one.name} ends before {other.name} does: lines must correspond")


def winobias(pro: Path, anti: Path, encoding: str) -> Iterator[Row]:
    """WinoBias (Zhao et al. 2018, arXiv 1804.06876): two lines after each other are about the same two people."""
    held: list[tuple[Place, str, str, str]] = []

    def rows() -> Iterator[Row]:
        group = " and ".join(sorted({who for *_, who in held}))
        for place, fits, other, _ in held:
            yield place, {"pro": fits, "anti": other, "group": group}
        held.clear()

    for place, fits, other in _together(pro, anti, encoding):
        found = re.search(r"\[(.*?)\]", fits)
        if found is None:
            yield place, 'a sentence must mark who is meant, as in "1 [The developer] … because [he] …"'
            continue
        who = re.sub(r"^(the|an?) ", "", found[1].strip().lower())
        held.append((place, _unmarked(fits), _unmarked(other), who))
        if place.line % 2 == 0:
            yield from rows()
    yield from rows()


def _unmarked(sentence: str) -> str:
    """A sentence of WinoBias without its number and brackets."""
    plain = re.sub(r"\[\s*(.*?)\s*\]", r"\1", re.sub(r"^\d+\s+", "", sentence.strip()))
    return re.sub(r"\s+", " ", plain.replace(" 's", "'s"))


def winogender(rows: Iterator[Row]) -> Iterator[Row]:
    """Winogender (Rudinger et al. 2018, arXiv 1804.09301): the male and the female form of each sentence."""
    waiting: dict[str, tuple[str, str]] = {}
    for place, row in rows:
        if not isinstance(row, Mapping):
            yield place, row
            continue
        parts = str(row["sentid"]).split(".")
        if len(parts) != 5:
            yield place, f'sentid must be as in "nurse.patient.1.male.txt", got {row["sentid"]!r}'
        elif parts[3] in ("male", "female"):
            key = ".".join(parts[:3])
            gender, sentence = waiting.pop(key, ("", ""))
            if not gender or gender == parts[3]:
                waiting[key] = parts[3], str(row["sentence"])
                continue
            both = {gender: sentence, parts[3]: str(row["sentence"])}
            yield place, {**both, "occupation": parts[0]}
