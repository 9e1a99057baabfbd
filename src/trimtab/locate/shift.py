"""Shift: the mean difference of the two sides is added at a place, and the task's number tells what that does.

The exact causal test of a contrast task, whose texts do not correspond to its questions, so that nothing can be
patched: contrastive activation addition (Rimsky et al. 2023, arXiv 2312.06681) read on the next token. What
`attribution_patching` estimates for contrast tasks to first order, this computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trimtab.locate.pairing import paired_where
from trimtab.locate.plans import plan_shift, planned_by
from trimtab.locate.sweep import Exact, Progress, Variants, intervenes, sweep
from trimtab.locate.units import mean_differences, places
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.run import Run
from trimtab.tasks.means import MeanDifference
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads


@paired_where(lambda *, source, differences, **_: source is None and differences is None, else_="corrupt")
@planned_by(plan_shift)
@intervenes
def shift(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    source: Task | None = None,
    scope: str | Scope = "all",
    strength: float = 1.0,
    differences: MeanDifference | None = None,
    exact: Exact = "fast",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """The change of the task's number when strength·v is added at a place, v = mean(h⁺ − h⁻) there.

    Contrast tasks are read after their questions, counterfactual ones on their corrupt prompts. The effect is after
    minus before: positive where the shift makes the number larger.

    Args:
        sites: a map such as `"L*.head"`, each of whose units is shifted alone, or a list of candidates such as
            `["L5.head[3]", "L9.resid_post"]`.
        source: the task whose two sides are compared, such as the training part; by default the task itself.
        scope: positions of the measured prompts at which v is added, where sites have none of their own.
        strength: in units of the raw difference of means. 0 changes nothing, −1 shifts the other way.
        differences: the mean difference, where it has been made already (or flipped, as a control).
        exact: "fast" computes what changes; "naive" runs the model once for each place.
        batch_size: prompts whose runs are held together.

    Returns:
        `Scores` in the metric's unit.

    >>> shift(lm, task, "L*.resid_post", source=train).top(3)  # doctest: +SKIP
    """
    where = places(lm, sites, None, mapped=scope, alone=scope, dictionaries=dictionaries)
    source = task if source is None else source
    means = differences or mean_differences(lm, task, source, where, batch_size=batch_size, dictionaries=dictionaries)
    variants = [Edit(site, "add", means.difference(site), strength=strength) for site in where.sites]
    measured = measure(lm, task)

    def make(rows: list[int], prompts: Prompts) -> tuple[Variants, dict[str, Run]]:
        return variants, {}

    effects = sweep(
        lm,
        measured,
        make,
        where.tensors,
        exact=exact,
        batch_size=batch_size,
        dictionaries=dictionaries,
        progress=progress,
    )
    options = {"source": source.name, "strength": strength}
    return where.scores(effects, lm, task, measured.prompts, "shift", measured.unit, options)
