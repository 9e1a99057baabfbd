"""Noise in the text: irrelevant passages in front of a prompt, and how much of the task's number survives them.

The coarsest ablation, of nothing inside the model: it says how far an effect hangs on the prompt standing alone, which
the ones inside take for granted (Shi et al. 2023, "Large Language Models Can Be Easily Distracted by Irrelevant
Context", arXiv 2302.00093). The passages are the neutral ones that the package ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from trimtab.errors import TaskError
from trimtab.evaluate.effect import effects
from trimtab.evaluate.texts import Passage, part
from trimtab.locate.pairing import alone
from trimtab.locate.plans import Cost, planned_by
from trimtab.locate.sweep import Progress
from trimtab.model.provenance import provenance
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM

On = Literal["clean", "corrupt", "gap"]


def _plan(lm: LM, task: Task, *, passages: int, words: int, on: On, seed: int, **_: object) -> Cost:
    """Of the prompts, and of them behind each passage, which makes them longer."""
    alone = measure(lm, task, on=on).prompts
    behind = [measure(lm, _behind(task, passage, words), on=on).prompts for passage in _drawn(passages, seed)]
    longer = sum(float(prompts.lengths.sum()) for prompts in behind) / float(alone.lengths.sum())
    return Cost(passes=len(alone) * (1 + longer))


@alone
@planned_by(_plan)
def text_noise(
    lm: LM,
    task: Task,
    *,
    passages: int = 3,
    words: int = 40,
    on: On = "clean",
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """How much of the task's number is lost when an irrelevant passage stands in front: M(before) − M(after), averaged
    over passages.

    Args:
        passages: how many, drawn once for all examples.
        words: of each passage, from its start.
        on: which prompts of a counterfactual task, or "gap", clean minus corrupt; contrast tasks are measured after
            their questions.
        seed: of the draw of passages.

    Returns:
        `Scores` (example) in the metric's unit, at the site `embed`, where what was added comes in.

    Raises TaskError for a contrast task without questions, or more passages than there are.

    >>> text_noise(lm, task).mean()  # doctest: +SKIP
    """
    if words < 1:
        raise TaskError(f"words is how many of each passage are taken, at least 1, got {words}")
    drawn = _drawn(passages, seed)
    measured = measure(lm, task, on=on)
    before = effects(lm, measured, [Intervention()]).base
    after = []
    for i, passage in enumerate(drawn):
        after.append(effects(lm, measure(lm, _behind(task, passage, words), on=on), [Intervention()]).base)
        if progress is not None:
            progress(i + 1, passages)
    options: dict[str, object] = {"task": task.name, "passages": [passage.source for passage in drawn], "words": words}
    options |= {"on": on} if task.shape == "counterfactual" else {}
    return Scores(
        before - np.mean(after, 0),
        ("example",),
        {},
        "embed",
        unit=measured.unit,
        method="text_noise",
        options=options,
        groups=task.groups,
        provenance=provenance(lm, measured.prompts, "text_noise", options),
    )


def _drawn(passages: int, seed: int) -> list[Passage]:
    pool = part("search")
    if not 1 <= passages <= len(pool):
        raise TaskError(f"passages is how many stand in front in turn, from 1 to {len(pool)}, got {passages}")
    return [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:passages]]


def _behind(task: Task, passage: Passage, words: int) -> Task:
    """The task with a passage in front of every prompt. Spans are left out: nothing is read at them."""
    text = " ".join(passage.text.split()[:words]) + "\n\n"
    moved: list[Contrast | Counterfactual] = []
    for example in task.examples:
        if isinstance(example, Counterfactual):
            clean, corrupt = text + example.clean, text + example.corrupt
            moved.append(example.with_(clean=clean, corrupt=corrupt, spans={}, corrupt_spans={}))
        elif example.question:
            moved.append(example.with_(question=text + example.question))
        else:
            raise TaskError(
                f"{task.name} asks no question that a passage could stand in front of: give its examples one"
            )
    return task.of(moved)
