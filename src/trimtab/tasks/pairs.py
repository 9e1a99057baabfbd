"""Pairs: tasks made of questions under two system prompts, of labelled texts, or of a template and a table.

Whatever is paired here stays in one group: no text is in two, so parts of a task cannot share one. It knows nothing of
tokenizers. System prompts that are opposites follow Zou et al. 2023 (arXiv 2310.01405).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast
from trimtab.tasks.groups import hashed, refuse_leaks
from trimtab.tasks.labelled import Item, Words, contrasts, pair, several, sides_of
from trimtab.tasks.metrics import Metric
from trimtab.tasks.task import Task
from trimtab.tasks.templates import fill, twins_of


def from_systems(
    questions: Sequence[str],
    positive_system: str,
    negative_system: str,
    *,
    answers: Words | Sequence[Words],
    distractors: Words | Sequence[Words],
    asked: str | Sequence[str] = "",
    groups: Sequence[str] | None = None,
    name: str = "systems",
    about: str = "",
    poles: tuple[str, str] = ("positive", "negative"),
) -> Task:
    """The same questions under a system prompt and under its opposite: a task whose two sides differ in nothing else.

    The effect is read without either system prompt, after `asked` (one for all, one for each; the questions themselves
    by default): log p(answers) − log p(distractors), words for all questions or one list for each. `groups` (one for
    each question) keep questions together; by default each is a group of its own.

    >>> task = from_systems(
    ...     ["Is the sky green?", "Is snow hot?"], "Tell the truth.", "Lie.", answers="No", distractors="Yes"
    ... )
    >>> task, task.chat
    (<Task systems: 2 contrast examples in 2 groups, log_prob_diff>, True)
    """
    questions = _texts(questions, "questions")
    asked = list(questions) if not asked else _each(asked, len(questions), "asked")
    right = _words_for(answers, len(questions), "answers")
    wrong = _words_for(distractors, len(questions), "distractors")
    if groups is None:
        groups = [hashed(question) for question in questions]
    groups = _each(groups, len(questions), "groups")
    examples = [
        Contrast(
            question,
            question,
            group,
            question=ask,
            answers=tuple(yes),
            distractors=tuple(no),
            positive_system=positive_system,
            negative_system=negative_system,
        )
        for question, group, ask, yes, no in zip(questions, groups, asked, right, wrong, strict=True)
    ]
    refuse_leaks(examples, [f"question {i}" for i in range(len(examples))], name)
    return Task(name, tuple(examples), about=about, poles=poles, chat=True)


def from_labels(
    texts: Sequence[str],
    labels: Sequence[object],
    groups: Sequence[object] | None = None,
    *,
    positive: object = None,
    question: str = "",
    answers: Words = (),
    distractors: Words = (),
    name: str = "labels",
    about: str = "",
    poles: tuple[str, str] = ("positive", "negative"),
    chat: bool = False,
) -> Task:
    """Pairs of a text with a positive and one with a negative label, of the same group; each text is used once.

    `labels` are 1/0, true/false, yes/no, positive/negative, or any others when `positive` says which is the positive
    one. Without `groups` texts are paired that begin alike, and each pair is a group. A `question`, after which
    `answers` compete with `distractors`, may hold `{text}`: the positive text of one pair, the negative one of the
    next. Texts without a partner, and texts that have both labels, are left out.

    >>> from_labels(["Fire is hot.", "Ice is cold.", "Fire is cold.", "Ice is hot."], [1, 1, 0, 0]).examples
    (Contrast('Fire is hot.' / 'Fire is cold.'), Contrast('Ice is cold.' / 'Ice is hot.'))

    Raises TaskError where one side is empty, labels are unknown or missing, or a text is in two groups.
    """
    texts = _texts(texts, "texts")
    labels = _each(labels, len(texts), "labels")
    given = [None] * len(texts) if groups is None else _each(groups, len(texts), "groups")
    sides = sides_of(labels, positive)
    items = [
        Item(text, side, None if group is None else str(group), f"text {i}", "" if group is None else str(group))
        for i, (text, side, group) in enumerate(zip(texts, sides, given, strict=True))
    ]
    made, _ = pair(items, name)
    examples = [example for example, _ in contrasts(made, question, answers, distractors)]
    return Task(name, tuple(examples), about=about, poles=poles, chat=chat)


def from_template(
    templates: str | Sequence[str],
    samples: Sequence[Mapping[str, object]],
    *,
    answer: str | Sequence[str] = " {object}",
    group: str | None = None,
    candidates: int = 4,
    name: str = "template",
    about: str = "",
    metric: Metric = "log_prob_diff",
    chat: bool = False,
) -> Task:
    """A template filled with one sample and, as its corrupt twin, with another one of a different answer.

    `samples` are rows of a table, `templates` and `answer` texts with their columns in braces. Each column in a
    template becomes a span. A clean prompt gets up to `candidates` corrupt ones, of samples that look as long. Samples
    are compared within their `group` (a column); without one, within groups of a few that look alike.

    >>> from_template(
    ...     "{subject} lies in", [{"subject": "Rome", "object": "Italy"}, {"subject": "Oslo", "object": "Norway"}]
    ... ).examples[0]
    Counterfactual('Rome lies in' / 'Oslo lies in': ' Italy' against ' Norway')

    Raises TaskError where a column is missing or no two samples of a group have different answers.
    """
    written = (templates,) if isinstance(templates, str) else tuple(templates)
    answers = (answer,) if isinstance(answer, str) else tuple(answer)
    groups = None if group is None else [fill(f"{{{group}}}", sample)[0] for sample in samples]
    made = twins_of(written, samples, answers, groups, candidates, name)
    return Task(name, tuple(example for example, _ in made), about=about, metric=metric, chat=chat)


def _texts(texts: Sequence[str], what: str) -> list[str]:
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise TaskError(f"there are no {what}: give at least one")
    for i, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"{what} are texts that are not empty, and number {i} is {text!r}")
    return found


def _each(given: Any, number: int, what: str) -> list[Any]:
    found = [given] * number if isinstance(given, str) else list(given)
    if len(found) != number:
        raise TaskError(f"{what} must be one for each of {number}, got {len(found)}")
    for i, value in enumerate(found):
        if value is None or value != value or value == "":  # NaN is not equal to itself
            raise TaskError(f"{what}: number {i} is missing ({value!r})")
    return found


def _words_for(words: Words | Sequence[Words], number: int, what: str) -> list[tuple[str, ...]]:
    if isinstance(words, str) or all(isinstance(word, str) for word in words):
        return [several(words)] * number  # pyright: ignore[reportArgumentType]
    return [several(each) for each in _each(words, number, what)]
