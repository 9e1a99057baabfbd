"""Verification: what intervening did at the places that a method put first, at random places like them, and at a sample
of the places that it left behind.

It is the guard against localisation errors: a candidate whose intervention does no more than its controls is a false
positive, and a place outside the candidates that does more than they do was missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, ClassVar, Literal

from trimtab.values.content import Content
from trimtab.values.findings import Check
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.figures.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class AuditSample(Content):
    """Exact effects of a random sample of the places that were not candidates.

    `sampled` of `rest` places; `effects` are their means, in the order of `sites`. A place is missed where its effect
    is above `kth`, the smallest exact effect of a candidate; `low` and `high` are the ends of the 95 % interval of the
    missed fraction of all `rest` places (Clopper and Pearson 1934), equal where every place was looked at.
    """

    rest: int
    kth: float
    sites: tuple[str, ...]
    effects: tuple[float, ...]
    missed: tuple[str, ...]
    low: float
    high: float

    @property
    def sampled(self) -> int:
        """How many places were looked at."""
        return len(self.sites)

    @property
    def fraction(self) -> float:
        """The share of the sampled places that were missed."""
        return len(self.missed) / len(self.sites)

    def __str__(self) -> str:
        return (
            f"missed {self.fraction:.1%} [{self.low:.1%}, {self.high:.1%}] of the other {self.rest:,} places "
            f"({len(self.missed)} of {self.sampled} sampled)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Verification(Saved):
    """The `k` first places of some scores, each put to the test by an exact intervention.

    `checks` are in the order of the scores, the largest first: the effect in `unit`, positive as in the method that
    intervened (`how`: "patching" with its `direction`, "ablation" or "shift"; at each place and its like in a `window`
    of layers), the mean effect of `controls` random places of the same kind and layer (or random directions, at places
    of which a layer has one), and whether it `works`: its interval excludes zero and so does that of the paired
    difference from the controls. `proposed_by` is the method of the scores, `rank_correlation` Spearman's between its
    sizes and the exact ones, of all places tested or sampled.
    """

    KIND: ClassVar[str] = "verification"

    task: str
    proposed_by: str
    how: Literal["patching", "ablation", "shift"]
    direction: Literal["denoise", "noise"] | None
    unit: str
    checks: tuple[Check, ...]
    controls: int
    rank_correlation: float
    examples: int
    audit: AuditSample | None = None
    provenance: Provenance | None = None
    window: int = 1

    @property
    def k(self) -> int:
        """How many places were tested."""
        return len(self.checks)

    @property
    def working(self) -> tuple[Check, ...]:
        """The candidates that did something, the largest effect first."""
        return tuple(sorted((c for c in self.checks if c.works), key=lambda c: -abs(c.effect.mean)))

    @property
    def sites(self) -> list[Site]:
        """The sites of the candidates that did something, the largest effect first."""
        return [Site.parse(check.candidate.site) for check in self.working]

    @property
    def false_positives(self) -> tuple[Check, ...]:
        """The candidates that did no more than their controls."""
        return tuple(check for check in self.checks if not check.works)

    @property
    def false_positive_fraction(self) -> float:
        """The fraction of candidates that did no more than their controls."""
        return len(self.false_positives) / len(self.checks)

    @property
    def outcome(self) -> str:
        """What came of it, in a sentence."""
        way = self.how if self.direction is None else f"{self.how}, {self.direction}"
        way += f", in windows of {self.window} layers" if self.window > 1 else ""
        return (
            f"{self.proposed_by or 'scores'} on {self.task}, tested by {way}: {len(self.working)} of {self.k} places "
            f"work, {self.false_positive_fraction:.0%} false positives ({self.examples} examples, {self.unit})"
        )

    def plot(self) -> Figure:
        """The effect of intervening at each place beside that of its controls; where others were sampled, how the
        effects are spread there."""
        from trimtab.values.verification_figures import verification_figure

        return verification_figure(self)

    def _repr_html_(self) -> str:
        return self.plot().with_details("The numbers", f"<pre>{escape(str(self))}</pre>")

    def __str__(self) -> str:
        lines = [self.outcome]
        width = max(len(check.candidate.site) for check in self.checks)
        for check in self.checks:
            mark = "works" if check.works else "does no more than its controls"
            lines.append(
                f"  {check.candidate.site:<{width}}  {check.effect}  controls {check.control.mean:+.3g}  {mark}"
            )
        return "\n".join(lines if self.audit is None else [*lines, f"  {self.audit}"])

    def __repr__(self) -> str:
        audit = "" if self.audit is None else f", {self.audit}"
        return f"<Verification {self.proposed_by}: {len(self.working)} of {self.k} work{audit}>"
