"""Prompts that are being read, together and in stretches, until their rows have a first token.

Rows beside each other in line that begin with the same prompt and the same edits, as the `n` answers of one request do,
are read once; each then goes on from a copy of the keys and values. It knows nothing of queues, or of who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from trimtab.model.kvcache import KVCache
from trimtab.model.rows import reading_steps
from trimtab.model.serving_batch import forward, installed
from trimtab.model.serving_row import Broken, Row, Token, picked

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that are read once, together: neighbours with the same prompt and edits."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row.prompt)]


class Reading:
    """Rows whose prompts are being read: `cache` and `ids` have one row for each group, padded on the left.

    Making one takes no memory of the device; reading does.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], *, most_rows: int, budget: int) -> None:
        self.lm, self.groups = lm, groups_of(rows)
        said = [group[0].said for group in self.groups]
        self.width = max(map(len, said))
        pads = [self.width - len(tokens) for tokens in said]
        self.cache = KVCache(lm.anatomy.n_layers, len(said), self.width + 1, most_rows=most_rows, budget=budget)
        self.cache.begin(pads)
        self.ids = [[0] * pad + tokens for pad, tokens in zip(pads, said, strict=True)]
        self.read_tokens = sum(len(group[0].said) for group in self.groups if group[0].fresh)
        """Tokens of the prompts of rows that have said nothing yet, once for each group."""

    @property
    def rows(self) -> list[Row]:
        """All rows, group by group."""
        return [row for group in self.groups for row in group]

    def read(self, most: int) -> list[Token | Broken] | None:
        """Read at most `most` tokens on; behind the last one, what each row says first. None before."""
        first, done = [group[0] for group in self.groups], self.cache.width
        left = self.width - done
        if not any(row.edits.whole for row in first):  # a condition is decided on the whole prompt
            left = min(left, max(1, most // len(first)))
        hooks = installed(self.lm, reading_steps([row.edits for row in first], self.cache.pads))
        ids = torch.tensor([tokens[done : done + left] for tokens in self.ids], device=self.lm.device)
        logits = forward(self.lm, ids, self.cache, 0, hooks, first[0].prompts)
        tokens = None
        if done + left == self.width:
            sizes = torch.tensor([len(group) for group in self.groups], device=logits.device)
            tokens = picked(self.rows, logits.repeat_interleave(sizes, 0))
            for group in self.groups:
                for row in group[1:]:
                    row.edits.follow(group[0].edits)
        self.cache.grew(left)
        return tokens

    def fork(self) -> list[Row]:
        """The rows that go on; from now on each of them has a row of the cache."""
        going = [[row for row in group if not row.ended] for group in self.groups]
        rows = [row for group in going for row in group]
        if rows:
            self.cache.fork([len(group) for group in going])
        return rows
