"""The cache of a batch that comes and goes, against a list of rows that are kept apart."""

from __future__ import annotations

import gc
import random
import weakref
from itertools import pairwise

import pytest
import torch

from trimtab.model.kvcache import KVCache, Layer

HEADS, WIDTH, LAYERS = 2, 3, 2


class Naive:
    """One cache and, beside it, each row's keys on their own."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = None
        self.rows = []

    def write(self, cache, new, rows):
        """`new` columns of all rows, in passes over one row or more; gives what the layers are shown, row by row."""
        cuts = sorted(self.random.sample(range(1, cache.rows), self.random.randint(0, cache.rows - 1)))
        shown = [[] for _ in cache.layers]
        for first, last in pairwise([0, *cuts, cache.rows]):
            for number, part in enumerate(self.one_pass(cache, slice(first, last), new, rows)):
                shown[number] += part
        cache.grew(new)
        return [torch.stack(part) for part in shown]

    def one_pass(self, cache, over, new, rows):
        start = cache.width
        cache.show(over)
        assert len(cache.mask(new, torch.device("cpu"))) == len(rows[over])
        shown = []
        for number, layer in enumerate(cache.layers):
            keys = torch.randn(len(rows[over]), HEADS, new, WIDTH, generator=self.generator)
            assert layer.get_seq_length() == start
            assert layer.get_mask_sizes(new) == (start + new, 0)
            shown.append(cache.hf.update(keys, -keys, number)[0])
            for row, pad, part in zip(rows[over], cache.pads[over], keys, strict=True):
                real = part[:, max(0, pad - start) :]
                row[number] = torch.cat([row[number], real], 1)
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
        cache.show(slice(0, cache.rows))
        expected = torch.tensor([[column >= pad for column in range(cache.width + 2)] for pad in cache.pads]).long()
        assert torch.equal(cache.mask(2, torch.device("cpu")), expected)
        for number, keys in enumerate(shown):
            assert keys.shape == (len(self.rows), HEADS, cache.width, WIDTH)
            assert torch.isfinite(keys).all()
            for row, pad, part in zip(self.rows, cache.pads, keys, strict=True):
                assert torch.equal(part[:, pad:], row[number])
        for layer, keys in zip(cache.layers, shown, strict=True):
            assert torch.equal(layer.values[: cache.rows, :, layer.start : layer.stop], -keys)


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
    cache.show(slice(0, 2))
    cache.hf.update(torch.full((2, HEADS, 1, WIDTH), torch.nan), torch.full((2, HEADS, 1, WIDTH), torch.nan), 0)
    naive.check(naive.step())


@pytest.mark.parametrize("what", ["reserve", "join"])
@pytest.mark.parametrize("moved", range(LAYERS))
def test_where_memory_runs_out_the_rows_are_as_they_were(monkeypatch, what, moved):
    """Also where some layers had been moved already."""
    naive, whole, left = Naive(3), Layer.move, [moved]
    naive.join([3, 5])
    naive.step()

    def move(layer, *args):
        if not left[0]:
            raise MemoryError
        left[0] -= 1
        whole(layer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Layer, "move", move)
        with pytest.raises(MemoryError):
            naive.cache.reserve(30, 40) if what == "reserve" else naive.join([39])
    for _ in range(40):
        naive.check(naive.step())
    naive.join([2, 9])
    naive.check(naive.step())


def test_a_move_is_whole_or_not_at_all(monkeypatch):
    """There is memory for the keys, and none for the values."""
    naive = Naive(4)
    naive.join([3, 5])
    naive.step()
    layer = naive.cache.layers[0]
    clone, zeros, left = torch.Tensor.clone, torch.Tensor.new_zeros, []

    def once(real):
        def made(*args, **options):
            if left.pop():
                raise MemoryError
            return real(*args, **options)

        return made

    for size in ((layer.rows, layer.columns), (layer.rows + 1, layer.columns + 1)):
        left[:] = [True, False]
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "clone", once(clone))
            patch.setattr(torch.Tensor, "new_zeros", once(zeros))
            with pytest.raises(MemoryError):
                layer.move(*size, naive.cache.width)
    naive.check(naive.step())


@pytest.mark.parametrize("times", [[1, 1], [3, 1], [1, 2], [2, 2], [0, 3], [2, 0]])
def test_rows_that_have_read_the_same(times):
    naive = Naive(5)
    naive.join([7, 4])
    naive.cache.fork(times)
    naive.rows = [list(row) for row, count in zip(naive.rows, times, strict=True) for _ in range(count)]
    naive.check(naive.step())
    naive.join([9, 1])
    naive.check(naive.step())
    naive.leave([0])
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


def test_memory_is_free_when_nobody_has_the_cache_any_more():
    """Without waiting for the garbage collector, which may come late: buffers can be large."""
    naive = Naive(6)
    gc.disable()
    try:
        for _ in range(2):
            naive.join([3, 5])
            naive.step()
            held = [weakref.ref(buffer) for layer in naive.cache.layers for buffer in layer.buffers()]
            naive.leave([0, 1])
        assert len(held) == 2 * LAYERS
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_buffers_grow_with_what_is_in_them():
    naive = Naive(2)
    naive.join([3])
    sizes = set()
    for _ in range(36):
        naive.step()
        sizes |= {(layer.rows, layer.columns) for layer in naive.cache.layers}
        assert naive.cache.layers[0].columns <= 40 + 32
    assert len(sizes) <= 3, "columns are added many at a time"
    for _ in range(5):
        naive.join([2])
    naive.check(naive.step())
    assert {layer.rows for layer in naive.cache.layers} == {6}
    assert naive.cache.tokens == 6 * max(layer.columns for layer in naive.cache.layers)
