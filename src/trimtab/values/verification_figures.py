"""A verification as a figure: every place beside its controls, and how sampled others are spread. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trimtab.figures.bars import Bar, bars
from trimtab.figures.figure import Drawing, Figure
from trimtab.figures.ranges import Range, ranges

if TYPE_CHECKING:
    from trimtab.values.verification import AuditSample, Verification

DRAWN = 24
"""Places that are drawn."""


def verification_figure(found: Verification) -> Figure:
    """The places tested and, where others were sampled, both spreads."""
    drawings = [_tested(found)]
    if found.audit is not None:
        drawings.append(_sampled(found, found.audit))
    title = f"Verification: {found.proposed_by or 'scores'} on {found.task}"
    return Figure(title, tuple(drawings), f"{found.outcome}.")


def _tested(found: Verification) -> Drawing:
    rows = [Bar(c.candidate.site, c.effect, c.control, not c.works) for c in found.checks[:DRAWN]]
    title = "Effect of intervening at each place"
    first = f" The first {DRAWN} of {found.k}." if found.k > DRAWN else ""
    svg = bars(rows, about=f"{title}, in the order of the scores", unit=found.unit)
    return Drawing(svg, title, f"Grey: random places like it. Pale: no more than these.{first}")


def _sampled(found: Verification, audit: AuditSample) -> Drawing:
    effects = dict(zip(audit.sites, audit.effects, strict=True))
    missed = tuple((site, effects[site]) for site in audit.missed)
    tested = Range("tested", np.array([check.effect.mean for check in found.checks]))
    rows = [Range("others", np.array(audit.effects), missed), tested]
    svg = ranges(rows, about="Spread of the effects", unit=found.unit, down="places")
    words = f"Box: the middle half. Points: missed, {len(missed)} of {audit.sampled}."
    return Drawing(svg, "A sample of the other places", words)
