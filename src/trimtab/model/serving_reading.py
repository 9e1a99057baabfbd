"""Prompts that are being read, together and in stretches, until their rows have a first token.

Rows beside each other in line that begin with the same prompt and the same edits, as the `n` answers of one request do,
are read once; each then goes on from a copy of the keys and values.

A condition is decided on all of a prompt, before the first token that it is to change. A prompt that is longer than a
stretch is therefore read more than once: first without the edits that wait for a condition, of which nothing is kept
but what the condition looks at, and then with what was decided. This knows nothing of queues, or of who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.model.kvcache import KVCache
from trimtab.model.rows import reading_steps
from trimtab.model.serving_batch import forward, installed
from trimtab.model.serving_row import Broken, Row, Token, picked

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that are read once, together: neighbours with the same prompt and edits."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row.prompt)]


class Stretches:
    """What these rows have said, padded on the left, read bit by bit into a `cache` of one row for each.

    Making one takes no memory of the device; reading does.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], *, most_rows: int, budget: int) -> None:
        self.lm, self.rows = lm, rows
        said = [row.said for row in rows]
        self.width = max(map(len, said))
        pads = [self.width - len(tokens) for tokens in said]
        self.cache = KVCache(lm.anatomy.n_layers, len(said), self.width + 1, most_rows=most_rows, budget=budget)
        self.cache.begin(pads)
        self.ids = [[0] * pad + tokens for pad, tokens in zip(pads, said, strict=True)]

    @property
    def left(self) -> int:
        """Columns that have not been read."""
        return self.width - self.cache.width

    def next(self, most: int) -> int:
        """How many columns a stretch of at most `most` tokens has."""
        return min(self.left, max(1, most // len(self.rows)))

    def on(self, columns: int) -> Float[Tensor, "row vocab"]:
        """Logits behind so many columns more; they count once the cache is told that it grew."""
        done = self.cache.width
        hooks = installed(self.lm, reading_steps([row.edits for row in self.rows], self.cache.pads))
        ids = torch.tensor([tokens[done : done + columns] for tokens in self.ids], device=self.lm.device)
        return forward(self.lm, ids, self.cache, 0, hooks, self.rows[0].prompts)


class Reading:
    """Rows whose prompts are being read, one of each group for all of it.

    Making one takes no memory of the device; reading does.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], *, most_rows: int, budget: int) -> None:
        self.lm, self.groups = lm, groups_of(rows)
        self._new = partial(Stretches, lm, most_rows=most_rows, budget=budget)
        self._whole = self._new([group[0] for group in self.groups])
        self._first: Stretches | None = None
        """Prompts that are read for the sake of conditions."""
        self.read_tokens = sum(len(group[0].said) for group in self.groups if group[0].fresh)
        """Tokens of the prompts of rows that have said nothing yet, once for each group."""

    @property
    def rows(self) -> list[Row]:
        """All rows, group by group."""
        return [row for group in self.groups for row in group]

    @property
    def cache(self) -> KVCache:
        """The keys and values that have been read, of one row for each group; those kept for a condition before."""
        return (self._first or self._whole).cache

    def read(self, most: int) -> list[Token | Broken] | None:
        """Read at most `most` tokens on; behind the last one, what each row says first. None before."""
        if self._first is None and self._whole.next(most) < self._whole.left:
            self._look()
        if self._first is not None:
            self._decide(self._first, most)
            return None
        columns = self._whole.next(most)
        logits, tokens = self._whole.on(columns), None
        if columns == self._whole.left:
            sizes = torch.tensor([len(group) for group in self.groups], device=logits.device)
            tokens = picked(self.rows, logits.repeat_interleave(sizes, 0))
            for group in self.groups:
                for row in group[1:]:
                    row.edits.follow(group[0].edits)
        self._whole.cache.grew(columns)
        return tokens

    def _look(self) -> None:
        """Read the prompts of rows with a condition that is to be decided first, where there are any."""
        rows = [row for row in self._whole.rows if row.edits.waiting and row.edits.error is None]
        for row in rows:
            row.edits.look()
        self._first = self._new(rows) if rows else None

    def _decide(self, first: Stretches, most: int) -> None:
        columns = first.next(most)
        first.on(columns)
        first.cache.grew(columns)
        if not first.left:
            self._first = None
            for row in first.rows:
                if row.edits.error is None:
                    row.edits.decide()

    def fork(self) -> list[Row]:
        """The rows that go on; from now on each of them has a row of the cache."""
        going = [[row for row in group if not row.ended] for group in self.groups]
        rows = [row for group in going for row in group]
        if rows:
            self.cache.fork([len(group) for group in going])
        return rows
