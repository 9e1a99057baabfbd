"""The prompts over which a typical value is taken: those of the task itself, of another one, or any that are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trimtab.errors import TaskError
from trimtab.model.prompts import Prompts
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def reference_prompts(lm: LM, task: Task, reference: Task | Prompts | None, on: Literal["clean", "corrupt"]) -> Prompts:
    """The prompts on which the number of `reference`, by default of `task` itself, is read; prompts as they are.

    `on` is which prompts of a counterfactual task. Raises TaskError for texts that are no prompts yet.
    """
    if reference is None or isinstance(reference, Task):
        return measure(lm, task if reference is None else reference, on=on).prompts
    if not isinstance(reference, Prompts):
        raise TaskError(
            f"a reference is a task or prompts, got {type(reference).__name__}: make prompts of texts with "
            "lm.prompts(texts), which says what becomes of a chat template and of a BOS"
        )
    return lm.prompts(reference)


def name_of(reference: Task | Prompts) -> str:
    """What a reference is called in options, with the start of its digest."""
    what = reference.name if isinstance(reference, Task) else f"{len(reference)} prompts"
    return f"{what} ({reference.digest[:12]})"
