"""Propensity: how much rather the model gives the completion that matches the behaviour, along a coefficient.

The logit difference and its slope are those of Tan et al. 2024 (arXiv 2407.12404), after Rimsky et al. 2023
(arXiv 2312.06681); with answers of one token the normalised probability is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import TaskError
from trimtab.evaluate.effect import effects
from trimtab.model.provenance import provenance
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.metrics import DEFAULT, SEQUENCE
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.propensity import Propensity

if TYPE_CHECKING:
    from trimtab.model.lm import LM

COEFFICIENTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


def propensity(
    lm: LM,
    task: Task,
    intervention: Intervention | Callable[[float], Intervention],
    *,
    coefficients: Sequence[float] = COEFFICIENTS,
    progress: Callable[[int, int], None] | None = None,
) -> Propensity:
    """log p(matching) − log p(other) of every example at every coefficient, with slopes and anti-steerable examples.

    Args:
        task: the examples, best a part that the intervention was not made from.
        intervention: at coefficient 1, and times the others; or a function of the coefficient.
        coefficients: two or more; 0 is the model as it is.

    Returns:
        A `Propensity`: `steerability` is the mean slope, `anti_steerable` the share of slopes below zero.

    Raises TaskError for a task whose texts are compared by their likelihood per token, which is no log odds.

    >>> propensity(lm, parts.test, vector).anti_steerable  # doctest: +SKIP
    """
    measured = odds(lm, task)
    make = intervention if callable(intervention) else lambda c: intervention * c
    wanted = [float(c) for c in coefficients]
    variants = [Intervention() if c == 0 else Intervention.of(make(c)) for c in wanted]
    values = effects(lm, measured, variants, progress=progress).values
    options = {"task": task.name, "coefficients": wanted, "intervention": Intervention.of(make(1.0)).digest}
    made = provenance(lm, measured.prompts, "propensity", options)
    return Propensity(tuple(wanted), np.asarray(values), "nat", measured.groups, task.name, made)


def odds(lm: LM, task: Task) -> Measure:
    """The log odds of the matching completion: of single words whatever the task's own metric, else of whole texts."""
    own = task.metric in (DEFAULT, SEQUENCE)
    made = measure(lm, task) if own else measure(lm, task, metric=DEFAULT)
    if made.unit != "nat":
        raise TaskError(
            f"{task.name} compares texts by their likelihood per token, which is no log odds: give its examples a "
            "question with answers, or a prompt"
        )
    return made
