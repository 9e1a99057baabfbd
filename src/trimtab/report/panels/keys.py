"""The numbers and words that a study is read by: what was asked, how far it came, the key figures, and what they leave
open. Pages and terminals show the same ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from trimtab.figures.numbers import (
    NONE,
    common_places,
    counted,
    date,
    exact,
    fixed,
    has_interval,
    interval_of,
    mean_of,
    number,
    probability,
    share,
    with_unit,
)
from trimtab.report.panels.tested import changed, means
from trimtab.values.findings import STAGES, Estimate, Evaluation, Findings
from trimtab.values.outcome import Outcome


class Figure(NamedTuple):
    """A key figure: its name, the number, what it was measured on, and why there is none where there is none."""

    name: str
    value: str
    note: str
    interval: str = ""
    why: str = ""


def asked(findings: Findings) -> list[tuple[str, str]]:
    """What was asked, as pairs to be read."""
    parts = ", ".join(f"{n:,} {part}" for part, n in findings.examples.items())
    pairs = [
        ("task", findings.task),
        ("poles", " and ".join(findings.poles)),
        ("model", findings.model),
        ("examples", f"{parts} ({sum(findings.examples.values()):,} in all)" if parts else ""),
        ("made", date(findings.created) if findings.created else ""),
    ]
    return [(name, text) for name, text in pairs if text]


def verdict_word(findings: Findings) -> str:
    """ "found", "not beaten", "not found", or "unfinished" where there is no verdict yet."""
    return findings.verdict.outcome if findings.verdict else "unfinished"


def states(findings: Findings) -> dict[str, str]:
    """Each stage, and whether it is done, not run, or was skipped on the way to a verdict."""
    results = (findings.screening, findings.validation, findings.search, findings.evaluation, findings.verdict)
    missing = "not run" if findings.verdict is None else "skipped"
    return {name: missing if result is None else "done" for name, result in zip(STAGES, results, strict=True)}


def unfinished(findings: Findings) -> list[str]:
    """The stages that are still to run."""
    return [name for name, state in states(findings).items() if state == "not run"]


def key_figures(findings: Findings) -> list[Figure]:
    """The numbers that the verdict rests on; those of earlier stages while there is no evaluation."""
    if (e := findings.evaluation) is None:
        return _early(findings)
    n = counted(len(e.outcome), "test example")
    old, new = e.perplexity
    text = f"{counted(e.neutral_tokens, 'token')} of neutral text"
    beaten = sum(control.beaten for control in e.controls)
    names = ", ".join(f"{'✓' if control.beaten else '✗'} {control.name}" for control in e.controls)
    undefined, infinite = "not defined on these examples", "not finite on the neutral text"
    return [
        _measured("Effect", e.effect, e.outcome.unit, f"{_change(e)}; {n}", undefined, sign=True),
        _measured("Side effect (KL)", e.kl, "nats per token", f"on {text}", infinite),
        Figure("Perplexity", _arrow(number(old), number(new)), f"{_relative(old, new)}on the same text", "", infinite),
        Figure(
            "Capability", capability(e.capability), f"{_points(e)}; {counted(len(e.capability), 'item')}", "", undefined
        ),
        Figure("Moved the wrong way", share(e.wrong_way), f"of {n}", _ends(e.moved_wrong), undefined),
        Figure("Controls beaten", f"{beaten} of {len(e.controls)}", names or "no control was run"),
    ]


def capability(outcome: Outcome) -> str:
    """The share of items answered before and after."""
    old, new = means(outcome)
    return _arrow(share(old), share(new))


def limits(findings: Findings) -> list[str]:
    """What the numbers do not say."""
    said = ["Intervals are of 95 %, by bootstrap over groups of examples. They do not speak for other tasks or models."]
    if findings.screening is not None:
        said.append(
            "The screen ranks places by an estimate. A place with a small score may still matter where another "
            "can stand in for it."
        )
    if findings.search is not None:
        said.append(
            "The search picks the best of many points, so effects on the validation part lean upwards. The test "
            "part gives the effect to quote."
        )
    if (e := findings.evaluation) is not None:
        if draws := [len(control.effects) for control in e.controls if len(control.effects)]:
            least = probability(1 / (min(draws) + 1))
            said.append(f"With {counted(min(draws), 'draw')} of a control, p cannot be below {least}.")
        said.append(
            f"Side effects were measured on {counted(e.neutral_tokens, 'token')} from "
            f"{counted(e.neutral_sources, 'source')} and {counted(len(e.capability), 'item')}. Harm elsewhere "
            "would not show here."
        )
        if e.samples:
            said.append("Continuations illustrate. Nothing was counted on them.")
    return said


def _early(findings: Findings) -> list[Figure]:
    figures = []
    if (s := findings.screening) is not None:
        places = sum(math.prod(scores.array.shape[1:]) for scores in s.scores)
        figures.append(Figure("Places scored", f"{places:,}", counted(s.examples, "example")))
        figures.append(Figure("Candidates", f"{len(s.candidates):,}", "proposed by the screen"))
    if (v := findings.validation) is not None:
        figures.append(
            Figure("Sites that work", f"{len(v.working)} of {len(v.checks)}", counted(v.examples, "example"))
        )
    if (p := findings.search) is not None:
        figures.append(Figure("Points tried", f"{len(p.points):,}", f"limit: KL {exact(p.limit)}"))
    return figures


def _measured(name: str, value: Estimate, unit: str, note: str, why: str, sign: bool = False) -> Figure:
    mean = with_unit(mean_of(value, sign), unit)
    interval = interval_of(value) if has_interval(value) else "no interval: too few to resample"
    return Figure(name, mean, note, interval if mean != NONE else "", why)


def _ends(value: Estimate) -> str:
    """The interval of a share."""
    return f"[{share(value.low)}, {share(value.high)}]" if has_interval(value) else ""


def _arrow(old: str, new: str) -> str:
    return NONE if NONE in (old, new) else f"{old} → {new}"


def _relative(old: float, new: float) -> str:
    if not (math.isfinite(old) and math.isfinite(new) and old):
        return ""
    return f"{fixed(100 * (new - old) / abs(old), 1, sign=True)}\u00a0%, "


def _change(e: Evaluation) -> str:
    return f"{e.outcome.metric} {_arrow(*before_after(e.outcome, common_places([e.effect])))}"


def _points(e: Evaluation) -> str:
    mean, interval = hundredths(changed(e.capability))
    return f"{mean} points {interval if interval != NONE else '(no interval)'}"


def hundredths(value: Estimate) -> tuple[str, str]:
    """A change of a share, and its interval, in points of a hundred."""
    mean, low, high = (fixed(100 * x, 1, sign=i == 0) for i, x in enumerate((value.mean, value.low, value.high)))
    return mean, NONE if NONE in (low, high) else f"[{low}, {high}]"


def before_after(outcome: Outcome, places: int) -> tuple[str, str]:
    """The means before and after, to so many places."""
    old, new = means(outcome)
    return fixed(old, places), fixed(new, places)
