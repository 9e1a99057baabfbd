"""In-context tasks: the examples of a counterfactual task as few-shot prompts, "France: Paris\\nJapan: Tokyo\\nItaly:".

What a model is asked is then shown by examples and never said. It knows no model: the result is a task like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from trimtab.errors import TaskError
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task


class Writing(TypedDict):
    """How few-shot prompts are written: the options of `in_context` but for `shuffled`."""

    shots: int
    item: str
    colon: str
    separator: str
    most: int | None
    seed: int


class Shot(NamedTuple):
    """A query, its answer with its leading space, and the group of the example that it comes from."""

    query: str
    answer: str
    group: str


def in_context(
    task: Task,
    *,
    shots: int = 5,
    item: str = "subject",
    colon: str = ":",
    separator: str = "\n",
    shuffled: bool = False,
    most: int | None = None,
    seed: int = 0,
) -> Task:
    """Prompts of `shots` solved examples and one to solve, made of a counterfactual task (Todd et al. 2023, arXiv
    2310.15213): the clean prompt asks for one query after the shots, its corrupt twin for another.

    Args:
        shots: solved examples before each query; 0 asks without any.
        item: the span that is the query ("France"), where every example has it; otherwise the whole clean prompt is,
            and nothing stands between it and its answer.
        colon: between a query that is a span and its answer; answers keep their leading space.
        separator: between examples.
        shuffled: the shots' answers are dealt anew among them, so that they show no task; the queries keep theirs.
        most: queries at most, drawn at random; every distinct one by default.
        seed: of the shots, their order and answers.

    Shots are never the query itself, have another answer than it, and come from other groups where there are enough.

    >>> pairs = [("France", " Paris"), ("Japan", " Tokyo"), ("Italy", " Rome")]
    >>> made = [
    ...     Counterfactual(f"{a} has", f"{b} has", (x,), (y,), a, {"subject": a}, {"subject": b})
    ...     for (a, x), (b, y) in zip(pairs, pairs[1:] + pairs[:1])
    ... ]
    >>> in_context(Task("capitals", tuple(made)), shots=1).examples[0].clean
    'Japan: Tokyo\\nFrance:'

    Raises TaskError for a contrast task, and where there are too few examples for so many shots.
    """
    if task.shape != "counterfactual":
        raise TaskError(f"{task.name} is a contrast task: shots are prompts with answers, as counterfactual tasks have")
    if shots < 0 or (shuffled and shots < 2):
        raise TaskError(f"shots are 0 or more, and two at least to be shuffled, got {shots}")
    pool, colon = _pool(task, item, colon)
    rng = np.random.default_rng(seed)
    asked = range(len(pool)) if most is None else sorted(rng.permutation(len(pool))[:most].tolist())
    examples = []
    for number in asked:
        own = pool[number]
        given = _draw(pool, own, shots, rng, task.name)
        others = [shot for shot in pool if shot.answer != own.answer and shot.query != own.query and shot not in given]
        if not others:
            raise TaskError(f"{task.name} has {len(pool)} queries, too few for {shots} shots, a query and another one")
        other = others[int(rng.integers(len(others)))]
        answers: list[str] = [shot.answer for shot in given]
        if shuffled:
            answers = _shuffled(answers, rng)
        head = "".join(f"{shot.query}{colon}{answer}{separator}" for shot, answer in zip(given, answers, strict=True))
        clean, corrupt = (f"{head}{shot.query}{colon}" for shot in (own, other))
        spans = [{"query": (len(head), len(head) + len(shot.query))} for shot in (own, other)]
        examples.append(Counterfactual(clean, corrupt, (own.answer,), (other.answer,), own.group, *spans))
    name = f"{task.name}, {shots} shots{' shuffled' * shuffled}"
    return task.with_(name=name, examples=tuple(examples), chat=False, system=None, instruction="")


def _pool(task: Task, item: str, colon: str) -> tuple[list[Shot], str]:
    """Every distinct query with its first answer, and what stands between them."""
    examples = [example for example in task.examples if isinstance(example, Counterfactual)]
    named = all(item in example.spans for example in examples)
    found: dict[str, Shot] = {}
    for example in examples:
        span = example.spans[item] if named else example.clean
        query = span if isinstance(span, str) else example.clean[span[0] : span[1]]
        found.setdefault(query, Shot(query, example.answers[0], example.group))
    return list(found.values()), colon if named else ""


def _draw(pool: Sequence[Shot], own: Shot, shots: int, rng: np.random.Generator, name: str) -> list[Shot]:
    """Shots for a query, of other groups where they are enough."""
    fit = [shot for shot in pool if shot.query != own.query and shot.answer != own.answer]
    apart = [shot for shot in fit if shot.group != own.group]
    fit = apart if len(apart) >= shots else fit
    if len(fit) < shots:
        raise TaskError(f"{name} has {len(fit)} examples to show before {own.query!r}, and {shots} are asked for")
    return [fit[i] for i in rng.permutation(len(fit))[:shots].tolist()]


def _shuffled(answers: list[str], rng: np.random.Generator) -> list[str]:
    """The answers in another order, none in its own place: turned by a random number of places once mixed."""
    order = rng.permutation(len(answers))
    turned = np.roll(order, int(rng.integers(1, len(answers))))
    dealt = np.empty(len(answers), dtype=int)
    dealt[order] = turned
    return [answers[i] for i in dealt.tolist()]
