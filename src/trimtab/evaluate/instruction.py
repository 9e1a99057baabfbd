"""Prompt only: the baseline that asks for the behaviour in words, where an intervention would change the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def instructed(task: Task) -> Task:
    """The task with its instruction before every question or both prompts, or in the system prompt of a chat."""
    if task.chat:
        return task.with_(system=task.instruction)
    return task.of([_after(task.instruction, e) for e in task.examples])


def measured_with_instruction(lm: LM, task: Task) -> Measure:
    """Where the task's number is read once the instruction stands before its questions or prompts.

    Raises TaskError for a task without an instruction, and for one that is read off its texts as they are.
    """
    if not task.instruction:
        raise TaskError(f"{task.name} has no instruction that would ask for it in words (a task's `instruction`)")
    if not all(isinstance(e, Counterfactual) or e.question for e in task.examples):
        raise TaskError(
            f"{task.name} is read off its texts as they are, with no question that an instruction could go before"
        )
    return measure(lm, instructed(task), on="gap")


def _after(instruction: str, e: Counterfactual | Contrast) -> Counterfactual | Contrast:
    """An example after an instruction; where spans lie is of no interest in it."""
    if isinstance(e, Contrast):
        return e.with_(question=f"{instruction} {e.question}")
    return e.with_(clean=f"{instruction} {e.clean}", corrupt=f"{instruction} {e.corrupt}", spans={}, corrupt_spans={})
