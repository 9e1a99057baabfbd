"""Twins: a clean and a corrupt prompt from one template, with spans at some of its fields."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.tasks.example import Counterfactual
from trimtab.tasks.templates import fill


def twins(
    template: str,
    clean: Mapping[str, object],
    corrupt: Mapping[str, object],
    answers: tuple[str, ...],
    distractors: tuple[str, ...],
    group: str,
    spans: tuple[str, ...],
) -> Counterfactual:
    """The example whose two prompts are `template` with the fields of `clean`, and with those changed in `corrupt`.

    `spans` are the fields that become spans of the same name.

    >>> countries = {"subject": "Peru"}, {"subject": "Cuba"}
    >>> twins("The capital of {subject} is", *countries, (" Lima",), (" Havana",), "one", ("subject",)).corrupt_spans
    {'subject': 'Cuba'}
    """
    text, places = fill(template, clean)
    other, others = fill(template, {**clean, **corrupt})
    changed = {name: others[name] for name in spans if others[name] != places[name]}
    return Counterfactual(text, other, answers, distractors, group, {name: places[name] for name in spans}, changed)
