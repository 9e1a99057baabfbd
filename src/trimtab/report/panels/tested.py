"""Panels of an evaluation: every example before and after, the controls' draws, and the effect on other tasks."""

from __future__ import annotations

import math

import numpy as np

from trimtab.figures.bars import Bar, bars, histogram
from trimtab.figures.dots import Row, draws
from trimtab.figures.lines import slopes
from trimtab.figures.numbers import (
    NONE,
    common_places,
    counted,
    estimate,
    fixed,
    interval_of,
    mean_of,
    number,
    places_for,
    probability,
)
from trimtab.report.panels.panel import Panel, Table
from trimtab.values.bootstrap import mean_over_examples
from trimtab.values.findings import Control, Estimate, Evaluation
from trimtab.values.outcome import Outcome

MOST_LINES = 120
"""Examples that are drawn as lines; with more, only the histogram of their changes."""


def aim_of(evaluation: Evaluation) -> int:
    """+1 where the number was to be raised, −1 where lowered: the way in which the share of examples that moved wrong
    is the one found."""
    change = evaluation.outcome.after - evaluation.outcome.before
    change = change[np.isfinite(change)]
    if not len(change) or not math.isfinite(evaluation.wrong_way):
        return -1 if evaluation.effect.mean < 0 else 1
    down, up = (abs(float((change * sign < 0).mean()) - evaluation.wrong_way) for sign in (-1, 1))
    return -1 if down < up or (down == up and evaluation.effect.mean < 0) else 1


def example_panels(evaluation: Evaluation) -> list[Panel]:
    """Every example before and after, and how much each changed."""
    outcome, aim = evaluation.outcome, aim_of(evaluation)
    unit, change = outcome.unit, outcome.after - outcome.before
    wrong, n = int((change * aim < 0).sum()), int(np.isfinite(change).sum())
    if not n:
        return [Panel("Every example, before and after", f"{outcome.metric} is not defined on any example.")]
    caption = f"{n - wrong} of {counted(n, 'example')} moved as intended or not at all, {wrong} the wrong way (dashed)."
    first = Panel("Every example, before and after", f"Too many examples to draw each; {caption}")
    if len(outcome) <= MOST_LINES:
        about = f"{outcome.metric} before and after, a line for each example; the table below holds the numbers"
        first = Panel(first.title, caption, slopes(outcome.before, outcome.after, about=about, unit=unit, aim=aim))
    hist = histogram(change, about="How many examples changed by how much", axis=_axis("change", unit), aim=aim)
    which = "below" if aim > 0 else "above"
    second = Panel("Changes", f"How many examples changed by how much; in orange those {which} zero.", hist)
    return [first, second]


def example_table(outcome: Outcome) -> Table:
    """The number of each example before and after."""
    groups = ("",) * len(outcome) if outcome.groups is None else tuple(str(group) for group in outcome.groups)
    both = np.concatenate([outcome.before, outcome.after])
    places = places_for(float(np.max(np.abs(both), where=np.isfinite(both), initial=0.0)))
    rows = [
        (str(i + 1), group, fixed(old, places), fixed(new, places), fixed(new - old, places, sign=True))
        for i, (group, old, new) in enumerate(zip(groups, outcome.before.tolist(), outcome.after.tolist(), strict=True))
    ]
    about = f"{outcome.metric} of each example{f', in {outcome.unit}' if outcome.unit else ''}"
    return Table(about, ("example", "group", "before", "after", "change"), tuple(rows), 2, (), "not defined there")


def control_panel(evaluation: Evaluation) -> Panel:
    """Every control draw beside the picked intervention."""
    unit = evaluation.outcome.unit
    rows = [
        Row(c.name, f"{'beaten' if c.beaten else 'not beaten'}, {_p(c)}", draw_means(c)) for c in evaluation.controls
    ]
    if (other := prompt_only(evaluation)) is not None and math.isfinite(other.mean):
        rows.append(Row("An instruction instead", "for comparison", np.array([other.mean])))
    if not any(np.isfinite(row.values).any() for row in rows):
        return Panel("The picked intervention among its controls", "No control draw has a value.")
    return Panel(
        "The picked intervention among its controls",
        "Each dot is one draw, its effect averaged over the test examples; the tick under a row is the draws' mean. "
        "The line is the picked intervention, the band its 95\u00a0% interval.",
        draws(
            rows,
            evaluation.effect,
            about="Effects of control draws; the table holds the numbers",
            axis=_axis("effect", unit),
        ),
    )


def control_table(evaluation: Evaluation) -> Table:
    """The controls, and by how much the picked intervention beats each."""
    places = common_places(control.difference for control in evaluation.controls)
    rows = [
        (
            control.name,
            control.about,
            "yes" if control.beaten else "no",
            f"{len(draw_means(control)):,}",
            fixed(mean_draw(control), places, sign=True),
            number(_mean(np.asarray(control.kl, dtype=np.float64))),
            mean_of(control.difference, places=places),
            interval_of(control.difference, places),
            probability(control.p),
        )
        for control in evaluation.controls
    ]
    unit = evaluation.outcome.unit
    columns = ("control", "what it is", "beaten", "draws", "mean effect", "mean KL", "difference", "95 %", "p")
    about = f"Picked intervention against its controls{f', in {unit}' if unit else ''}"
    return Table(about, columns, tuple(rows), 3, (), "no draw, or too few to tell")


def draw_means(control: Control) -> np.ndarray:
    """The effect of each draw, averaged over the examples."""
    effects = np.asarray(control.effects, dtype=np.float64)
    return mean_over_examples(np.atleast_2d(effects).T) if effects.size else np.array([])


def mean_draw(control: Control) -> float:
    """The mean effect of the draws."""
    return _mean(draw_means(control))


def prompt_only(evaluation: Evaluation) -> Estimate | None:
    """The effect of an instruction in place of the intervention."""
    return None if evaluation.prompt_only is None else changed(evaluation.prompt_only)


def changed(outcome: Outcome) -> Estimate:
    """The mean change of an outcome, with its interval."""
    return Estimate.of(outcome.after - outcome.before, outcome.groups)


def means(outcome: Outcome) -> tuple[float, float]:
    """The means before and after, over the examples that have both."""
    both = np.isfinite(outcome.before) & np.isfinite(outcome.after)
    return _mean(outcome.before[both]), _mean(outcome.after[both])


def entangled_panel(evaluation: Evaluation) -> Panel:
    """Effects on other tasks in standard deviations, below the effect on the task itself."""
    own = _standardised(evaluation)
    others = sorted(evaluation.entangled, key=lambda e: -abs(e.standardised.mean))
    places = common_places(e.standardised for e in others)
    rows = [*([Bar("this task", own, pale=True)] if own else []), *(Bar(e.task, e.standardised) for e in others)]
    return Panel(
        "Effect on other tasks",
        "Mean change in standard deviations of each task's unedited examples, with 95\u00a0% intervals. Pale: the task "
        "itself, for scale.",
        bars(rows, about="Effects on other tasks; the table holds the numbers", unit="standard deviations", mono=False),
        table=Table(
            "Effect on other tasks",
            ("task", "before", "after", "change", "unit", "standardised", "95 %"),
            tuple(
                (
                    e.task,
                    *(number(mean) for mean in means(e.outcome)),
                    estimate(changed(e.outcome)),
                    e.outcome.unit,
                    mean_of(e.standardised, places=places),
                    interval_of(e.standardised, places),
                )
                for e in others
            ),
            why="no spread to measure by, or too few examples",
        ),
    )


def _standardised(evaluation: Evaluation) -> Estimate | None:
    before = evaluation.outcome.before[np.isfinite(evaluation.outcome.before)]
    spread = float(before.std(ddof=1)) if len(before) > 1 else 0.0
    if not spread:
        return None
    effect = evaluation.effect
    return Estimate(effect.mean / spread, effect.low / spread, effect.high / spread, effect.n)


def _axis(what: str, unit: str) -> str:
    return f"{what}, {unit}" if unit else what


def _p(control: Control) -> str:
    p = probability(control.p)
    return f"p {p}" if p.startswith("<") else f"p = {p}" if p != NONE else "p not known"


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
