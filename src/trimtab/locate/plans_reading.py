"""What methods cost that read prompts and put nothing in the place of what they read: forward passes, slopes, readouts.

Each plan takes the arguments of its method (`plans.planned_by`). What is unembedded beside a pass counts by its
multiplications (`unembedded`), since reading many places through the vocabulary can cost more than the pass itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.locate.plans import BACKWARD, Cost, cells
from trimtab.locate.units import Places, default_spans, places
from trimtab.model.prompts import Prompts
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.repeated import RepeatedTokens
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope

if TYPE_CHECKING:
    from trimtab.model.lm import LM

OVER_ALL = ("rank", "entropy", "kl")
"""Quantities that take the logits of the whole vocabulary."""


def unembedded(lm: LM, vectors: float, tokens: float) -> float:
    """Unembedding so many vectors, in forward passes of a prompt of so many tokens through the blocks."""
    weights = sum(parameter.numel() for block in lm.anatomy.blocks for parameter in block.module.parameters())
    return vectors * lm.anatomy.d_model * lm.anatomy.vocab / max(1.0, weights * tokens)


# Forward passes
# ---------------------------------------------------------------------------------------------------------------------


def plan_weights(lm: LM, subject: object, **_: object) -> Cost:
    """Of what reads weights alone: no pass over a prompt."""
    return Cost(passes=0.0)


def plan_side(
    lm: LM, task: Task | RepeatedTokens | Prompts | None, *, statistic: str | None = None, **_: object
) -> Cost:
    """Of one side of a task, or of repeated random tokens: a pass each; a statistic of weights alone takes none."""
    return Cost(passes=0.0 if statistic == "weight" else float(_count(task)))


def plan_sides(lm: LM, task: Task, **_: object) -> Cost:
    """Of both sides of a task."""
    return Cost(passes=2.0 * len(task))


def plan_languages(lm: LM, task: Task | Mapping[str, Sequence[str]], **_: object) -> Cost:
    """Of the texts of every language: both sides of a task, or those of a mapping."""
    return Cost(passes=2.0 * len(task) if isinstance(task, Task) else float(sum(map(len, task.values()))))


def plan_question(lm: LM, task: Task, *, on: Any = "clean", **_: object) -> Cost:
    """Of the prompts on which a task is measured."""
    return Cost(passes=float(len(measure(lm, task, on=on).prompts)))


def plan_copying(lm: LM, task: Task | RepeatedTokens | None, *, source: str, **_: object) -> Cost:
    """Of one side, and, where values are made from the stream after the first block, of that block once more."""
    return Cost(passes=_count(task) * (1 + (1 / lm.anatomy.n_layers if source == "first" else 0)))


def plan_roles(lm: LM, task: RepeatedTokens | None, **_: object) -> Cost:
    """Of the repeated tokens, of those without a repetition, and what copying takes."""
    return Cost(passes=_count(task) * (3 + 1 / lm.anatomy.n_layers))


def plan_fit(
    lm: LM, train: Task, *, test: Task | None = None, validation: Task | None = None, least_tokens: int = 0, **_: object
) -> Cost:
    """Of both sides of what is fitted on and of what it is tested on; a monitor (one with `least_tokens`) looks at
    every token of the negative sides once more."""
    apart = test or validation
    again = len(apart or train) if least_tokens else 0
    return Cost(passes=2.0 * (len(train) + (len(apart) if apart else 0)) + again)


def plan_scoring(lm: LM, task: Task, *, monitor: Any, **_: object) -> Cost:
    """Of both sides, and once more token by token where the monitor has a threshold for that."""
    return Cost(passes=2.0 * len(task) * (1 + (monitor.stream_threshold is not None)))


# Slopes
# ---------------------------------------------------------------------------------------------------------------------


def plan_slopes(lm: LM, task: Task, *, on: Any = "clean", **_: object) -> Cost:
    """Of the prompts on which a task is measured, forwards and backwards."""
    return Cost(passes=float(len(measure(lm, task, on=on).prompts) * (1 + BACKWARD)))


def plan_tokens(lm: LM, task: Task, *, kind: str, steps: int, baseline: str, on: Any, **_: object) -> Cost:
    """Of slopes, or of as many as integrated gradients have steps between two runs. PromptError for no twins between
    which these could be."""
    if kind != "integrated_gradients":
        return plan_slopes(lm, task, on=on)
    if baseline == "corrupt":
        sides(lm, task)
    return Cost(passes=float(len(measure(lm, task, on=on).prompts) * (2 + steps * (1 + BACKWARD))))


def plan_attribution(
    lm: LM, task: Task, *, direction: str, source: Task | None, differences: object, **_: object
) -> Cost:
    """Of slopes on one side and a pass over the other; or, along mean differences, over both sides of their task.
    PromptError where the two sides do not correspond."""
    twins = task.shape == "counterfactual" and source is None and differences is None
    if differences is None:
        sides(lm, source or task)
    measured = measure(lm, task, on="clean" if twins and direction == "noise" else "corrupt")
    others = len(measured.prompts) if twins else 2 * len(source or task) * (differences is None)
    return Cost(passes=float(len(measured.prompts) * (1 + BACKWARD) + others))


def plan_atp_star(
    lm: LM,
    task: Task,
    *,
    sites: Any,
    spans: Any,
    fix: Sequence[str],
    grad_drop: bool,
    verify: int,
    audit: int,
    **_: object,
) -> Cost:
    """Of both runs, the slopes (half a backward pass for each layer with `grad_drop`), and a pass with the other run's
    queries, two for its keys; what is patched exactly in the end takes a whole pass each at most."""
    n = len(sides(lm, task).positive)
    where = places(lm, sites, spans, mapped=default_spans(task))
    kinds = {block.name.removeprefix("rot_") for block in where.blocks}
    slopes = 1 + BACKWARD * (1 + lm.anatomy.n_layers / 2 if grad_drop else 1)
    again = sum(number for kind, number in (("q", 1), ("k", 2)) if kind in kinds and kind in fix)
    exact = verify + audit + 2 if verify else 0
    return Cost(passes=n * (1 + slopes + again + exact))


def plan_audit(lm: LM, task: Task, *, scores: Any, k: int, sample: int, **_: object) -> Cost:
    """Of the places that are patched: a whole pass each at most, and both runs."""
    patched = min(k + sample, scores.mean().size)
    return Cost(places=patched, variants=patched * len(task), passes=float((patched + 2) * len(task)))


# Readouts through the vocabulary
# ---------------------------------------------------------------------------------------------------------------------


def plan_lens(
    lm: LM, task: Task, *, sites: Any, quantity: str, on: Any, spans: Any = None, lens: object = None, **_: object
) -> Cost:
    """Of a pass over each prompt; and of the whole vocabulary read at each place, where the quantity is of it, and in
    the output beside it, where it is of both."""
    metric = None if quantity in ("metric", "divergence", "entropy", "kl") else quantity
    measured = measure(lm, task, on=on, metric=metric)
    at = str(measured.readout.where)
    where = places(lm, sites, spans, mapped=at, alone=at)
    few = quantity not in OVER_ALL and measured.readout.tokens is not None
    return _read_out(lm, measured.prompts, where, units=0 if few else where.units or 1, own=quantity == "kl")


def plan_contrast(lm: LM, task: Task, *, sites: Any, quantity: str, on: Any, **_: object) -> Cost:
    """Of a pass over each prompt, and of every place read beside the output."""
    metric = None if quantity in ("metric", "divergence") else quantity
    measured = measure(lm, task, on=on, metric=metric)
    at = str(measured.readout.where)
    return _read_out(lm, measured.prompts, places(lm, sites, at, mapped=at, alone=at), units=1, own=True)


def plan_increase(
    lm: LM,
    task: Task,
    *,
    sites: Any,
    top: int | None,
    estimate: bool,
    on: Any,
    keys: Any = None,
    heads: Any = None,
    **_: object,
) -> Cost:
    """Of a pass over each prompt and an unembedding of each place on it; with `heads` without them once more, with
    `top` of the estimates before, which take one unembedding and its way back for a layer."""
    prompts = measure(lm, task, on=on, metric="log_prob").prompts
    where = places(lm, sites, keys, mapped="last", alone="last")
    times, screens = (1 if heads is None else 2), 0 if top is None else 1
    exact = 0 if estimate else min(top or math.inf, cells(where))
    vectors = times * exact + 2 * len(where.blocks) * (screens + times * estimate)
    reading = unembedded(lm, len(prompts) * vectors, _mean_length(prompts))
    return Cost(cells(where), passes=len(prompts) * (times + screens) + reading)


def plan_prompt(lm: LM, prompts: Prompts, *, sites: Any, at: str | None = None, **_: object) -> Cost:
    """Of a lens over some prompts: a pass, and every place read at one position (`at`), or at all."""
    length = _mean_length(prompts)
    vectors = len(lm.sites(sites)) * len(prompts) * (length if at is None else 1)
    return Cost(passes=len(prompts) + unembedded(lm, vectors, length))


def plan_patchscope(lm: LM, prompts: Prompts, *, sites: Any, target: Any, max_new_tokens: int, **_: object) -> Cost:
    """Of the prompt, and for every site of the target prompt twice and of each token that is written after it."""
    each = 2 * int(lm.prompts(target).lengths.sum()) + max_new_tokens
    return Cost(passes=1 + len(lm.sites(sites)) * each / _mean_length(prompts))


def plan_patchscope_scores(
    lm: LM, task: Task, *, sites: Any, spans: Any, target: str, target_at: str, into: str | None, on: Any, **_: object
) -> Cost:
    """Of the task's prompts, and of the target prompt for every place: from where it is set on."""
    prompts = measure(lm, task, on=on).prompts
    where = places(lm, sites, spans, mapped="last", alone="last")
    aimed = lm.prompts(target)
    left = int(aimed.lengths.sum()) - aimed.positions(Scope.parse(target_at))[0][0] + int(aimed.start[0])
    layers = [(block.layer or 0) if into is None else (lm.sites(into)[0].layer or 0) for block in where.blocks]
    share = sum(1 - layer / lm.anatomy.n_layers for layer in layers) * left / _mean_length(prompts)
    return Cost(cells(where), cells(where) * len(prompts), len(prompts) * (1 + share))


def _read_out(lm: LM, prompts: Prompts, where: Places, units: int, own: bool) -> Cost:
    """Of a pass over each prompt, and at each position of each block an unembedding of so many units, and of the output
    (`own`)."""
    positions = sum(sum(map(len, prompts.positions(block.at or Scope("all")))) for block in where.blocks)
    reading = unembedded(lm, positions * (units + own), _mean_length(prompts))
    return Cost(cells(where), passes=len(prompts) + reading)


def _mean_length(prompts: Prompts) -> float:
    return float(prompts.lengths.double().mean())


def _count(task: Task | RepeatedTokens | Prompts | None) -> int:
    return len(RepeatedTokens() if task is None else task)
