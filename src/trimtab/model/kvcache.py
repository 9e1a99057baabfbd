"""Keys and values of a batch whose rows come and go.

Every row ends in the same, newest column; shorter rows have padding before them. Buffers are larger than what is in
use, so a step writes its column in place, a row that joins is copied into free places, and columns that have become
padding for every row are left behind without a copy. Layers of a sliding window keep all columns too, so that rows of
any length can join: the model's mask, which is made for as many columns as it is shown, keeps to the window.

What a pass writes counts once it is told that it `grew`, so a pass that failed is simply made again, and over fewer
rows at a time where it must be. Layers are moved one by one, each of them whole or not at all: where memory runs out on
the way, the rows are as they were. Nothing here refers to itself in a circle, so the memory of a cache is free at the
moment at which nobody has it any more. It knows nothing of requests, tokens or edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from trimtab.model.memory import out_of_memory

SLACK = 32
"""Columns beyond those that are needed, so that the window is moved back to the front once in a while only."""


@dataclass
class Window:
    """What all layers have in common: `pads`, the columns of padding before each row, `width`, the columns in use, and
    `shown`, the rows that the next pass is over."""

    pads: list[int] = field(default_factory=list)
    width: int = 0
    shown: slice = field(default_factory=lambda: slice(0, 0))


class Layer(DynamicLayer):
    """One layer's keys and values: buffers (row head column d_head) with room for `rows` and `columns`.

    The columns in use begin at `start`; the model is shown these, of the rows that its pass is over.
    """

    def __init__(self, window: Window, rows: int, columns: int) -> None:
        super().__init__()
        self.window, self.rows, self.columns = window, rows, columns
        self.start = 0

    @property
    def stop(self) -> int:
        """The column behind the newest one."""
        return self.start + self.window.width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the newest columns and give all of them."""
        rows, stop = self.window.shown, self.stop + key_states.shape[2]
        if not self.is_initialized:
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
            self.is_initialized = True
        assert self.keys is not None
        assert self.values is not None
        self.keys[rows, :, self.stop : stop] = key_states
        self.values[rows, :, self.stop : stop] = value_states
        return self.keys[rows, :, self.start : stop], self.values[rows, :, self.start : stop]

    def move(self, rows: int, columns: int, stop: int) -> None:
        """Put the columns in use into buffers of this size (the same ones where they are), so that they end at `stop`.

        Where memory runs out, nothing has been done.
        """
        used, start = len(self.window.pads), stop - self.window.width
        old = self.buffers()
        parts = [buffer[:used, :, self.start : self.stop] for buffer in old]
        if (rows, columns) == (self.rows, self.columns):
            new, parts = old, [part.clone() for part in parts]  # the two places may overlap
        else:
            new = [buffer.new_zeros(rows, buffer.shape[1], columns, buffer.shape[3]) for buffer in old]
        for buffer, part in zip(new, parts, strict=True):
            buffer[:used, :, start:stop] = part
        self._set(new, rows, columns)
        self.start = start

    def fork(self, times: Sequence[int]) -> None:
        """Row i becomes times[i] rows, beside each other."""
        old = self.buffers()
        counts = torch.tensor(times, device=old[0].device if old else None)
        self._set([buffer[: len(times)].repeat_interleave(counts, 0) for buffer in old], sum(times), self.columns)

    def buffers(self) -> list[Tensor]:
        """Keys and values, where there are any."""
        return [buffer for buffer in (self.keys, self.values) if buffer is not None]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.window.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a pass over `query_length` new ones sees, and the first of them."""
        return self.window.width + query_length, 0

    def _buffer(self, like: Tensor) -> Tensor:
        # zeros: a masked key or value of NaN would still be NaN times zero
        return like.new_zeros(self.rows, like.shape[1], self.columns, like.shape[3])

    def _set(self, buffers: Sequence[Tensor], rows: int, columns: int) -> None:
        if buffers:
            self.keys, self.values = buffers
        self.rows, self.columns = rows, columns


class KVCache:
    """The layers' buffers and the place of every row in them.

    `rows` and `columns` say how large buffers are made at first; they grow to at most `most_rows` rows, and with a view
    to `budget`, rows times columns.
    """

    def __init__(self, n_layers: int, rows: int, columns: int, *, most_rows: int, budget: int) -> None:
        self.most_rows, self.budget = most_rows, budget
        self.window = Window()
        self.layers = [Layer(self.window, rows, columns) for _ in range(n_layers)]
        self.hf = Cache(layers=list(self.layers))

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self.pads)

    @property
    def pads(self) -> list[int]:
        """The columns of padding before each row."""
        return self.window.pads

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.window.width

    @property
    def tokens(self) -> int:
        """Rows times columns for which there is memory."""
        return max(layer.rows * layer.columns for layer in self.layers)

    def begin(self, pads: Sequence[int]) -> None:
        """Rows without columns yet, of which the first ones will be padding; one row has none."""
        self.window.pads = list(pads)

    def show(self, rows: slice) -> None:
        """The next pass is over these rows."""
        self.window.shown = rows

    def mask(self, new: int, device: torch.device) -> Int[Tensor, "row column"]:
        """1 where a row that is shown has a token, in the columns in use and `new` more."""
        columns = torch.arange(self.width + new, device=device)
        return (columns >= torch.tensor(self.pads[self.window.shown], device=device)[:, None]).long()

    def reserve(self, new: int, most: int) -> None:
        """Make room for `new` columns; no row will ever be wider than `most`."""
        for layer in self.layers:
            if layer.stop + new > layer.columns:
                self._move(layer, self.rows, self.width + new, most, self.width)

    def grew(self, new: int) -> None:
        """Passes over all rows have written `new` columns."""
        self.window.width += new

    # Rows that come and go
    # ---------------------------------------------------------------------------------------------------------

    def join(self, other: KVCache, most: int) -> None:
        """Put the rows of another cache behind these, all ending in the same column."""
        n, k, width = self.rows, other.rows, max(self.width, other.width)
        for layer in self.layers:
            if n + k > layer.rows or width > layer.stop:
                self._move(layer, n + k, width, most, width)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            start, own, stop = mine.stop - width, mine.stop - other.width, mine.stop
            for to, source in zip(mine.buffers(), theirs.buffers(), strict=True):
                to[:n, :, start : mine.start] = 0
                to[n : n + k, :, start:own] = 0
                to[n : n + k, :, own:stop] = source[:k, :, theirs.start : theirs.stop]
        self.window.pads += [pad + self.width - other.width for pad in other.pads]
        self._widen(width - self.width)

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
                        buffer[row, :, layer.start : layer.stop] = buffer[source, :, layer.start : layer.stop]
        self.window.pads = [self.pads[row] for row in order]
        self._widen(-min(self.pads, default=self.width))
        return order

    def fork(self, times: Sequence[int]) -> None:
        """Row i becomes times[i] rows, beside each other, that go on from the same tokens; where it is 0, row i goes.

        Where memory runs out on the way, the cache is of no more use.
        """
        if all(count == 1 for count in times):
            return
        for layer in self.layers:
            layer.fork(times)
        self.window.pads = [pad for pad, count in zip(self.pads, times, strict=True) for _ in range(count)]
        self._widen(-min(self.pads, default=self.width))

    def _widen(self, columns: int) -> None:
        """So many columns more are in use before the others; fewer where it is below 0."""
        self.window.pads = [pad + columns for pad in self.pads]
        self.window.width += columns
        for layer in self.layers:
            layer.start -= columns

    def _move(self, layer: Layer, rows: int, columns: int, most: int, stop: int) -> None:
        """Put a layer into buffers for so many rows and columns, in use up to `stop`: into larger ones than these need
        where there is memory for them, else into those that they need."""
        size, least = self._room(layer, rows, columns, most), (rows, columns + SLACK)
        try:
            layer.move(*size, stop)
        except Exception as error:
            if size == least or not out_of_memory(error):
                raise
        else:
            return
        layer.move(*least, stop)  # here the error is gone, and with it what had been made

    def _room(self, layer: Layer, rows: int, columns: int, most: int) -> tuple[int, int]:
        """Rows and columns of buffers for so many: more of them where memory allows, to be moved less often."""
        if rows <= layer.rows and columns + SLACK <= layer.columns:
            return layer.rows, layer.columns
        columns = max(columns, min(most, columns * 3 // 2, self.budget // rows)) + SLACK
        more = min(self.most_rows, 1 << (rows - 1).bit_length())
        return (more if more * columns <= self.budget else rows), columns
