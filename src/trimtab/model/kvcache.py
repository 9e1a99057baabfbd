"""Keys and values of a batch whose rows come and go.

Every row ends in the same, newest column; shorter rows have padding before them. Buffers are larger than what is in
use, so a step writes its column in place, a row that joins is copied into free places, and columns that have become
padding for every row are left behind without a copy. Layers of a sliding window keep all columns too, so that rows of
any length can join: the model's mask, which is made for as many columns as it is shown, keeps to the window.

It knows nothing of requests, tokens or edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SLACK = 32
"""Columns beyond those that are needed, so that the window is moved back to the front once in a while only."""


class Layer(DynamicLayer):
    """One layer's keys and values, (row head column d_head) buffers; the model is shown the window in use."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.cache = cache
        self.stop = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the newest columns and give all of them."""
        rows, stop = len(key_states), self.stop + key_states.shape[2]
        if not self.is_initialized:
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
            self.is_initialized = True
        assert self.keys is not None
        assert self.values is not None
        self.keys[:rows, :, self.stop : stop] = key_states
        self.values[:rows, :, self.stop : stop] = value_states
        self.stop = stop
        return self.keys[:rows, :, self.cache.start : stop], self.values[:rows, :, self.cache.start : stop]

    def buffers(self) -> list[Tensor]:
        """Keys and values, where there are any."""
        return [buffer for buffer in (self.keys, self.values) if buffer is not None]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.stop - self.cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a pass over `query_length` new ones sees, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def _buffer(self, like: Tensor) -> Tensor:
        # zeros: a masked key or value of NaN would still be NaN times zero
        return like.new_zeros(self.cache.rows_room, like.shape[1], self.cache.columns_room, like.shape[3])


class KVCache:
    """The layers' buffers and the place of every row in them.

    `first` holds for each row the column of its first token; `stop` is the column behind the newest one. `rows` and
    `columns` say how large buffers are made at first; they grow to at most `most_rows` rows, and with a view to
    `budget`, rows times columns.
    """

    def __init__(self, n_layers: int, rows: int, columns: int, *, most_rows: int, budget: int) -> None:
        self.rows_room, self.columns_room = rows, columns
        self.most_rows, self.budget = most_rows, budget
        self.first: list[int] = []
        self.start = self.stop = 0
        self.layers = [Layer(self) for _ in range(n_layers)]
        self.hf = Cache(layers=list(self.layers))

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self.first)

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.stop - self.start

    @property
    def pads(self) -> list[int]:
        """The columns of padding before each row."""
        return [first - self.start for first in self.first]

    @property
    def tokens(self) -> int:
        """Rows times columns for which there is memory."""
        return self.rows_room * self.columns_room

    def begin(self, pads: Sequence[int]) -> None:
        """Rows without columns yet, of which the first ones will be padding; one row has none."""
        self.first = list(pads)

    def mask(self, new: int, device: torch.device) -> Int[Tensor, "row column"]:
        """1 where a row has a token, in the columns in use and `new` more."""
        columns = torch.arange(self.width + new, device=device)
        return (columns >= torch.tensor(self.pads, device=device)[:, None]).long()

    # A pass of the model
    # ---------------------------------------------------------------------------------------------------------

    def reserve(self, new: int, most: int) -> None:
        """Make room for `new` columns; no row will ever be wider than `most`."""
        if self.stop + new > self.columns_room:
            self._lay(*self._room(self.rows, self.width + new, most), stop=self.width)

    def grew(self, new: int) -> None:
        """A pass wrote `new` columns."""
        self.stop += new

    def roll_back(self) -> None:
        """A pass failed on the way: what it wrote in the first layers does not count."""
        for layer in self.layers:
            layer.stop = self.stop

    # Rows that come and go
    # ---------------------------------------------------------------------------------------------------------

    def join(self, other: KVCache, most: int) -> None:
        """Put the rows of another cache behind these, all ending in the same column."""
        n, k, width = self.rows, other.rows, max(self.width, other.width)
        if n + k > self.rows_room or width > self.stop:
            self._lay(*self._room(n + k, width, most), stop=width)
        start, own = self.stop - width, self.stop - other.width
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for to, source in zip(mine.buffers(), theirs.buffers(), strict=True):
                to[:n, :, start : self.start] = 0
                to[n : n + k, :, start:own] = 0
                to[n : n + k, :, own : self.stop] = source[:k, :, other.start : other.stop]
        self.first += [first + self.stop - other.stop for first in other.first]
        self.start = start

    def leave(self, gone: Sequence[int]) -> list[int]:
        """Rows go; the last ones take their places. Gives the former numbers of those that stay, in their new order."""
        order = list(range(self.rows))
        for row in sorted(gone, reverse=True):
            order[row] = order[-1]
            order.pop()
        for row, source in enumerate(order):
            if row != source:
                for layer in self.layers:
                    for buffer in layer.buffers():
                        buffer[row, :, self.start : self.stop] = buffer[source, :, self.start : self.stop]
        self.first = [self.first[row] for row in order]
        self.start = min(self.first, default=self.stop)
        return order

    def _room(self, rows: int, columns: int, most: int) -> tuple[int, int]:
        """Rows and columns of buffers for so many: more of them where memory allows, to be moved less often."""
        if rows <= self.rows_room and columns + SLACK <= self.columns_room:
            return self.rows_room, self.columns_room
        columns = max(columns, min(most, columns * 3 // 2, self.budget // rows)) + SLACK
        more = min(self.most_rows, 1 << (rows - 1).bit_length())
        return (more if more * columns <= self.budget else rows), columns

    def _lay(self, rows: int, columns: int, *, stop: int) -> None:
        """Put the window into buffers of this size (the same ones where they are), so that it ends at `stop`."""
        same = (rows, columns) == (self.rows_room, self.columns_room)
        start = stop - self.width
        for layer in self.layers:
            made = []
            for old in layer.buffers():
                part = old[: self.rows, :, self.start : self.stop]
                new = old if same else old.new_zeros(rows, old.shape[1], columns, old.shape[3])
                new[: self.rows, :, start:stop] = part.clone() if same else part
                made.append(new)
            if made:
                layer.keys, layer.values = made
            layer.stop = stop
        self.first = [first + stop - self.stop for first in self.first]
        self.rows_room, self.columns_room, self.start, self.stop = rows, columns, start, stop
