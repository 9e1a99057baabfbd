"""Screens that need no training and no intervention: how large activations are, and how far the two sides differ.

They say where a behaviour shows, not what makes the model behave so: every score here wants a test by patching or
shifting. Following the contrast of means of Rimsky et al. 2023 (arXiv 2312.06681) and Marks and Tegmark 2023 (arXiv
2310.06824), with directions held out by group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import TaskError, TrimtabError, nearest
from trimtab.locate.pairing import alone
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_side, plan_sides
from trimtab.locate.reach import written
from trimtab.locate.units import Places, Spans, default_spans, places, side_means
from trimtab.model.protocols import Dictionary
from trimtab.tasks.means import MeanDifference, default_read, pooled
from trimtab.tasks.measure import one_side, sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Contrasted = Literal["z", "difference", "auroc"]
Magnitude = Literal["mean_abs", "max_abs", "frequency", "written", "weight"]
Progress = Callable[[int, int], None]

UNITS = {"z": "std", "difference": "activation", "auroc": "AUROC − ½"}


@planned_by(plan_sides)
def magnitude_contrast(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    spans: Spans | None = None,
    statistic: Contrasted = "z",
    differences: MeanDifference | None = None,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """How far activations of the positive side of each example lie from those of its negative side.

    With p and n an example's activations on its two sides, averaged over a span, a unit that is one number (a neuron, a
    feature) has the difference p − n. A unit that is a vector (a head, a residual stream) is first projected on
    the unit direction of mean(p − n) over the examples of all *other* groups, so the score is held out: with shuffled
    labels it is about 0. A neuron may score negative, a direction only by chance. Then, by `statistic`:

    "z": (p − n)/s with s = √((var p + var n)/2): its mean is Cohen's d. For vectors s is of the other groups too.
    "difference": p − n, in units of the activation.
    "auroc": the share of all examples' n (for vectors, of the same group's) that p exceeds, ties counting half, minus
    ½: its mean is AUROC − ½.

    Args:
        sites: a map such as `"L*.head"`, or a list of candidates such as `["L5.head[3]", "L9.resid_post@end"]`.
        spans: scopes of the prompts of `tasks.measure.sides`; by default the task's `read`, and for counterfactual
            tasks their own spans and "end" (the last token for candidates without positions).
        differences: the means of both sides, where they have been made already, at the spans that are asked for.
        batch_size: prompts that go through the model together.

    Returns:
        `Scores` in standard deviations, activations or AUROC − ½; NaN where nothing varies within the sides.

    Raises TaskError where there is one group only, and so nothing to hold a direction out from.

    >>> magnitude_contrast(lm, task, "L*.resid_post").top(1)  # doctest: +SKIP
    """
    if statistic not in UNITS:
        raise TrimtabError(f'no statistic "{statistic}"{nearest(str(statistic), UNITS)}: there are {", ".join(UNITS)}')
    where = _places(lm, task, sites, spans, dictionaries)
    means = side_means(lm, task, where, differences, batch_size, dictionaries, progress)
    columns = []
    for block in where.blocks:
        positive, negative = means.sides(block)
        columns.append(_contrast(where.vectors(positive), where.vectors(negative), task.groups, statistic))
    options = {"statistic": statistic}
    prompts = sides(lm, task).positive
    unit = UNITS[statistic]
    return where.scores(where.array(columns), lm, task, prompts, "magnitude_contrast", unit, options)


@alone
@planned_by(plan_side)
def activation_magnitude(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    spans: Spans | None = None,
    statistic: Magnitude = "mean_abs",
    threshold: float = 0.0,
    side: Literal["positive", "negative"] = "positive",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """How large activations are on one side of a task: the screen that needs nothing to compare with.

    Over the positions of a span and the entries of a unit: "mean_abs" mean |a|, "max_abs" largest |a|, "frequency" the
    share of a above `threshold`. Two more say how much a unit can move the residual stream: "written" is the norm of
    what it writes there (before any post-norm), its activation times its output weights: a head's rows of the output
    projection, a neuron's row of the down projection; the stream's own sites are their own norm. "weight" is the norm
    of these weights alone, the same for every example. `side`: of the positive (clean) texts, or of the negative
    (corrupt) ones. The rest as in `magnitude_contrast`.

    Raises SiteError for "written" and "weight" at sites that write nothing to the stream themselves.
    """
    kinds = ("mean_abs", "max_abs", "frequency", "written", "weight")
    if statistic not in kinds:
        raise TrimtabError(f'no statistic "{statistic}"{nearest(str(statistic), kinds)}: there are {", ".join(kinds)}')
    where = _places(lm, task, sites, spans, dictionaries)
    prompts = one_side(lm, task, side)
    if statistic in ("written", "weight"):
        columns = written(
            lm, where, prompts, batch_size=batch_size, weight_only=statistic == "weight", progress=progress
        )
        return where.scores(
            where.array(columns),
            lm,
            task,
            prompts,
            "activation_magnitude",
            "norm",
            {"statistic": statistic, "side": side},
        )
    found = pooled(
        lm,
        prompts,
        where.blocks,
        pool=statistic,
        threshold=threshold,
        batch_size=batch_size,
        dictionaries=dictionaries,
        progress=progress,
    )
    over = np.max if statistic == "max_abs" else np.mean
    columns = [over(where.vectors(found[block]), axis=-1) for block in where.blocks]
    unit = "share" if statistic == "frequency" else "activation"
    options = {"statistic": statistic, "side": side} | ({"threshold": threshold} if statistic == "frequency" else {})
    return where.scores(where.array(columns), lm, task, prompts, "activation_magnitude", unit, options)


def _places(
    lm: LM, task: Task, sites: Reads, spans: Spans | None, dictionaries: Mapping[str, Dictionary] | None
) -> Places:
    return places(lm, sites, spans, mapped=default_spans(task), alone=default_read(task), dictionaries=dictionaries)


def _contrast(
    positive: Float[np.ndarray, "example unit d"],
    negative: Float[np.ndarray, "example unit d"],
    groups: Sequence[str],
    statistic: Contrasted,
) -> Float[np.ndarray, "example unit"]:
    if positive.shape[2] == 1:
        p, n = positive[..., 0].astype(np.float64), negative[..., 0].astype(np.float64)
        return _statistic(p, n, p, n, statistic)
    out = np.empty(positive.shape[:2])
    for held, others in held_out(groups):
        direction = (positive[others] - negative[others]).mean(0, dtype=np.float64)
        length = np.linalg.norm(direction, axis=-1, keepdims=True)
        direction = np.divide(direction, length, out=np.zeros_like(direction), where=length > 0)
        p, n = (np.einsum("eud,ud->eu", side, direction) for side in (positive, negative))
        beside = held if statistic == "auroc" else others  # n of the others lie low on a direction made from them
        out[held] = _statistic(p[held], n[held], p[beside], n[beside], statistic)
    return out


def _statistic(p: np.ndarray, n: np.ndarray, all_p: np.ndarray, all_n: np.ndarray, statistic: Contrasted) -> np.ndarray:
    """(example unit) from both sides' numbers, and those of the examples that they are compared with."""
    if statistic == "difference":
        return p - n
    if statistic == "z":
        if len(all_p) < 2:
            raise TaskError("standard deviations need two examples or more to compare with: give a larger task")
        std = np.sqrt((all_p.var(0, ddof=1) + all_n.var(0, ddof=1)) / 2)
        z = np.divide(p - n, std, out=np.full_like(p, np.nan), where=std > 0)
        return np.where((p == n) & (std == 0), 0.0, z)
    ordered = np.sort(all_n, axis=0)
    below = np.empty_like(p)
    for unit in range(p.shape[1]):
        left, right = (np.searchsorted(ordered[:, unit], p[:, unit], side) for side in ("left", "right"))
        below[:, unit] = (left + right) / 2
    return below / len(ordered) - 0.5


def held_out(groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each group its examples and those of all others. TaskError where there is one group only."""
    labels = np.array(groups)
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise TaskError(
            f"a direction is tried out on groups that it was not made from, and all {len(groups)} examples are of "
            f'group "{names[0]}": give examples the group (template, topic, entity) that they belong to'
        )
    return [(np.flatnonzero(labels == name), np.flatnonzero(labels != name)) for name in names]
