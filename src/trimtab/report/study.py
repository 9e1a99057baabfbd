"""A study as one HTML page: the verdict first, then every stage with its figures and the numbers behind them.

The page needs no network and no script, follows the light or dark scheme of its reader, prints, and forbids by its own
security policy every script and style but the two it came with. It knows nothing of models: `Findings` is all it reads.
"""

from __future__ import annotations

import math
from typing import Any

from trimtab.figures.numbers import (
    NONE,
    common_places,
    counted,
    duration,
    estimate,
    exact,
    fixed,
    interval_of,
    mean_of,
    number,
    share,
)
from trimtab.report.made import made, page
from trimtab.report.panels.checked import check_panel
from trimtab.report.panels.keys import (
    asked,
    before_after,
    hundredths,
    key_figures,
    limits,
    states,
    unfinished,
    verdict_word,
)
from trimtab.report.panels.panel import Table
from trimtab.report.panels.searched import curve_panels, other_lines, pareto_panel, picked_words, point_table
from trimtab.report.panels.tested import (
    changed,
    control_panel,
    control_table,
    entangled_panel,
    example_panels,
    example_table,
    means,
    prompt_only,
)
from trimtab.report.panels.text import differences
from trimtab.report.panels.where import candidate_table, made_by, score_panels
from trimtab.values.findings import STAGES, Estimate, Evaluation, Findings, Search, Validation

OPEN_SAMPLES = 6
"""Continuations that are shown at once; the others stand in a part that can be opened."""

SECTIONS = {
    "verdict": "Verdict",
    "where": "Where",
    "sites": "Sites that work",
    "search": "Steering search",
    "test": "Test part",
    "side": "Side effects",
    "text": "Continuations",
    "again": "How to do it again",
    "limits": "Notes and limits",
}


_NO_MEAN = "not defined on these examples, or too few of them for an interval"


def study_html(findings: Findings) -> str:
    """The page, as text: write it to a file and open it in a browser. Stages that have not run say so."""
    return page(
        "study.html",
        f=findings,
        sections=SECTIONS,
        asked=asked(findings),
        word=verdict_word(findings),
        waiting=unfinished(findings),
        figures=key_figures(findings),
        screen=_screen(findings),
        sites=_sites(findings.validation),
        search=_search(findings.search),
        test=_test(findings.evaluation),
        side=_side(findings.evaluation),
        samples=_samples(findings.evaluation),
        stages=_stages(findings),
        made=made(findings.provenance),
        limits=limits(findings),
        dash=NONE,
    )


def _screen(findings: Findings) -> dict[str, Any] | None:
    if (s := findings.screening) is None:
        return None
    table = candidate_table(s.candidates) if s.candidates else None
    how = made_by(s.scores)
    return {
        "panels": score_panels(s.scores),
        "how": how[0] if len(how) == 1 else "",
        "table": table,
        "examples": counted(s.examples, "example"),
    }


def _sites(validation: Validation | None) -> dict[str, Any] | None:
    if validation is None:
        return None
    missed = [check for check in validation.checks if not check.works]
    return {
        "panel": check_panel(validation) if validation.checks else None,
        "how": validation.how,
        "working": len(validation.working),
        "all": len(validation.checks),
        "examples": counted(validation.examples, "example"),
        "missed": [(c.candidate.site, _known(c.effect, validation.unit)) for c in missed],
        "fraction": share(validation.false_positives),
    }


def _known(value: Estimate, unit: str) -> str:
    return estimate(value, unit) if math.isfinite(value.mean) else f"{NONE} (not measured)"


def _search(search: Search | None) -> dict[str, Any] | None:
    if search is None:
        return None
    return {
        "points": len(search.points),
        "examples": counted(search.examples, "example"),
        "rule": search.rule,
        "limit": f"KL {exact(search.limit)} nats per token" if math.isfinite(search.limit) else "none",
        "curves": curve_panels(search),
        "others": other_lines(search),
        "pareto": pareto_panel(search),
        "table": point_table(search) if search.points else None,
        "picked": picked_words(search),
        "intervention": str(search.intervention) if search.intervention else "",
    }


def _test(e: Evaluation | None) -> dict[str, Any] | None:
    if e is None:
        return None
    other = prompt_only(e)
    arms = [("picked intervention", e.outcome, e.effect)]
    if e.prompt_only is not None and other is not None:
        arms.append(("an instruction instead", e.prompt_only, other))
    places = common_places(effect for *_, effect in arms)
    numbers = [
        (name, *before_after(outcome, places), mean_of(effect, places=places), interval_of(effect, places))
        for name, outcome, effect in arms
    ]
    unit = f", in {e.outcome.unit}" if e.outcome.unit else ""
    columns = ("arm", "before", "after", "change", "95 %")
    more = tuple((name, mean_of(v, sign=False), interval_of(v), f"{v.n:,}") for name, v in e.figures.items())
    return {
        "arms": Table(f"{e.outcome.metric}{unit}", columns, tuple(numbers), why=_NO_MEAN),
        "no_prompt": e.no_prompt,
        "panels": example_panels(e),
        "examples": example_table(e.outcome),
        "controls": control_panel(e) if e.controls else None,
        "table": control_table(e) if e.controls else None,
        "more": Table("Further numbers", ("number", "mean", "95 %", "n"), more, why=_NO_MEAN) if more else None,
    }


def _side(e: Evaluation | None) -> dict[str, Any] | None:
    if e is None:
        return None
    old, new = e.perplexity
    rows = (
        ("KL from the unedited model, nats per token", "0", mean_of(e.kl, False), mean_of(e.kl), interval_of(e.kl)),
        ("perplexity of neutral text", number(old, 4), number(new, 4), number(new - old, sign=True), "not resampled"),
        (
            "capability, % of items",
            *(fixed(100 * mean, 1) for mean in means(e.capability)),
            *hundredths(changed(e.capability)),
        ),
    )
    about = (
        f"Neutral text of {counted(e.neutral_tokens, 'token')} from {counted(e.neutral_sources, 'source')}; "
        f"{counted(len(e.capability), 'capability item')}"
    )
    columns = ("number", "before", "after", "change", "95 %")
    return {
        "table": Table(about, columns, rows, why="not finite, or too few items to resample"),
        "panel": entangled_panel(e) if e.entangled else None,
        "left_out": list(e.left_out.items()),
    }


def _samples(e: Evaluation | None) -> dict[str, Any] | None:
    if e is None:
        return None
    parts = []
    for sample in e.samples:
        before, after = differences(sample.before.lstrip(" "), sample.after.lstrip(" "))
        parts.append({"prompt": sample.prompt, "sides": (("before", before), ("after", after))})
    return {"first": parts[:OPEN_SAMPLES], "rest": parts[OPEN_SAMPLES:]}


def _stages(findings: Findings) -> list[tuple[str, str, str]]:
    """Each stage: its name, whether it is done, and the time it took."""
    known = [seconds for seconds in findings.seconds.values() if math.isfinite(seconds)]
    names = {**states(findings), **{name: "done" for name in findings.seconds if name not in STAGES}}
    rows = [(name, state, duration(findings.seconds.get(name, math.nan))) for name, state in names.items()]
    return [*rows, ("all", "", duration(sum(known)))]
