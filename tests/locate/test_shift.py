"""Adding the mean difference: against edits made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import lm_of
from trimtab.locate.shift import shift
from trimtab.tasks.means import mean_difference
from trimtab.values.edit import Edit

LM = lm_of("llama", torch.float64)
TASK = pairs()


@pytest.mark.parametrize("question", [True, False])
def test_it_is_the_edit_made_by_hand(question):
    task = pairs(question=question)
    v = mean_difference(LM, task, "L*.head").difference("L1.head[2]")
    assert v.shape == (1, 8)
    change = numbers(LM, task, edits=lambda row: Edit("L1.head[2]", "add", 1.5 * v)) - numbers(LM, task)
    scores = shift(LM, task, "L*.head", strength=1.5)
    np.testing.assert_allclose(scores.array[:, 1, 2, 0], change, atol=1e-5 * np.abs(change).max())
    assert scores.unit == ("nat" if question else "nat/token")


def test_strength_zero_changes_nothing():
    assert not shift(LM, TASK, "L*.resid_post", strength=0.0).array.any()


def test_scope_is_where_it_is_added():
    v = mean_difference(LM, TASK, "L0.resid_post").difference("L0.resid_post")
    change = numbers(LM, TASK, edits=lambda row: Edit("L0.resid_post@-1", "add", v)) - numbers(LM, TASK)
    for sites, scope in (("L*.resid_post", "last"), (["L0.resid_post@last"], "all")):
        scores = shift(LM, TASK, sites, scope=scope)
        np.testing.assert_allclose(scores.array.reshape(len(TASK), -1)[:, 0], change, atol=1e-5)


def test_the_vector_may_come_from_another_task():
    source = pairs(8, start=60, name="other")
    v = mean_difference(LM, source, "L0.resid_post").difference("L0.resid_post")
    change = numbers(LM, TASK, edits=lambda row: Edit("L0.resid_post", "add", v)) - numbers(LM, TASK)
    scores = shift(LM, TASK, ["L0.resid_post"], source=source)
    np.testing.assert_allclose(scores.array[:, 0], change, atol=1e-5)
    assert scores.options["source"] == "other"


def test_counterfactual_differences_are_read_where_they_are_added():
    task = twins()
    v = mean_difference(LM, task, ["L0.head@subject"]).difference("L0.head[1]@subject")
    direct = shift(LM, task, ["L0.head[1]@subject"])
    given = shift(
        LM, task, ["L0.head[1]@subject"], differences=mean_difference(LM, task, ["L0.head@subject", "L1.head"])
    )
    np.testing.assert_allclose(direct.array, given.array)
    assert v.shape == (1, 8)
    assert direct.array.any()


def test_fast_is_naive_and_batches_and_padding_make_no_difference():
    fast = shift(LM, TASK, "L*.head")
    for options in ({"exact": "naive"}, {"batch_size": 1}, {"batch_size": 5}):
        np.testing.assert_allclose(shift(LM, TASK, "L*.head", **options).array, fast.array, atol=1e-5)


def test_flipped_labels_reuse_one_pass():
    means = mean_difference(LM, TASK, "L*.resid_post")
    signs = np.where(np.arange(len(TASK)) % 2, 1.0, -1.0)
    np.testing.assert_allclose(
        means.flipped(signs).difference("L1.resid_post"), means.difference("L1.resid_post", signs), atol=1e-6
    )
    once = shift(LM, TASK, "L*.resid_post", differences=means.flipped(signs))
    assert once.array.shape == (12, 2, 1)
