"""Gradient × input, saliency, Taylor, Fisher and numbers of tokens, against gradients taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import exact, lm_of, untouched
from tests.tiny import FAMILIES
from trimtab.errors import EditError, SiteError, TaskError, TrimtabError
from trimtab.locate.gradients import fisher, gradient_input, saliency, taylor, token_scores
from trimtab.tasks.measure import measure, sides
from trimtab.values.token_scores import TokenScores

LM = lm_of("gpt2", torch.float64)


def by_hand(lm, task, site, on="clean"):
    """Of each prompt alone: activations and gradients (pos unit …), and the positions of its spans."""
    measured = measure(lm, task, on=on)
    for row in range(len(measured.prompts)):
        prompts = measured.prompts.rows([row], trim=True)
        found = lm.gradients(prompts, measured.readout.of_rows([row]), site)
        yield found.activations[site][0], found.gradients[site][0], prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_all_four_equal_sums_by_hand(family):
    lm, task = exact(family, padded=True), twins(4)
    near = 1e-8 if lm.dtype == torch.float64 else 1e-3
    made = {
        "gradient_input": gradient_input(lm, task, "L*.head", spans=("subject", "1:")),
        "l2": saliency(lm, task, "L*.head", spans=("subject", "1:")),
        "l1": saliency(lm, task, "L*.head", spans=("subject", "1:"), norm="l1"),
        "squared": taylor(lm, task, "L*.head", spans=("subject", "1:")),
        "absolute": taylor(lm, task, "L*.head", spans=("subject", "1:"), squared=False),
        "fisher": fisher(lm, task, "L*.head", spans=("subject", "1:")),
    }
    for layer in range(2):
        for row, (a, g, prompts) in enumerate(by_hand(lm, task, f"L{layer}.head")):
            for at, span in enumerate(("subject", "1:")):
                columns = prompts.positions(span)[0]
                x, y = a[columns], g[columns]
                first_order = (x * y).sum((0, 2))
                hand = {
                    "gradient_input": first_order,
                    "l2": y.square().sum((0, 2)).sqrt(),
                    "l1": y.abs().sum((0, 2)),
                    "squared": first_order.square(),
                    "absolute": first_order.abs(),
                    "fisher": y.square().mean((0, 2)),
                }
                for name, expected in hand.items():
                    scores = made[name].array[row, layer, :, at]
                    np.testing.assert_allclose(scores, expected.numpy(), rtol=100 * near, atol=near, err_msg=name)


def test_embeddings_are_the_default_and_units_are_named():
    task = twins()
    scores = gradient_input(LM, task)
    assert scores.dims == ("example", "span")
    assert scores.unit == "logit"
    assert saliency(LM, task).unit == "logit per activation"
    assert taylor(LM, task).unit == "logit²"
    assert fisher(LM, task).unit == "logit² per activation²"


def test_fisher_of_a_stream_is_a_mean_over_its_channels():
    task = twins()
    one, all_of_it = fisher(LM, task, ["L0.resid_post[3]@end"]), fisher(LM, task, ["L0.resid_post@end"])
    hand = np.array([g[-1].square().numpy() for _, g, _ in by_hand(LM, task, "L0.resid_post")])
    np.testing.assert_allclose(one.array[:, 0], hand[:, 3], rtol=1e-9)
    np.testing.assert_allclose(all_of_it.array[:, 0], hand.mean(1), rtol=1e-9)


@pytest.mark.parametrize("score", [gradient_input, saliency, taylor, fisher])
def test_batches_make_no_difference_and_nothing_is_left(score):
    for task in (twins(), pairs(4)):
        with untouched(LM):
            whole, single = (score(LM, task, "L*.neuron", batch_size=size).array for size in (16, 1))
        np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-9)
    told = []
    score(LM, twins(), batch_size=2, progress=lambda *now: told.append(now))
    assert told[-1] == (6, 6)


def test_on_the_corrupt_prompts():
    task = twins()
    turned = task.of([example.swapped() for example in task.examples])
    here = gradient_input(LM, task, "L*.head", on="corrupt").array
    there = gradient_input(LM, turned, "L*.head").array
    np.testing.assert_allclose(np.abs(here), np.abs(there), rtol=1e-8)


@pytest.mark.parametrize("kind", ["gradient_input", "saliency"])
def test_tokens_have_a_number_each(kind):
    task = twins()
    found = token_scores(LM, task, kind=kind)
    for row, (a, g, prompts) in enumerate(by_hand(LM, task, "embed")):
        hand = (a * g).sum(1) if kind == "gradient_input" else g.square().sum(1).sqrt()
        np.testing.assert_allclose([value for _, value in found.row(row)], hand.numpy(), rtol=1e-8, atol=1e-12)
        assert [token for token, _ in found.row(row)] == list(prompts.tokens[0])
    assert np.isnan(found.array).sum() == sum(found.array.shape[1] - len(row) for row in found.tokens)


@pytest.mark.parametrize("baseline", ["zero", "corrupt"])
def test_integrated_tokens_say_how_far_they_are_from_adding_up(baseline, tmp_path):
    """By runs: the clean number less that of the twin, or of the run without embeddings."""
    task = twins()
    start = numbers(LM, task) if baseline == "corrupt" else numbers(LM, task, "clean", lambda row: "embed set 0")
    change, errors = numbers(LM, task, "clean") - start, []
    for steps in (4, 300):
        found = token_scores(LM, task, kind="integrated_gradients", baseline=baseline, steps=steps)
        gap = np.abs(np.nansum(found.array, 1) - change)
        np.testing.assert_allclose(found.completeness_error, gap, rtol=1e-4, atol=1e-7)
        errors.append(gap.max())
    if baseline == "corrupt":  # from zero hundreds of even steps are not enough: the norms bend at the start of the way
        assert errors[1] < 0.02 * np.abs(change).max()
    assert errors[0] > errors[1]
    found.save(tmp_path / "tokens.safetensors")
    assert TokenScores.load(tmp_path / "tokens.safetensors").completeness_error == found.completeness_error
    assert "sums off by up to" in found.html()
    assert [token for token, _ in found.row(1)] == list(sides(LM, task).positive.tokens[1])
    if baseline == "corrupt":  # only the subject differs
        assert (np.abs(np.nan_to_num(found.array)) > 0).sum(1).tolist() == [1] * len(task)


def test_half_of_taylor_is_what_theis_et_al_prune_by():
    """½ · mean over examples of (Σ a·∂L/∂a)², with L the negative log probability of the answer."""
    task = twins(metric="log_prob")
    found = taylor(LM, task, "L*.head", spans="all").mean()[..., 0] / 2
    hand = np.mean([(a * g).sum((0, 2)).square().numpy() / 2 for a, g, _ in by_hand(LM, task, "L1.head")], 0)
    np.testing.assert_allclose(found[1], hand, rtol=1e-8)


def test_little_memory_means_few_rows_at_once():
    task = twins()
    for score in (gradient_input, saliency, taylor, fisher):
        told = []
        small = score(LM, task, "L*.head", memory=1.0, progress=lambda *now, told=told: told.append(now))
        assert len(told) == len(task)
        np.testing.assert_allclose(small.array, score(LM, task, "L*.head").array, rtol=1e-6, atol=1e-12)


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(TrimtabError, match="norm is"):
        saliency(LM, twins(), norm="max")
    with pytest.raises(TrimtabError, match='on is "clean" or "corrupt"'):
        fisher(LM, twins(), on="both")
    with pytest.raises(TrimtabError, match="kind is"):
        token_scores(LM, twins(), kind="lime")
    with pytest.raises(TaskError, match="leave out on="):
        token_scores(LM, twins(), kind="integrated_gradients", on="corrupt")
    with pytest.raises(TaskError, match="no twin prompts"):
        token_scores(LM, pairs(), kind="integrated_gradients", baseline="corrupt")
    with pytest.raises(EditError, match="accuracy"):
        gradient_input(LM, twins(metric="accuracy"))
    with pytest.raises(SiteError, match="no gradient reaches them"):
        taylor(LM, twins(), "L*.resid_post.feature@sae")
