"""Inference-time intervention: the planted head comes first, and is shifted by α standard deviations."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions
from tests.locate.tinytasks import NEGATIVE, POSITIVE, pairs
from tests.model.tinies import IDS, fresh, lm_of
from tests.steer.planting import cosine, is_cached_right, is_nothing_at_zero, swapped
from tests.tiny import FAMILIES
from trimtab.errors import EditError, SiteError, TaskError
from trimtab.locate.probing import probe
from trimtab.steer.iti import Heads, head_accuracy, inference_time_intervention, single_heads
from trimtab.tasks.means import mean_difference
from trimtab.values.scores import Scores
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
TASK = questions(12)
SEES = 2
"""The head of L0 that sees which of the two tokens is there."""


@cache
def one_sees():
    """GPT-2 in which two tokens differ in two channels, which one head of L0 alone reads, and nothing above it."""
    lm = fresh("gpt2", torch.float64)
    body = lm.hf.transformer
    blind = [column for column in range(96) if column // 32 < 2 or (column % 32) // 8 != SEES]  # q, k and others' v
    with torch.no_grad():
        body.wpe.weight[:, :2] = 0
        body.wte.weight[:, :2] = 0
        for token, sign in ((POSITIVE, 1.0), (NEGATIVE, -1.0)):
            body.wte.weight[token] = body.wte.weight[POSITIVE]
            body.wte.weight[token, 0], body.wte.weight[token, 1] = 5 * sign, -5 * sign
        body.h[0].attn.c_attn.weight[:2] *= 20
        body.h[0].attn.c_attn.weight[:2, blind] = 0
        body.h[0].attn.c_proj.weight[8 * SEES : 8 * SEES + 8] = 0
        body.h[0].mlp.c_fc.weight[:2] = 0
        for out in (body.h[0].attn.c_proj, body.h[0].mlp.c_proj):  # so that the norms' scale is the same on both sides
            out.weight[:, :2], out.bias[:2] = 0, 0
        body.h[1].attn.c_attn.weight[:2] = 0
    return lm


def test_a_planted_head_comes_first():
    task = pairs(16, groups=4)
    scores = head_accuracy(one_sees(), task)
    assert scores.top(1) == [Site.parse(f"L0.head[{SEES}]")]
    assert scores.mean()[0, SEES] > 0.9
    others = np.delete(scores.mean().ravel(), SEES)
    np.testing.assert_allclose(others, 0.5, atol=0.01)
    made = inference_time_intervention(one_sees(), task)
    assert [str(edit.site) for edit in made] == [f"L0.head[{SEES}]"]


def test_accuracies_are_those_of_probing():
    """The same numbers as `locate.probe` gives for its map of heads, with the same folds."""
    scores, wanted = head_accuracy(LM, TASK, seed=3), probe(LM, TASK, "L*.head", seed=3)
    np.testing.assert_allclose(scores.array, wanted.array[..., 0])
    assert (scores.dims, scores.unit, scores.order) == (("example", "layer", "head"), "accuracy", "high")
    assert scores.groups == TASK.groups
    some = head_accuracy(LM, TASK, ["L1.head[2]", "L0.head[1]"], seed=3)
    np.testing.assert_allclose(some.array, scores.array[:, [0, 1], [1, 2]])
    assert some.top(2)[0] in (Site.parse("L0.head[1]"), Site.parse("L1.head[2]"))
    last = head_accuracy(LM, TASK, "L1.head@-1", seed=3)
    np.testing.assert_allclose(last.array, probe(LM, TASK, "L1.head", read="-1", seed=3).array[..., 0])
    assert str(last.top(1)[0]).endswith("@-1")


@pytest.mark.parametrize("theta", ["mass_mean", "probe"])
def test_the_shift_is_in_standard_deviations(theta):
    made = inference_time_intervention(
        LM, TASK, ["L1.head[2]", "L0.head[1]", "L1.head[0]"], theta=theta, alpha=4.0, strength=0.5, where="-1:"
    )
    assert [str(edit) for edit in made] == [
        "L0.head[1]@-1: add array(1, 8) x 0.5",
        "L1.head[0,2]@-1: add array(2, 8) x 0.5",
    ]
    means = mean_difference(LM, TASK, "L*.head")
    for edit in made:
        for value, head in zip(edit.value.astype(np.float64), edit.site.index, strict=True):
            x = np.concatenate(means.sides(edit.site.with_(index=(head,))))[:, 0].astype(np.float64)
            unit = value / np.linalg.norm(value)
            assert np.linalg.norm(value) == pytest.approx(4.0 * (x @ unit).std(), rel=1e-5)
            raw = means.difference(edit.site.with_(index=(head,)))
            assert cosine(value, raw) > 0
            assert (cosine(value, raw) == pytest.approx(1, abs=1e-6)) is (theta == "mass_mean")
    heads, plain = (LM.run(IDS, "L1.head", edit=edit)["L1.head"] for edit in (made.edits[1], None))
    moved = torch.zeros_like(plain)
    moved[:, -1, [0, 2]] = 0.5 * torch.tensor(made.edits[1].value, dtype=plain.dtype)
    torch.testing.assert_close(heads - plain, moved)


def test_how_many_heads_are_taken():
    def of(layers, heads):
        return Heads(tuple(Site("head", layer, (head,)) for layer in range(layers) for head in range(heads)), heads)

    assert of(32, 32).taken(None) == 48, "the paper's number for LLaMA 7B"
    assert of(30, 9).taken(None) == 13
    assert of(2, 4).taken(None) == 1
    assert (of(2, 4).taken(3), of(2, 4).taken(100)) == (3, 8)
    named = Heads(of(2, 4).sites[:5], 4)
    assert named.taken(None) == 5, "named heads are all taken"
    for wrong in (0, -1, True):
        with pytest.raises(EditError, match="k is how many heads"):
            of(2, 4).taken(wrong)
    assert single_heads(LM, ["L1.head[2,0]", "L1.head[2]@-1", "L0.head"]).sites == tuple(
        Site.parse(f"L{layer}.head[{head}]") for layer, heads in ((0, range(4)), (1, (0, 2))) for head in heads
    )


def test_scores_that_are_given_rank_the_heads():
    values = np.zeros((1, 2, 4))
    values[0, 1, 3], values[0, 0, 2] = -3.0, 2.0
    scores = Scores(values, ("example", "layer", "head"), {}, "L{layer}.head[{head}]")
    made = inference_time_intervention(LM, TASK, k=2, accuracies=scores)
    assert [str(edit.site) for edit in made] == ["L0.head[2]", "L1.head[3]"], "effects rank by size"
    own = head_accuracy(LM, TASK)
    assert inference_time_intervention(LM, TASK, k=3, accuracies=own) == inference_time_intervention(LM, TASK, k=3)
    with pytest.raises(SiteError, match=r"L1.head\[0\] has no score"):
        inference_time_intervention(LM, TASK, k=3, accuracies=own.sel(layer=[0]))


@pytest.mark.parametrize("theta", ["mass_mean", "probe"])
def test_swapped_sides_turn_it_round(theta):
    ahead, back = (inference_time_intervention(LM, task, "L1.head", k=4, theta=theta) for task in (TASK, swapped(TASK)))
    np.testing.assert_allclose(ahead.edits[0].value, -back.edits[0].value, atol=0.01)
    assert ahead.edits[0].value.shape == (4, 8)


def test_what_cannot_be_is_refused():
    for sites in ("L*.resid_post", "L1.q", "L1.head[2].q"):
        with pytest.raises(SiteError, match="shifts the outputs of heads"):
            inference_time_intervention(LM, TASK, sites)
    with pytest.raises(EditError, match='no direction "probes" \\(did you mean "probe"'):
        inference_time_intervention(LM, TASK, theta="probes")
    one_group = TASK.of([e.with_(group="g") for e in TASK.examples])
    with pytest.raises(TaskError, match="two groups and two folds at least; got 1 group and folds=5"):
        head_accuracy(LM, one_group)
    with pytest.raises(EditError, match=r"L1.head\[0\]: the means of the two sides are the same there"):
        inference_time_intervention(one_sees(), pairs(8, groups=4), "L1.head[0]")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm = lm_of(family)
    made = inference_time_intervention(lm, TASK, "L1.head", k=2, folds=2)
    (edit,) = made
    assert edit.value.shape == (2, lm.anatomy.d_head)
    moved, plain = (lm.run(IDS, "L1.head", edit=each)["L1.head"] for each in (made, None))
    wanted = torch.zeros_like(plain)
    wanted[:, :, list(edit.site.index)] = torch.tensor(edit.value)
    torch.testing.assert_close(moved - plain, wanted, atol=1e-4, rtol=1e-4)


def test_nothing_at_strength_zero_and_the_same_with_a_cache():
    is_nothing_at_zero(lambda lm, **options: inference_time_intervention(lm, TASK, k=3, **options))
    is_cached_right(lambda lm, **options: inference_time_intervention(lm, TASK, k=8, strength=3, **options))
