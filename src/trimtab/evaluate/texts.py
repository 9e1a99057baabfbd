"""The text on which side effects are measured: neutral passages and an unrelated capability set, shipped with the
package.

Both were written for this purpose, so that no model has seen them: passages of many kinds (a recipe, minutes, a
manual, …), and short items with one right and one wrong next word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Int

from trimtab.errors import TrimtabError

PASSAGES, ITEMS = 8, 64
"""Neutral passages and capability items to search by, where none are given."""


@dataclass(frozen=True)
class Passage:
    """A neutral text and what kind of text it is."""

    source: str
    text: str


@dataclass(frozen=True)
class Item:
    """A prompt with the right next word and a wrong one."""

    prompt: str
    answer: str
    distractor: str
    kind: str


@cache
def neutral() -> tuple[Passage, ...]:
    """All neutral passages, each of its own source."""
    return tuple(Passage(**row) for row in _rows("neutral.jsonl"))


def capability(which: str | None = None, share: float = 0.25, seed: int = 0) -> tuple[Item, ...]:
    """The items of the capability set: all, or those to choose an intervention by ("search") or to judge it by
    ("test").

    Most items have a mirror that asks for the same two words the other way round: items of one kind and the same two
    words are in the same part. Both parts have items of every kind.
    """
    items = _items()
    if which is None:
        return items
    chosen: set[tuple[str, ...]] = set()
    for kind in dict.fromkeys(item.kind for item in items):
        words = list(dict.fromkeys(_words(item) for item in items if item.kind == kind))
        chosen |= {words[i] for i in _part(len(words), which, share, seed, "the capability set")}
    return tuple(item for item in items if _words(item) in chosen)


def part(which: str, share: float = 0.3, seed: int = 0) -> tuple[Passage, ...]:
    """The passages to choose an intervention on ("search") or to judge it on ("test"), of different sources."""
    passages = neutral()
    return tuple(passages[i] for i in _part(len(passages), which, share, seed, "the neutral text"))


def search_passages(given: Sequence[Passage] | None = None) -> Sequence[Passage]:
    """The passages that were given, by default the first 8 of those to choose an intervention on."""
    return part("search")[:PASSAGES] if given is None else given


def search_items(given: Sequence[Item] | None = None, seed: int = 0) -> Sequence[Item]:
    """The items that were given, by default 64, at random, of those to choose an intervention by."""
    return some(capability("search"), ITEMS, seed) if given is None else given


def some(items: Sequence[Item], most: int, seed: int = 0) -> tuple[Item, ...]:
    """At most so many items, at random."""
    order = np.random.default_rng(seed).permutation(len(items))[:most]
    return tuple(items[i] for i in sorted(order))


@cache
def _items() -> tuple[Item, ...]:
    return tuple(Item(**row) for row in _rows("capability.jsonl"))


def _words(item: Item) -> tuple[str, ...]:
    """What an item and its mirror have in common."""
    return (item.kind, *sorted((item.answer, item.distractor)))


def _part(number: int, which: str, share: float, seed: int, of: str) -> Int[np.ndarray, "chosen"]:
    """Which of so many are in a part, at random; the search has `share` of them."""
    order = np.random.default_rng(seed).permutation(number)
    cut = round(share * number)
    parts = {"search": order[:cut], "test": order[cut:]}
    if which not in parts:
        raise TrimtabError(f'the parts of {of} are "search" and "test", got {which!r}')
    return parts[which]


def _rows(name: str) -> list[dict[str, str]]:
    text = files("trimtab.evaluate").joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]
