"""Propensity: slopes and shares by hand, and on a model the numbers of plain runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.evaluate.test_effect import single
from tests.evaluate.tinies import bare, continuations, questions
from tests.model.tinies import lm_of
from trimtab.errors import TaskError, TrimtabError
from trimtab.evaluate.propensity import propensity
from trimtab.steer.amplitude import scale
from trimtab.values.edit import Edit, Intervention
from trimtab.values.propensity import Propensity, share_below, slopes

LM = lm_of("llama", torch.float64)
TOWARDS = (LM.anatomy.unembed.weight[70] - LM.anatomy.unembed.weight[71]).detach().numpy()
PUSH = Intervention.of(Edit("L1.resid_post@-1", "add", TOWARDS))


def made(values, coefficients=(-1.0, 0.0, 1.0)):
    values = np.array(values, dtype=float).T
    return Propensity(coefficients, values, "nat", tuple(f"g{i}" for i in range(values.shape[1])))


def test_slopes_and_shares_by_hand():
    """Two examples that rise by 2 and 1 for each unit, one that falls by 3, one that stays."""
    found = made([[-2, 0, 2], [4, 5, 6], [3, 0, -3], [1, 1, 1]])
    np.testing.assert_allclose(found.slopes, [2, 1, -3, 0])
    assert found.steerability.mean == pytest.approx(0.0)
    assert found.anti_steerable.mean == pytest.approx(0.25)
    assert 0 <= found.anti_steerable.low <= 0.25 <= found.anti_steerable.high <= 1
    assert found.probability[0, 0] == pytest.approx(1 / (1 + math.exp(2)))
    assert found.probability[1, 0] == pytest.approx(0.5)


def test_a_slope_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(7), rng.standard_normal((7, 5))
    np.testing.assert_allclose(slopes(list(x), y), np.polyfit(x, y, 1)[0])


def test_a_missing_number_counts_on_no_side():
    assert share_below(np.array([1.0, -1.0, np.nan]), ("a", "b", "c")).mean == 0.5


def test_no_anti_steerable_example_among_a_few_is_not_none_at_all():
    found = made([[-2, 0, 2], [4, 5, 6]] * 6)
    assert found.anti_steerable.mean == 0.0
    assert found.anti_steerable.high == pytest.approx(1 - 0.025 ** (1 / 12))
    assert "anti-steerable 0% [0%, 26%] of 12 examples" in str(found)


def test_numbers_are_those_of_plain_runs():
    task = questions(8)
    found = propensity(LM, task, PUSH, coefficients=(-1.0, 0.0, 2.0))
    for row, c in zip(found.values, (-1.0, 0.0, 2.0), strict=True):
        wanted = [single(LM, e.question, e.answers, e.distractors, PUSH * c if c else None) for e in task.examples]
        np.testing.assert_allclose(row, wanted, atol=1e-9)
    assert found.steerability.mean > 0
    np.testing.assert_allclose(found.probability[1], 1 / (1 + np.exp(-found.values[1])))


def test_a_vector_turned_round_is_anti_steerable():
    """Late in the stream the vector is all there is to see: towards the answer no slope is below zero, away all are."""
    task = questions(8)
    far = [propensity(LM, task, PUSH * sign, coefficients=(0.0, 0.5, 1.0)) for sign in (1.0, -1.0)]
    assert far[0].anti_steerable.mean == 0.0
    assert far[1].anti_steerable.mean == 1.0


def test_it_is_log_odds_whatever_the_tasks_metric():
    task = questions(6)
    other = propensity(LM, task.with_(metric="prob"), PUSH, coefficients=(0.0, 1.0))
    np.testing.assert_allclose(other.values, propensity(LM, task, PUSH, coefficients=(0.0, 1.0)).values)


def test_a_function_of_the_coefficient_serves():
    task = questions(4)
    one = propensity(LM, task, lambda c: scale("L0.head[1]", 1 - c), coefficients=(0.0, 1.0))
    two = propensity(LM, task, scale("L0.head[1]", 0.0), coefficients=(0.0, 1.0))
    np.testing.assert_allclose(one.values, two.values, atol=1e-10)


def test_texts_after_a_prompt_have_odds_and_texts_alone_have_none():
    assert propensity(LM, continuations(4), PUSH, coefficients=(0.0, 1.0)).unit == "nat"
    with pytest.raises(TaskError, match="no log odds"):
        propensity(LM, bare(4), PUSH)


def test_one_coefficient_has_no_slope():
    with pytest.raises(TrimtabError, match="two or more different coefficients"):
        propensity(LM, questions(4), PUSH, coefficients=(1.0,))
    with pytest.raises(TrimtabError, match="shape"):
        Propensity((0.0, 1.0), np.zeros((3, 2)), "nat", ("a", "b"))


def test_it_is_kept_and_shown(tmp_path):
    found = made([[-2, 0, 2], [3, 0, -3]])
    found.save(tmp_path / "p")
    assert Propensity.load(tmp_path / "p") == found
    assert len(found.to_frame()) == 3
    assert len(found.plot().drawings) == 2
    assert "anti-steerable 50%" in str(found)
