"""Templates: a text with columns in braces, filled with the rows of a table, each with twins of another answer.

Tokenizers are not known here, so clean and corrupt prompts are matched by words and characters; `tasks.fit` leaves out
those whose tokens do not correspond.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import NamedTuple

from trimtab.errors import PromptError, TaskError, nearest
from trimtab.tasks.example import RESERVED, Counterfactual
from trimtab.values.scope import Scope

NEAR = 6
"""Subjects whose prompts are compared with each other, at most."""


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
