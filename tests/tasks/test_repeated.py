"""Repeated random tokens: what is drawn, and the null that repeats nothing."""

from __future__ import annotations

import pytest

from tests.model.tinies import lm_of
from trimtab.errors import TaskError
from trimtab.tasks.repeated import RepeatedTokens, vocabulary

LM = lm_of("llama")


def test_each_round_is_the_first_one_and_the_null_repeats_nothing():
    given = RepeatedTokens(length=9, times=3, sequences=4)
    rows = given.prompts(LM).ids.tolist()
    assert len(rows) == len(given) == len(given.groups) == 4
    nulls = given.unrelated(LM).ids.tolist()
    for row, null in zip(rows, nulls, strict=True):
        assert row == row[:9] * 3
        assert len(set(row)) == 9
        assert null[:9] == row[:9]
        assert len(set(null)) == len(null) == 27
        assert min(null) >= 3, "special tokens are left out"
    assert rows[0] != rows[1]


def test_the_seed_decides_and_sequences_do_not_depend_on_how_many_there_are():
    one, more = (RepeatedTokens(length=5, sequences=n).prompts(LM).ids.tolist() for n in (2, 6))
    assert more[:2] == one
    assert RepeatedTokens(length=5, sequences=2, seed=1).prompts(LM).ids.tolist() != one


def test_a_bos_is_put_where_asked_for():
    assert RepeatedTokens(length=4, bos=True).prompts(LM).ids[:, 0].tolist() == [1] * 16
    plain = RepeatedTokens(length=4).prompts(LM)
    assert plain.width == 8
    assert "prepended" not in plain.bos


def test_too_few_tokens_and_wrong_numbers_are_refused():
    assert len(vocabulary(LM)) == 94
    with pytest.raises(TaskError, match="at most 47"):
        RepeatedTokens(length=48).prompts(LM)
    with pytest.raises(TaskError, match="at least 2"):
        RepeatedTokens(times=1)
