"""The panel of a validation: what intervening at each candidate did, beside its controls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.figures.bars import Bar, bars
from trimtab.figures.numbers import common_places, counted, interval_of, mean_of
from trimtab.report.panels.panel import Panel, Table
from trimtab.values.findings import Check, Validation

DRAWN = 24
"""Candidates that are drawn; the table has all."""


def check_panel(validation: Validation) -> Panel:
    """Sites that work first, the largest effect on top, then, pale, those that do not."""
    ranked, unit = ranked_checks(validation), validation.unit
    drawn = ranked[:DRAWN]
    if not any(math.isfinite(check.effect.mean) for check in ranked):
        return Panel(
            "Effect of intervening at each candidate", "No effect could be measured.", table=_table(ranked, unit)
        )
    rows = [Bar(check.candidate.site, check.effect, check.control, not check.works) for check in drawn]
    more = f" Drawn: the first {DRAWN} of {len(ranked)}." if len(ranked) > DRAWN else ""
    return Panel(
        "Effect of intervening at each candidate",
        "Bars: mean change with its 95\u00a0% interval. Grey points: random places of the same kind, "
        "their means turned positive. Pale: "
        f"sites that do not work, as their effect is not told from zero or from their controls.{more}",
        bars(rows, about="Effects of intervening, by site; the table below holds the numbers", unit=unit),
        table=_table(ranked, unit),
    )


def ranked_checks(validation: Validation) -> list[Check]:
    """The candidates that work, the largest effect first, then those that do not."""
    rest = [check for check in validation.checks if not check.works]
    return [*validation.working, *sorted(rest, key=lambda check: -abs(check.effect.mean))]


def _table(ranked: Sequence[Check], unit: str) -> Table:
    places = common_places(check.effect for check in ranked)
    rows = [
        (
            check.candidate.site,
            check.candidate.kind,
            "works" if check.works else "does not work",
            *(
                words
                for value in (check.effect, check.control, check.difference)
                for words in (mean_of(value, places=places), interval_of(value, places))
            ),
        )
        for check in ranked
    ]
    columns = ("site", "kind", "outcome", "effect", "95 %", "control", "95 %", "difference", "95 %")
    about = f"{counted(len(ranked), 'candidate')} put to the test{f', in {unit}' if unit else ''}"
    return Table(about, columns, tuple(rows), 3, (0,), "too few examples, or no control to hold it against")
