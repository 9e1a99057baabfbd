"""DoLa's contrast, by hand: nothing against the output itself, differences of two readings of the lens elsewhere."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import MOE, exact, lm_of
from tests.tiny import FAMILIES, words
from trimtab.errors import PromptError, SiteError, TaskError
from trimtab.locate.layer_contrast import divergence, dola, layer_contrast
from trimtab.locate.lens_scores import logit_lens_scores
from trimtab.model.memory import HELD, memory_limit

module = importlib.import_module("trimtab.locate.layer_contrast")  # its function has the same name

LM = lm_of("llama", torch.float64)
TEXTS = [words(5, 6, 7, 8), words(9, 10)]


def read(lm, text, site):
    with torch.no_grad():
        return torch.log_softmax(lm.unembed(lm.final(lm.run(text, site)[site][0, -1])), -1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantity", ["log_prob", "logit_diff", "prob"])
def test_it_is_the_difference_of_two_readings(family, quantity):
    lm = lm_of(family) if family in MOE else exact(family, padded=True)
    task = twins()
    scores = layer_contrast(lm, task, quantity=quantity)
    seen = logit_lens_scores(lm, task, quantity=quantity).array
    scale = np.abs(seen).max()
    np.testing.assert_allclose(scores.array, seen[:, -1:] - seen, rtol=1e-4, atol=2e-5 * scale)
    np.testing.assert_allclose(scores.array[:, -1], 0, atol=2e-5 * scale)
    assert set(scores.options["chosen"]) == {"L0.resid_post@-1"}
    assert len(scores.options["chosen"]) == len(task)


def test_divergence():
    """Nothing between a distribution and itself, log 2 between two that share no token, and its definition."""
    half, first = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[1.0, 0.0, 0.0]]).log()
    other = torch.tensor([[0.0, 0.0, 1.0]]).log()
    assert divergence(half, half).item() == 0
    assert divergence(first, other).item() == pytest.approx(math.log(2))
    by_hand = 0.5 * (math.log(1 / 0.75) + 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert divergence(first, half).item() == divergence(half, first).item() == pytest.approx(by_hand)


def test_the_layer_chosen_is_the_one_furthest_away():
    task = pairs()
    sites = ["embed", "L0.resid_mid", "L0.resid_post"]
    scores = layer_contrast(LM, task, sites, quantity="divergence")
    assert scores.unit == "nat"
    assert ((scores.array > 0) & (scores.array <= math.log(2))).all()
    best = scores.array.argmax(1)
    assert scores.options["chosen"] == [f"{sites[i]}@-1" for i in best]


def test_log_probabilities_by_hand():
    sites = ["embed", "L0.resid_post"]
    found = dola(LM, TEXTS, sites, alpha=0.2, top=3)
    assert found.sites == tuple(sites)
    for row, text in enumerate(TEXTS):
        own = read(LM, text, "L1.resid_post")
        early = [read(LM, text, site) for site in sites]
        apart = [divergence(own[None], logp[None]).item() for logp in early]
        np.testing.assert_allclose(found.divergence[row], apart, rtol=1e-8)
        assert found.chosen[row] == sites[int(np.argmax(apart))]
        kept = own.exp() >= 0.2 * own.exp().max()
        weights = torch.where(kept, (own - early[int(np.argmax(apart))]).exp(), 0.0)
        np.testing.assert_allclose(
            np.exp(found.log_probs[row]), (weights / weights.sum()).numpy(), rtol=1e-7, atol=1e-12
        )
        assert found.top(row)[0].id == int(weights.argmax())
        assert len(found.top(row)) == min(3, int(kept.sum()))
    assert "against" in repr(found)


def test_bounds_of_alpha():
    """At 1 only the likeliest token is left; at 0 every token is."""
    one, every = dola(LM, TEXTS, alpha=1.0), dola(LM, TEXTS, alpha=0.0)
    assert (np.isfinite(one.log_probs).sum(1) == 1).all()
    assert one.log_probs.argmax(-1).tolist() == LM.run(TEXTS).logits[:, -1].argmax(-1).tolist()
    assert np.isfinite(every.log_probs).all()


def test_bad_input():
    with pytest.raises(SiteError, match="is the output itself"):
        dola(LM, TEXTS, "L1.resid_post")
    with pytest.raises(SiteError, match="residual stream"):
        dola(LM, TEXTS, "L*.mlp_out")
    with pytest.raises(PromptError, match="one position of each row"):
        dola(LM, TEXTS, at="all")
    with pytest.raises(TaskError, match="from 0 to 1, got 2"):
        dola(LM, TEXTS, alpha=2)
    with pytest.raises(TaskError, match=r"top is .* at least 1, got 0"):
        dola(LM, TEXTS, top=0)
    with pytest.raises(TaskError, match="answers of one token"):
        layer_contrast(LM, pairs(question=False))
    with pytest.raises(TaskError, match='unknown quantity "rank"'):
        layer_contrast(LM, twins(), quantity="rank")


def test_it_is_the_same_in_batches_and_these_are_as_large_as_the_limit_allows(monkeypatch):
    texts, told = [words(*range(5, 5 + 1 + i % 3), 7 + i) for i in range(9)], []
    whole = dola(LM, texts, progress=lambda done, total: told.append((done, total)))
    assert told == [(9, 9)]
    sizes, inner = [], module._furthest

    def counted(lm, prompts, *args):
        sizes.append(prompts.batch)
        return inner(lm, prompts, *args)

    monkeypatch.setattr(module, "_furthest", counted)
    with memory_limit(2 * HELD * LM.anatomy.vocab + 1):
        small = dola(LM, texts)
    assert max(sizes) == 2
    assert sum(sizes) == 9
    np.testing.assert_allclose(small.log_probs, whole.log_probs, rtol=1e-9)
    np.testing.assert_allclose(small.divergence, whole.divergence, atol=1e-12)
    assert small.chosen == whole.chosen
    assert small.log_probs.dtype == np.float64
