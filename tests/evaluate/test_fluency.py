"""Fluency of finished texts: distinct-n and loops by hand, likelihood against plain runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.test_effect import logp
from tests.model.tinies import lm_of
from trimtab.evaluate import fluency as module
from trimtab.evaluate.fluency import distinct, loops, nll

LLAMA, GPT2 = lm_of("llama", torch.float64), lm_of("gpt2", torch.float64)
ROWS = st.lists(st.integers(0, 3), max_size=20)


@given(ROWS, st.integers(1, 3))
def test_distinct_counts_different_n_grams(row, n):
    grams = list(zip(*(row[i:] for i in range(n)), strict=False))
    (found,) = distinct([row], n)
    if not grams:
        assert np.isnan(found)
    else:
        assert found == len(set(grams)) / len(grams)


@given(ROWS)
def test_loops_are_passages_three_times_in_a_row(row):
    """By brute force: every stretch that is some passage three times over."""
    inside = set()
    for start in range(len(row)):
        for period in range(1, len(row) // 3 + 1):
            once = row[start : start + period]
            if row[start : start + 3 * period] == once * 3:
                inside |= set(range(start, start + 3 * period))
    (found,) = loops([row])
    if not row:
        assert np.isnan(found)
    else:
        assert found * len(row) >= len(inside) - 1e-9
        assert (found == 0) == (not inside)


def test_loops_by_hand():
    found = loops([[1, 2, 1, 2], [1, 2, 1, 2, 1, 2], [7, 5, 5, 5, 8], [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]])
    np.testing.assert_allclose(found, [0, 1, 0.6, 0.9])
    assert loops([[1, 2] * 3], times=4)[0] == 0
    assert loops([[*range(20)] * 3], longest=16)[0] == 0


@pytest.mark.parametrize("lm", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_likelihood_is_that_of_a_plain_run(lm, monkeypatch):
    heads, tails = [[5, 6, 7], [9], [11, 12], [13, 14]], [[20, 21], [30, 31, 32, 33], [], [40]]
    told = []
    found = nll(lm, heads, tails, progress=lambda *n: told.append(n))
    assert told[-1] == (3, 3)
    for head, tail, value in zip(heads, tails, found, strict=True):
        if not tail:
            assert np.isnan(value)
            continue
        rows = logp(lm, head + tail, None)[len(head) - 1 : -1]
        wanted = -sum(float(rows[i, token]) for i, token in enumerate(tail)) / len(tail)
        assert value == pytest.approx(wanted, abs=1e-9)
    monkeypatch.setattr(module, "HELD", 1)
    np.testing.assert_allclose(nll(lm, heads, tails), found, atol=1e-9)
