"""The cache of a batch that comes and goes, against a list of rows that are kept apart."""

from __future__ import annotations

import random

import pytest
import torch

from trimtab.model.kvcache import KVCache

HEADS, WIDTH, LAYERS = 2, 3, 2


class Naive:
    """One cache and, beside it, each row's keys on their own."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = None
        self.rows = []

    def write(self, cache, new, rows):
        """One pass over `new` columns of all rows; gives what each layer is shown."""
        shown = []
        start = cache.width
        for number, layer in enumerate(cache.layers):
            keys = torch.randn(cache.rows, HEADS, new, WIDTH, generator=self.generator)
            assert layer.get_seq_length() == start
            assert layer.get_mask_sizes(new) == (start + new, 0)
            shown.append(cache.hf.update(keys, -keys, number)[0])
            for row, pad, part in zip(rows, cache.pads, keys, strict=True):
                real = part[:, max(0, pad - start) :]
                row[number] = torch.cat([row[number], real], 1)
        cache.grew(new)
        return shown

    def join(self, lengths):
        rows = [[torch.zeros(HEADS, 0, WIDTH) for _ in range(LAYERS)] for _ in lengths]
        width = max(lengths)
        made = KVCache(LAYERS, len(lengths), width + 1, most_rows=6, budget=200)
        made.begin([width - length for length in lengths])
        for new in (width // 2, width - width // 2):
            if new:
                self.write(made, new, rows)
        if self.cache is None:
            self.cache = made
        else:
            self.cache.join(made, 40)
        self.rows += rows

    def leave(self, gone):
        order = self.cache.leave(gone)
        assert sorted(order) == [n for n in range(len(self.rows)) if n not in gone]
        self.rows = [self.rows[n] for n in order]
        if not self.rows:
            self.cache = None

    def step(self):
        self.cache.reserve(1, 40)
        return self.write(self.cache, 1, self.rows)

    def check(self, shown):
        cache = self.cache
        lengths = [row[0].shape[1] for row in self.rows]
        assert cache.width == max(lengths), "columns that are padding for every row are trimmed"
        assert cache.pads == [cache.width - length for length in lengths]
        expected = torch.tensor([[column >= pad for column in range(cache.width + 2)] for pad in cache.pads]).long()
        assert torch.equal(cache.mask(2, torch.device("cpu")), expected)
        for number, keys in enumerate(shown):
            assert keys.shape == (len(self.rows), HEADS, cache.width, WIDTH)
            assert torch.isfinite(keys).all()
            for row, pad, part in zip(self.rows, cache.pads, keys, strict=True):
                assert torch.equal(part[:, pad:], row[number])
        for layer in cache.layers:
            assert torch.equal(
                layer.values[: cache.rows, :, cache.start : cache.stop], -shown[cache.layers.index(layer)]
            )


@pytest.mark.parametrize("seed", range(12))
def test_rows_come_and_go_and_keep_their_keys(seed):
    naive = Naive(seed)
    draw = naive.random
    for _ in range(60):
        if naive.cache is None or (len(naive.rows) < 6 and draw.random() < 0.25):
            room = 6 - len(naive.rows)
            naive.join([draw.randint(1, 9) for _ in range(draw.randint(1, min(3, room)))])
        naive.check(naive.step())
        gone = [n for n, row in enumerate(naive.rows) if draw.random() < 0.08 or row[0].shape[1] >= 39]
        if gone:
            naive.leave(gone)


def test_a_pass_that_failed_is_made_again():
    naive = Naive(0)
    naive.join([3, 5])
    cache = naive.cache
    cache.reserve(1, 40)
    cache.hf.update(torch.full((2, HEADS, 1, WIDTH), torch.nan), torch.full((2, HEADS, 1, WIDTH), torch.nan), 0)
    cache.roll_back()
    naive.check(naive.step())


def test_places_of_rows_that_left_are_clean():
    """A masked NaN is a NaN all the same."""
    naive = Naive(1)
    naive.join([4, 2])
    naive.step()
    for layer in naive.cache.layers:
        layer.keys[1], layer.values[1] = torch.nan, torch.nan
    naive.leave([1])
    naive.join([2])
    naive.check(naive.step())
    naive.join([9])
    naive.check(naive.step())


def test_buffers_grow_with_what_is_in_them():
    naive = Naive(2)
    naive.join([3])
    sizes = set()
    for _ in range(36):
        naive.step()
        sizes.add((naive.cache.rows_room, naive.cache.columns_room))
        assert naive.cache.columns_room <= 40 + 32
    assert len(sizes) <= 3, "columns are added many at a time"
    for _ in range(5):
        naive.join([2])
    naive.check(naive.step())
    assert naive.cache.rows_room == 6
