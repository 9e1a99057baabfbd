"""Labelled texts: which label is the positive one, which texts are paired, and what the pairs ask.

Texts that begin alike are paired, each is used once, and a pair stays within its bucket. It knows no files and no
tokenizers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from trimtab.errors import TaskError, nearest
from trimtab.tasks.example import Contrast
from trimtab.tasks.groups import hashed, leak

Words = str | Sequence[str]
"""A word, or several."""
YES = ("1", "true", "yes", "positive", "pos")
NO = ("0", "false", "no", "negative", "neg", "-1")


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
            raise TaskError(leak(name, item.text, before.place, before.group, item.place, item.group))
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
        group = yes.group or no.group or hashed(f"{yes.text}\n{no.text}")
        asked = question.replace("{text}", (no if i % 2 else yes).text)
        words = {"question": asked, "answers": several(answers), "distractors": several(distractors)} if asked else {}
        examples.append((Contrast(yes.text, no.text, group, **words), yes.place))
    return examples


def several(words: Words) -> tuple[str, ...]:
    """Words as a tuple, also where there is one."""
    return (words,) if isinstance(words, str) else tuple(words)
