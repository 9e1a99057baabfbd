"""The opposite of a contrast task: the same texts and questions, with the negative side as the one that is wanted."""

from __future__ import annotations

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast
from trimtab.tasks.metrics import name_of
from trimtab.tasks.task import Task


def opposite(task: Task, instruction: str = "") -> Task:
    """The task whose number is that of the other side: sides, answers and distractors, and poles are exchanged.

    `instruction` is one that asks for the side that is now the positive one; the task's own asks for the other, so
    without it there is none.

    Raises TaskError for a counterfactual task, whose number says how far clean and corrupt are told apart and has no
    other side, and for a metric that is a function, which is not told what answers and distractors are.

    >>> from trimtab.tasks import builtin
    >>> opposite(builtin.task("toxicity")).poles
    ('respect', 'insult')
    """
    if not isinstance(task.metric, str):
        raise TaskError(
            f"the metric of {task.name} is the function {name_of(task.metric)}, which does not see that answers and "
            "distractors are exchanged: give a metric by its name, or a task with that function's opposite"
        )
    turned: list[Contrast] = []
    for example in task.examples:
        if not isinstance(example, Contrast):
            raise TaskError(
                f"{task.name} is counterfactual, and its number is how far the model tells clean from corrupt prompts: "
                "exchanged, they are told apart as far. Only a contrast task has an opposite"
            )
        turned.append(example.swapped().with_(answers=example.distractors, distractors=example.answers))
    return task.of(turned).with_(poles=(task.poles[1], task.poles[0]), instruction=instruction)
