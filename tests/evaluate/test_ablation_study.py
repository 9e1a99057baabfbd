"""Controlled ablation against plain runs, and a planted neuron whose loss no random set has."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.evaluate.test_effect import single
from tests.evaluate.tinies import passages, questions, twins
from tests.locate.tinytasks import numbers, pairs
from tests.model.tinies import fresh, lm_of
from tests.tiny import words
from trimtab.errors import SiteError, TrimtabError
from trimtab.evaluate.ablation_study import _like, ablation_study
from trimtab.evaluate.side_effects import capability, side_effects
from trimtab.evaluate.texts import Item
from trimtab.values.ablation_study import AblatedNumber, AblationStudy
from trimtab.values.edit import Edit, Intervention
from trimtab.values.scores import Scores
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
TEXTS = passages(3)
ITEMS = tuple(Item(words(20 + i, 5, 30 + i), f" w{70 + i}", f" w{80 + i}", f"kind {i % 3}") for i in range(9))
HEADS = ["L0.head[1]", "L1.head[2]", "L0.head[3]"]
OPTIONS = {"passages": TEXTS, "items": ITEMS, "length": 24}


@cache
def study():
    return ablation_study(LM, questions(8), HEADS, k=(1, 3), draws=2, **OPTIONS)


def test_zero_is_that_of_plain_runs():
    made, task = study(), questions(8)
    for j, parts in enumerate((HEADS[:1], HEADS)):
        edit = Intervention.of([Edit(site, "set", 0.0) for site in parts])
        wanted = [single(LM, e.question, e.answers, e.distractors, edit) for e in task.examples]
        np.testing.assert_allclose(made.number("behaviour").located[0, j], wanted, atol=1e-9)
        cost = side_effects(LM, [edit], TEXTS, length=24)
        np.testing.assert_allclose(made.number("nll").located[0, j], cost.nll[0], atol=1e-9)
        np.testing.assert_allclose(made.number("nll").base, cost.base_nll, atol=1e-9)
        np.testing.assert_array_equal(made.number("capability").located[0, j], capability(LM, ITEMS, edit))
    np.testing.assert_array_equal(made.number("capability").base, capability(LM, ITEMS))


def test_the_mean_is_over_the_tokens_of_the_tasks_prompts():
    """First tokens have a mean of their own; the mean of a prompt's tokens counts every prompt alike."""
    made, task = study(), questions(8)
    runs = [LM.run(e.question, "L0.head")["L0.head"][0, :, 1] for e in task.examples]
    first = torch.stack([run[0] for run in runs]).mean(0)
    rest = torch.stack([run[1:].mean(0) for run in runs]).mean(0)
    edit = [Edit("L0.head[1]@0", "set", first[None].numpy()), Edit("L0.head[1]@1:", "set", rest[None].numpy())]
    wanted = [single(LM, e.question, e.answers, e.distractors, edit) for e in task.examples]
    np.testing.assert_allclose(made.number("behaviour").located[1, 0], wanted, atol=1e-5)


def test_resampling_takes_what_another_prompt_has():
    """Of two prompts of one length each takes the other's."""
    task = questions(8)
    two = task.of([e for e in task.examples if len(e.question.split()) == 4][:2])
    made = ablation_study(LM, two, HEADS[:1], k=(1,), kinds=("resample",), draws=1, **OPTIONS)
    one, other = (LM.run(e.question, "L0.head") for e in two.examples)
    for i, (e, run) in enumerate(zip(two.examples, (other, one), strict=True)):
        values = run["L0.head"][0, :, 1:2].numpy()
        edit = [Edit(f"L0.head[1]@{p}", "set", value) for p, value in enumerate(values)]
        wanted = single(LM, e.question, e.answers, e.distractors, edit)
        assert made.number("behaviour").located[0, 0, i] == pytest.approx(wanted, abs=1e-9)


def test_a_planted_neuron_is_missed_and_random_ones_are_not():
    """A neuron that is always on and writes the answer's direction."""
    lm, task = fresh("gpt2", torch.float64), pairs(12)
    with torch.no_grad():
        mlp, head = lm.hf.transformer.h[1].mlp, lm.anatomy.unembed.weight
        mlp.c_fc.weight[:, 7], mlp.c_fc.bias[7] = 0.0, 4.0
        mlp.c_proj.weight[7] = head[8] - head[9] - head[10]
    made = ablation_study(lm, task, ["L1.neuron[7]"], k=(1,), draws=4, kinds=("zero",), **OPTIONS)
    plain = numbers(lm, task, edits=lambda row: [Edit("L1.neuron[7]", "set", 0.0)])
    np.testing.assert_allclose(made.number("behaviour").located[0, 0], plain, atol=1e-9)
    assert made.difference("behaviour", "zero", 1).high < 0
    assert abs(made.control("behaviour", "zero", 1).mean) < abs(made.change("behaviour", "zero", 1).mean) / 4


def test_random_sets_are_shown_one_by_one_and_ranked():
    """Two sets say little: whatever the interval over examples is, p is at least 1/3."""
    made = study()
    number = made.number("behaviour")
    draws = (number.random[0, 1] - number.base).mean(1)
    np.testing.assert_allclose(made.draw_means("behaviour", "zero", 3), draws)
    own = (number.located[0, 1] - number.base).mean()
    assert made.p("behaviour", "zero", 3) == pytest.approx((1 + (np.abs(draws) >= abs(own)).sum()) / 3)
    frame = made.to_frame().set_index(["number", "kind", "k"])
    row = frame.loc[("behaviour", "zero", 3)]
    assert (row["random_least"], row["random_most"]) == pytest.approx((draws.min(), draws.max()))
    assert row["random"] == pytest.approx(draws.mean())
    assert (frame["p"] >= 1 / 3 - 1e-9).all()
    assert f"({draws.min():+.3g} to {draws.max():+.3g} in 2 draws), p " in str(made)


def test_p_counts_what_changes_the_number_as_much_either_way():
    base, groups = np.zeros(4), ("a", "b", "c", "d")
    random = np.array([0.5, -2.0, 2.5, -1.0])[None, None, :, None] * np.ones(4)
    number = AblatedNumber("behaviour", "nat", base, np.full((1, 1, 4), -2.0), random, groups)
    made = AblationStudy("t", ("L0.head[1]",), ("zero",), (1,), 4, (number,))
    assert made.p("behaviour", "zero", 1) == pytest.approx(3 / 5)
    missing = AblatedNumber("behaviour", "nat", base, np.full((1, 1, 4), -9.0), random * np.nan, groups)
    assert made.with_(numbers=(missing,)).p("behaviour", "zero", 1) == 1.0


def test_random_sets_are_of_the_same_kind_and_layer():
    rng = np.random.default_rng(0)
    sites = [Site.parse(text) for text in ("L0.head[1]", "L0.head[2]", "L1.neuron[3]", "L1.mlp_out")]
    for _ in range(20):
        like = _like(LM, sites, rng)
        assert [(s.name, s.layer) for s in like] == [("head", 0), ("head", 0), ("neuron", 1), ("mlp_out", 0)]
        assert len(set(like)) == 4
        assert not set(like) & set(sites)
        assert {s.index for s in like[:2]} == {(0,), (3,)}
    with pytest.raises(SiteError, match="no other place like"):
        _like(LM, [Site.parse("L0.mlp_out"), Site.parse("L1.mlp_out"), Site.parse("L0.mlp_out")], rng)


def test_scores_give_their_first_places():
    values = np.array([[[1.0, 5.0], [-7.0, 0.5]]])
    scores = Scores(values, ("example", "layer", "head"), {}, "L{layer}.head[{head}]", method="patching")
    made = ablation_study(LM, questions(4), scores, k=(1, 2), draws=1, kinds=("zero",), **OPTIONS)
    assert made.sites == ("L1.head[0]", "L0.head[1]")
    assert made.proposed_by == "patching"
    high = ablation_study(LM, questions(4), scores, k=(1,), draws=1, kinds=("zero",), by="high", **OPTIONS)
    assert high.sites == ("L0.head[1]",)


def test_counterfactual_tasks_are_read_on_their_clean_prompts():
    made = ablation_study(LM, twins(6), HEADS[:1], k=(1,), draws=1, kinds=("zero",), **OPTIONS)
    e = twins(6).examples[2]
    assert made.number("behaviour").base[2] == pytest.approx(
        single(LM, e.clean, e.answers, e.distractors, None), abs=1e-9
    )


def test_what_makes_no_study_is_refused():
    for change, words_ in (
        ({"kinds": ("nil",)}, 'no ablation "nil"'),
        ({"k": (4,)}, "4 parts are to be ablated, and 3 different ones"),
        ({"k": (0,)}, "at least 1"),
        ({"draws": 0}, "at least 1"),
        ({"passages": ()}, "no passages"),
    ):
        with pytest.raises(TrimtabError, match=words_):
            ablation_study(LM, questions(4), HEADS, **{"k": (1,), **OPTIONS, **change})


def test_it_is_kept_and_shown(tmp_path):
    made = study()
    made.save(tmp_path / "a")
    again = AblationStudy.load(tmp_path / "a")
    assert again == made
    assert len(again.to_frame()) == 3 * 3 * 2
    assert len(again.plot().drawings) == 3
    assert "zero, 3 parts: behaviour" in str(again)
    with pytest.raises(TrimtabError, match='no number "perplexity"'):
        again.number("perplexity")
    with pytest.raises(TrimtabError, match="the study ablated by"):
        again.change("nll", "zero", 2)
