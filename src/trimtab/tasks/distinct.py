"""Distinct: which examples a model is asked the same of, so that they count as one where parts and intervals are made.

Examples that are read after the same tokens, with the same answers to choose from, give one and the same number (or,
with answers and distractors exchanged, its negative). As many groups they would make an interval of no width, and as
several parts they would let a stage see what it is later judged on.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.groups import regrouped
from trimtab.tasks.measure import prompt_tokens, tokens_of
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def measured(lm: LM, task: Task) -> list[Hashable]:
    """For each example the tokens that its number is made of: those before the answers, and those of both answers.

    It is the same for an example, for its mislabelled twin, and for one the other way round. PromptError where the
    tokenizer refuses a text.
    """
    if task.shape == "counterfactual":
        both = [e for e in task.examples if isinstance(e, Counterfactual)]
        heads = _rows(lm, [text for e in both for text in (e.clean, e.corrupt)], task)
        words = tokens_of(lm, (word for e in both for word in (*e.answers, *e.distractors)))
        return [(frozenset((heads[e.clean], heads[e.corrupt])), _choice(words, e.answers, e.distractors)) for e in both]
    contrasts = [e for e in task.examples if isinstance(e, Contrast)]
    heads = _rows(lm, [e.question or e.prompt for e in contrasts if e.question or e.prompt], task)
    bare = _rows(lm, [text for e in contrasts if not (e.question or e.prompt) for text in (e.positive, e.negative)])
    tails = [w for e in contrasts for w in (*e.answers, *e.distractors)]
    words = tokens_of(lm, tails + [text for e in contrasts if e.prompt for text in (e.positive, e.negative)])
    found: list[Hashable] = []
    for e in contrasts:
        if e.question:
            found.append((heads[e.question], _choice(words, e.answers, e.distractors)))
        elif e.prompt:
            found.append((heads[e.prompt], _choice(words, (e.positive,), (e.negative,))))
        else:
            found.append(frozenset((bare[e.positive], bare[e.negative])))
    return found


def joined(task: Task, keys: list[Hashable]) -> Task:
    """The task with groups that share one of the keys (one for each example, by `measured`) made one."""
    groups = task.groups
    both = [{("measured", key), ("group", group)} for key, group in zip(keys, groups, strict=True)]
    return task.of(regrouped(task.examples, both, groups))


def _rows(lm: LM, texts: list[str], task: Task | None = None) -> dict[str, tuple[int, ...]]:
    return {text: tuple(ids) for text, ids in prompt_tokens(lm, texts, task).items()}


def _choice(words: dict[str, list[int]], *sides: tuple[str, ...]) -> Hashable:
    """The two sets of answers, in no order."""
    return frozenset(frozenset(tuple(words[word]) for word in side) for side in sides)
