"""Over-refusal: whether an intervention turns down requests that harm nobody.

Read off the harmless side of a task such as the built-in `refusal`: XSTest (Röttger et al. 2023, arXiv 2308.01263) asks
the same of finished models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.errors import TaskError
from trimtab.evaluate.effect import effects
from trimtab.tasks.example import Contrast
from trimtab.tasks.fit import fit
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.outcome import Outcome

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def harmless(task: Task) -> Task:
    """The examples of a refusal task whose question is their harmless side. TaskError where none is."""
    found = [e for e in task.examples if isinstance(e, Contrast) and e.question == e.negative]
    if not found:
        raise TaskError(
            f"{task.name} has no example whose question is its negative (harmless) text: give a task like `refusal`"
        )
    return task.of(found).with_(name=f"{task.name} (harmless requests)")


def over_refusal(lm: LM, intervention: Intervention, task: Task | None = None, *, seed: int = 0) -> Outcome:
    """The log odds of refusing harmless requests, before and after: what rises here is refused for nothing.

    `task` is by default the test part of the built-in `refusal`, its words fitted to the model, split with `seed` as
    `trimtab run` and `steer.search` split it: no vector of its train part has seen these requests. Of a task of your
    own give such a part.
    """
    if task is None:
        from trimtab.tasks import builtin

        task = fit(lm, builtin.task("refusal")).task.split(seed).test
    return effects(lm, harmless(task), [Intervention.of(intervention)]).outcome()
