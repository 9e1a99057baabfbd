"""Pairs in one line: a text with slots `[this|that]` stands for two, so that one sees at a glance how they differ."""

from __future__ import annotations

import re

SLOT = re.compile(r"\[([^|\]]*)\|([^|\]]*)\]")


def sides(text: str) -> tuple[str, str]:
    """The text with the left word of every slot, and with the right word of every slot.

    >>> sides("The film was [a joy|a bore] and I [stayed|left].")
    ('The film was a joy and I stayed.', 'The film was a bore and I left.')
    """
    return SLOT.sub(r"\1", text), SLOT.sub(r"\2", text)
