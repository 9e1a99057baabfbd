"""Intervals of shares: widths where all or none count, and 95 % of them hold the share they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.values.shares import share_interval, share_of


def of(hits, n, size=1):
    """`hits` ones before zeros, in groups of `size`."""
    return share_of((np.arange(n) < hits).astype(float), [i // size for i in range(n)])


@pytest.mark.parametrize("n", [4, 12, 48])
def test_none_and_all_have_a_width(n):
    reach = 1 - 0.025 ** (1 / n)
    none, every = of(0, n), of(n, n)
    assert (none.mean, none.low, none.high) == (0.0, 0.0, pytest.approx(reach))
    assert (every.mean, every.low, every.high) == (1.0, pytest.approx(1 - reach), 1.0)
    assert share_of(np.zeros(n)).high == none.high


def test_where_none_counts_a_group_is_a_single_draw():
    assert of(0, 48, 4).high == pytest.approx(share_interval(0, 12)[1])
    uneven = share_of(np.zeros(4), ("a", "a", "a", "b"))
    assert uneven.high == pytest.approx(share_interval(0, 16 / 10)[1])


@pytest.mark.parametrize(("hits", "size"), [(1, 1), (4, 1), (6, 2), (24, 4), (47, 1)])
def test_between_it_holds_the_share_and_is_never_narrower_than_of_independent_examples(hits, size):
    found, alone = of(hits, 48, size), share_interval(hits, 48)
    assert 0 <= found.low <= alone[0] < hits / 48 < alone[1] <= found.high <= 1


def test_examples_that_say_the_same_by_groups_count_as_few():
    together, apart = of(16, 48, 4), share_of(np.tile([1.0, 0, 0], 16), [i // 3 for i in range(48)])
    assert together.high - together.low > 1.4 * (apart.high - apart.low)
    assert (apart.low, apart.high) == pytest.approx(share_interval(16, 48))  # every group has one, which may be luck


@pytest.mark.parametrize("size", [1, 2, 4])
def test_one_more_never_speaks_for_fewer(size):
    ends = [of(hits, 48, size) for hits in (0, 1, 2)]
    assert ends[0].high <= ends[1].high <= ends[2].high
    turned = [of(48 - hits, 48, size) for hits in (0, 1, 2)]
    assert [found.low for found in turned] == pytest.approx([1 - found.high for found in ends])


@pytest.mark.parametrize("within", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_the_interval_holds_the_share_it_was_drawn_from(share, within):
    """Twelve groups of four, whose examples are the group's own draw with probability `within`: 300 times."""
    rng, groups = np.random.default_rng(0), [i // 4 for i in range(48)]
    held = 0
    for _ in range(300):
        group, alone = rng.random((12, 1)) < share, rng.random((12, 4)) < share
        found = share_of(np.where(rng.random((12, 4)) < within, group, alone).astype(float).ravel(), groups)
        held += found.low <= share <= found.high
    assert held >= 0.93 * 300


def test_what_is_missing_counts_on_no_side():
    found = share_of(np.array([1.0, 0.0, np.nan]), ("a", "b", "c"))
    assert (found.mean, found.n) == (0.5, 2)
    assert (found.low, found.high) == pytest.approx(share_interval(1, 2))


def test_one_group_has_no_interval():
    for found in (share_of(np.ones(3), ("a",) * 3), share_of(np.array([np.nan]))):
        assert math.isnan(found.low)
        assert math.isnan(found.high)
