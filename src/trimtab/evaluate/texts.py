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

from trimtab.errors import TrimtabError


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


@cache
def capability() -> tuple[Item, ...]:
    """All items of the capability set."""
    return tuple(Item(**row) for row in _rows("capability.jsonl"))


def part(which: str, share: float = 0.3, seed: int = 0) -> tuple[Passage, ...]:
    """The passages to choose an intervention on ("search") or to judge it on ("test"), of different sources."""
    passages = neutral()
    order = np.random.default_rng(seed).permutation(len(passages))
    cut = round(share * len(passages))
    chosen = {"search": order[:cut], "test": order[cut:]}
    if which not in chosen:
        raise TrimtabError(f'the parts of the neutral text are "search" and "test", got {which!r}')
    return tuple(passages[i] for i in chosen[which])


def some(items: Sequence[Item], most: int, seed: int = 0) -> tuple[Item, ...]:
    """At most so many items, at random."""
    order = np.random.default_rng(seed).permutation(len(items))[:most]
    return tuple(items[i] for i in sorted(order))


def _rows(name: str) -> list[dict[str, str]]:
    text = files("trimtab.evaluate").joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]
