"""Pairs: tasks made of questions under two system prompts, of labelled texts, or of a template and a table.

Whatever is paired here stays in one group: no text is in two, so parts of a task cannot share one. It knows nothing of
tokenizers, so clean and corrupt prompts are matched by words and characters, and `tasks.fit` leaves out those whose
tokens do not correspond. System prompts that are opposites follow Zou et al. 2023 (arXiv 2310.01405).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

from trimtab.errors import PromptError, TaskError, nearest
from trimtab.tasks.example import RESERVED, Contrast, Counterfactual, Example
from trimtab.tasks.metrics import Metric
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope

Words = str | Sequence[str]

YES = ("1", "true", "yes", "positive", "pos")
NO = ("0", "false", "no", "negative", "neg", "-1")
NEAR = 6
"""Subjects whose prompts are compared with each other, at most."""


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
        groups = [_hash(question) for question in questions]
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


# Labelled texts
# ---------------------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A labelled text: the `group` its pair will be in (None: one of its own), where it stands, and the `bucket` of
    texts that it may be paired with."""

    text: str
    positive: bool
    group: str | None
    place: str
    bucket: str = ""


Pair = tuple[Item, Item]


def sides_of(labels: Sequence[object], positive: object = None) -> list[bool]:
    """For each label whether it is the positive one. TaskError where that cannot be told, or one side is empty."""
    found = [canonical(label) for label in labels]
    counts = Counter(found)
    listed = ", ".join(f"{label!r} ({times})" for label, times in counts.most_common(6))
    if positive is not None:
        wanted = canonical(positive)
        if wanted not in counts:
            raise TaskError(
                f"no text has the positive label {positive!r}{nearest(wanted, map(str, counts))}; there are {listed}"
            )
        sides = [label == wanted for label in found]
    elif counts.keys() <= {*YES, *NO}:
        sides = [label in YES for label in found]
    elif len(counts) == 1:
        raise TaskError(f"all {len(found)} labels are {found[0]!r}: a contrast needs texts of both sides")
    else:
        raise TaskError(f"the labels are {listed}: say which of them is the positive one, positive=…")
    if len(set(sides)) < 2:
        empty = "negative" if sides and sides[0] else "positive"
        raise TaskError(f"all {len(found)} labels are {listed}: a contrast needs texts of both sides, no {empty} one")
    return sides


def canonical(label: object) -> str:
    """A label as it is compared: 1.0 and "1" are one label, and so are True and "true"."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip().lower()


def pair(items: Sequence[Item], name: str) -> tuple[list[Pair], list[str]]:
    """Pairs of a positive and a negative item of one bucket that begin alike, and notes on what was left out."""
    first: dict[str, Item] = {}
    both: set[str] = set()
    repeated = 0
    for item in items:
        before = first.setdefault(item.text, item)
        if before is item:
            continue
        if None not in (before.group, item.group) and before.bucket != item.bucket and before.group != item.group:
            raise TaskError(_leak(name, item.text, before.place, before.group, item.place, item.group))
        repeated += 1
        if before.positive != item.positive:
            both.add(item.text)
    buckets: dict[str, list[Item]] = defaultdict(list)
    for item in first.values():
        if item.text not in both:
            buckets[item.bucket].append(item)
    made: list[Pair] = []
    for members in buckets.values():
        waiting: list[Item] = []  # in alphabetical order a text meets the one before it that begins most alike
        for item in sorted(members, key=lambda item: item.text):
            if waiting and waiting[-1].positive != item.positive:
                other = waiting.pop()
                made.append((item, other) if item.positive else (other, item))
            else:
                waiting.append(item)
    alone = len(first) - len(both) - 2 * len(made)
    notes = [
        f"{count} {what}"
        for count, what in (
            (repeated, "repeated texts counted once"),
            (len(both), "texts with both labels left out"),
            (alone, "texts without a partner left out"),
        )
        if count
    ]
    if not made:
        raise TaskError(f"{name}: no group has texts of both sides, so there is no pair; give wider groups, or none")
    order = {item.text: i for i, item in enumerate(items)}
    return sorted(made, key=lambda two: min(order[two[0].text], order[two[1].text])), notes


def contrasts(
    made: Sequence[Pair], question: str, answers: Words = (), distractors: Words = ()
) -> list[tuple[Contrast, str]]:
    """The examples of pairs, each with the place of its positive text; `question` may hold `{text}` (see above)."""
    examples = []
    for i, (yes, no) in enumerate(made):
        group = yes.group or no.group or _hash(f"{yes.text}\n{no.text}")
        asked = question.replace("{text}", (no if i % 2 else yes).text)
        words = {"question": asked, "answers": _words(answers), "distractors": _words(distractors)} if asked else {}
        examples.append((Contrast(yes.text, no.text, group, **words), yes.place))
    return examples


# Templates
# ---------------------------------------------------------------------------------------------------------------------


class Filled(NamedTuple):
    """A sample's prompts, one for each template, with the places of their fields, and its answers."""

    texts: tuple[str, ...]
    spans: tuple[dict[str, str | tuple[int, int]], ...]
    answers: tuple[str, ...]
    label: str
    sample: int


def twins_of(
    templates: Sequence[str],
    samples: Sequence[Mapping[str, object]],
    answers: Sequence[str],
    groups: Sequence[str] | None,
    candidates: int,
    name: str,
) -> list[tuple[Counterfactual, int]]:
    """The examples of `from_template`, each with the number of the sample that its clean prompt is made of."""
    if not templates or not samples:
        raise TaskError(f"{name}: a template and samples to fill it with are needed, got {len(samples)} samples")
    filled = _merged(_fill_sample(templates, sample, answers, i) for i, sample in enumerate(samples))
    clusters = _neighbours(filled) if groups is None else _by_group(filled, groups)
    made: list[tuple[Counterfactual, int]] = []
    seen: set[tuple[str, str]] = set()
    for label, members in clusters:
        for position, clean in enumerate(members):
            others = members[position + 1 :] + members[:position]
            different = [other for other in others if not set(other.answers) & set(clean.answers)][:candidates]
            for corrupt in different:
                for k in range(len(templates)):
                    twin = _twin(clean, corrupt, k, label)
                    if twin is not None and (twin.clean, twin.corrupt) not in seen:
                        seen.add((twin.clean, twin.corrupt))
                        made.append((twin, clean.sample))
    if not made:
        raise TaskError(f"{name}: no two of {len(samples)} samples that are compared have different answers")
    return sorted(made, key=lambda one: one[1])


def fields_of(template: str) -> list[str]:
    """The columns in a template's braces. TaskError where braces do not close.

    >>> fields_of("{subject} is in the {kind} of")
    ['subject', 'kind']
    """
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise TaskError(
            f"{template!r} is not a template: {error}; write {{{{ and }}}} for braces of its own"
        ) from error


def fill(template: str, values: Mapping[str, object]) -> tuple[str, dict[str, str | tuple[int, int]]]:
    """The text, and where each column lies: its words, or characters (start, end) if these occur elsewhere too."""
    text, where = "", {}
    for name in fields_of(template):
        if name not in values:
            raise TaskError(
                f'{template!r} needs a column "{name}"{nearest(name, values)}: there are {", ".join(map(str, values))}'
            )
    for before, name, _, _ in Formatter().parse(template):
        text += before
        if name is not None:
            where[name] = (len(text), len(text) + len(str(values[name])))
            text += str(values[name])
    seen = {name: ends for name, ends in where.items() if _names_a_span(name) and ends[0] < ends[1]}
    return text, {name: _place(text, *ends) for name, ends in seen.items()}


def _fill_sample(templates: Sequence[str], sample: Mapping[str, object], answers: Sequence[str], number: int) -> Filled:
    texts, spans = zip(*(fill(template, sample) for template in templates), strict=True)
    words = tuple(dict.fromkeys(fill(answer, sample)[0] for answer in answers))
    label = next((str(sample[field]) for field in fields_of(templates[0])), texts[0])
    return Filled(texts, spans, words, label, number)


def _merged(filled: Iterable[Filled]) -> list[Filled]:
    """Samples with the same prompts as one, which has the answers of all."""
    found: dict[tuple[str, ...], Filled] = {}
    for sample in filled:
        known = found.get(sample.texts)
        answers = sample.answers if known is None else tuple(dict.fromkeys((*known.answers, *sample.answers)))
        found[sample.texts] = (known or sample)._replace(answers=answers)
    return list(found.values())


def _neighbours(filled: Sequence[Filled]) -> list[tuple[str, list[Filled]]]:
    """Groups of up to `NEAR` samples that look as long, of answers as different as can be."""
    ordered = sorted(filled, key=lambda s: (len(s.label.split()), len(s.label), s.label))
    clusters: list[list[Filled]] = []
    for start in range(0, len(ordered), 8 * NEAR):
        queues: dict[tuple[str, ...], list[Filled]] = defaultdict(list)
        for sample in ordered[start : start + 8 * NEAR]:
            queues[sample.answers].append(sample)
        dealt = [queue[turn] for turn in range(8 * NEAR) for queue in queues.values() if turn < len(queue)]
        clusters += [dealt[i : i + NEAR] for i in range(0, len(dealt), NEAR)]
    if len(clusters) > 1 and len(clusters[-1]) == 1:  # one left over goes with the ones before it
        clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [(f"{members[0].label} and {len(members) - 1} more", members) for members in clusters]


def _by_group(filled: Sequence[Filled], names: Sequence[str]) -> list[tuple[str, list[Filled]]]:
    groups: dict[str, list[Filled]] = defaultdict(list)
    for sample in filled:
        groups[names[sample.sample]].append(sample)
    return [(name, sorted(members, key=lambda s: (len(s.label), s.label))) for name, members in groups.items()]


def _twin(clean: Filled, corrupt: Filled, template: int, group: str) -> Counterfactual | None:
    if clean.texts[template] == corrupt.texts[template]:
        return None
    spans, others = clean.spans[template], corrupt.spans[template]
    named = [name for name in spans if name in others]
    return Counterfactual(
        clean.texts[template],
        corrupt.texts[template],
        clean.answers,
        corrupt.answers,
        group,
        {name: spans[name] for name in named},
        {name: others[name] for name in named if others[name] != spans[name]},
    )


def _place(text: str, start: int, end: int) -> str | tuple[int, int]:
    word = text[start:end]
    return word if text.find(word) == text.rfind(word) else (start, end)


def _names_a_span(name: str) -> bool:
    try:
        Scope("span", name=name)
    except PromptError:
        return False
    return name not in RESERVED


# Groups
# ---------------------------------------------------------------------------------------------------------------------


def texts_of(example: Example) -> tuple[str, ...]:
    """The texts that must not be in two groups: those whose activations or continuations are compared."""
    if isinstance(example, Counterfactual):
        return example.clean, example.corrupt
    return (example.prompt,) if example.prompt else (example.positive, example.negative)


def refuse_leaks(examples: Sequence[Example], places: Sequence[str], name: str) -> None:
    """TaskError, naming both places, where one text is in two groups: it would be in two parts of a split task."""
    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        for text in texts_of(example):
            before = examples[first.setdefault(text, i)]
            if before.group != example.group:
                raise TaskError(_leak(name, text, places[first[text]], before.group, places[i], example.group))


def own_groups(examples: Sequence[Example], named: bool = False) -> list[Example]:
    """Each example in a group of its own, but together with those that it shares a text with.

    With `named`, their groups are kept, and groups that share a text become one.
    """
    leader = list(range(len(examples)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, example in enumerate(examples):
        keys = [("text", text) for text in texts_of(example)] + ([("group", example.group)] if named else [])
        for key in keys:
            leader[find(i)] = find(first.setdefault(key, i))
    names: dict[int, str] = {}
    for i, example in enumerate(examples):
        name = example.group if named else _hash("\n".join(texts_of(example)))
        names[find(i)] = min(name, names.get(find(i), name))
    return [example.with_(group=names[find(i)]) for i, example in enumerate(examples)]


def _leak(name: str, text: str, place: str, group: str | None, other_place: str, other_group: str | None) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}…"
    return (
        f"{name}: the same text is in two groups, so two parts of the task could share it: {shown!r} is in group "
        f"{group!r} ({place}) and in group {other_group!r} ({other_place}); give both one group, or leave one out"
    )


# What is given
# ---------------------------------------------------------------------------------------------------------------------


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
        return [_words(words)] * number  # pyright: ignore[reportArgumentType]
    return [_words(each) for each in _each(words, number, what)]


def _words(words: Words) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
