"""Text as a page shows it: settings, code that is not broken at hyphens, and two continuations word by word."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter

from trimtab.figures.numbers import NONE

Parts = list[tuple[str, bool]]
"""A text in parts, each with whether it differs."""


def setting(value: object) -> str:
    """A setting as it is written in a configuration; a float that is no number as a dash.

    >>> setting({"limit": 0.05, "kinds": ("head", "neuron"), "seed": None, "chat": False})
    'limit: 0.05, kinds: head, neuron, seed: none, chat: no'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {setting(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value) or "none"
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    return NONE if isinstance(value, float) and not math.isfinite(value) else str(value)


def words(text: str) -> list[str]:
    """Words and the white space between them, so that code is not broken at a hyphen."""
    return re.split(r"(\s+)", text)


def without_nan(text: str) -> str:
    """A sentence in which numbers that are none were written out.

    >>> without_nan("It moves by +nan [nan, -inf] logits; Nan's flat is in Infinity Road.")
    "It moves by – [–, –] logits; Nan's flat is in Infinity Road."
    """
    return re.sub(r"(?<![\w'])[+\-−]?(?:nan|inf)(?![\w'-])", NONE, text)


def differences(before: str, after: str) -> tuple[Parts, Parts]:
    """Both texts in parts, each with whether it differs from the other text: word by word, where two words or more in
    a row (or the beginning, or the end) must agree to count as the same.

    >>> differences("It was bad.", "It was great.")[1]
    [('It was ', False), ('great', True), ('.', False)]
    """
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    sides: tuple[Parts, Parts] = ([], [])
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        edge = (a, c) == (0, 0) or (b, d) == (len(old), len(new))
        same = kind == "equal" and (edge or sum(word[0].isalnum() for word in old[a:b]) >= 2)
        for side, words in zip(sides, ("".join(old[a:b]), "".join(new[c:d])), strict=True):
            if words:
                side.append((words, not same))
    return _joined(sides[0]), _joined(sides[1])


def _joined(parts: Parts) -> Parts:
    """Neighbours of one kind as one part; the white space around what differs is no part of it."""
    merged = [("".join(text for text, _ in group), differs) for differs, group in groupby(parts, key=itemgetter(1))]
    apart = [
        (text, differs and bool(text.strip()))
        for words, differs in merged
        for text in (re.split(r"(^\s+|\s+$)", words) if differs else [words])
        if text
    ]
    return [("".join(text for text, _ in group), differs) for differs, group in groupby(apart, key=itemgetter(1))]
