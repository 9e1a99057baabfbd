"""Making: fields of rows to examples: one for each row, pairs of labelled texts, or twins of a filled template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast, Counterfactual, Example
from trimtab.tasks.fields import Plan
from trimtab.tasks.formats import Kind
from trimtab.tasks.groups import own_groups, refuse_leaks
from trimtab.tasks.labelled import Item, contrasts, pair, sides_of
from trimtab.tasks.records import Place
from trimtab.tasks.rows import Wish
from trimtab.tasks.templates import twins_of

CANDIDATES = 4
"""Corrupt prompts for each clean one, where they are made here."""


class Fault(NamedTuple):
    """A row that is broken, and what is wrong with it."""

    place: Place
    what: str


class Part(NamedTuple):
    """The rows of one unit: good ones as fields, the others as faults."""

    name: str
    plan: Plan
    rows: list[tuple[Place, dict[str, Any]]]
    faults: list[Fault]
    header: dict[str, Any]
    poles: tuple[str, str] | None


Made = tuple[list[Example], list[Place], list[str]]


def _examples(parts: Sequence[Part], name: str, wish: Wish) -> Made:
    """Contrast or counterfactual examples, one for each row; rows that make none become faults of their part."""
    made: list[tuple[Example, Place]] = []
    ours = any(part.plan.form is not None and part.plan.form.groups for part in parts)
    grouped = any("group" in values for part in parts for _, values in part.rows)
    for part in parts:
        shape = Contrast if part.plan.kind == "contrast" else Counterfactual
        for place, values in part.rows:
            if grouped and "group" not in values:
                part.faults.append(Fault(place, "it has no group, and other rows have one"))
                continue
            try:
                made.append((shape(**{"group": "-", **values}), place))
            except TaskError as error:
                part.faults.append(Fault(place, str(error)))
    examples, places = [example for example, _ in made], [place for _, place in made]
    if ours or not grouped:
        examples = own_groups(examples, named=ours)
    else:
        refuse_leaks(examples, list(map(str, places)), name)
    kept: dict[Example, Place] = {}
    for example, place in zip(examples, places, strict=True):
        kept.setdefault(example, place)
    repeated = len(examples) - len(kept)
    return list(kept), list(kept.values()), [f"{repeated} repeated rows counted once"] if repeated else []


def _labelled(parts: Sequence[Part], name: str, wish: Wish) -> Made:
    """Contrast examples from labelled texts: pairs of one file and group."""
    rows = [(part, place, values) for part in parts for place, values in part.rows]
    places = {str(place): place for _, place, _ in rows}
    try:
        sides = sides_of([values["label"] for _, _, values in rows], wish.positive)
        items: list[Item] = []
        for (part, place, values), side in zip(rows, sides, strict=True):
            topical = part.plan.form is not None and part.plan.form.topic
            bucket = "" if topical else f"{part.name}\n{values.get('group', '')}"
            items.append(Item(values["text"], side, values.get("group", values.get("topic")), str(place), bucket))
        pairs, notes = pair(items, name)
    except TaskError as error:
        if any(part.faults for part in parts):  # what is left of a broken file may be of one side: first things first
            return [], [], [str(error)]
        form = rows[0][0].plan.form
        hint = f"; {form.sides}" if form is not None and form.sides else ""
        raise TaskError(f"{name}: {str(error).removeprefix(f'{name}: ')}{hint}") from error
    every = rows[0][2]
    words = {key: every[key] for key in ("answers", "distractors") if key in every}
    made = contrasts(pairs, str(every.get("question", "")), **words)
    return [example for example, _ in made], [places[place] for _, place in made], notes


def _samples(parts: Sequence[Part], name: str, wish: Wish) -> Made:
    """Counterfactual examples from rows that fill a template."""
    prompts = sum(len(part.rows) * len(part.plan.specs["clean"]) for part in parts if part.rows)
    candidates = max(1, min(CANDIDATES, wish.most // max(1, prompts)))
    examples: list[Example] = []
    places: list[Place] = []
    for part in parts:
        values = [fields for _, fields in part.rows]
        if not values:
            continue
        groups = [fields["group"] for fields in values] if all("group" in fields for fields in values) else None
        samples, first = [fields["values"] for fields in values], values[0]
        try:
            made = twins_of(first["templates"], samples, first["words"], groups, candidates, part.name)
        except TaskError as error:
            if part.faults:  # what is left of a broken file may be too little: first things first
                return [], [], [str(error)]
            raise
        for example, sample in made:
            group = example.group if len(parts) == 1 or groups is not None else f"{part.name}: {example.group}"
            examples.append(example.with_(group=group))
            places.append(part.rows[sample][0])
    return examples, places, []


MAKERS: dict[Kind, Callable[[Sequence[Part], str, Wish], Made]] = {
    "contrast": _examples,
    "counterfactual": _examples,
    "labelled": _labelled,
    "samples": _samples,
}
