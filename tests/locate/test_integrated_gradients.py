"""Integrated gradients: completeness, convergence, a hand-computable case, and the batched way against single steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import MOE, exact, lm_of, untouched
from tests.tiny import FAMILIES
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.patching import patching, total_effect
from trimtab.tasks.measure import measure, sides
from trimtab.values.edit import Edit, Ref

LM = lm_of("gpt2", torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_of_the_inputs_add_up_to_the_whole_effect(family):
    lm, task = exact(family, padded=True), twins(3)
    scores = integrated_gradients(lm, task, "embed", spans="all", steps=60)
    effect = total_effect(lm, task)
    gap = np.abs(scores.array[:, 0] - effect)
    if family not in MOE:  # a routing that changes on the way is a jump, which no gradient sees: the error says so
        assert gap.max() < 0.05 * np.abs(effect).max()
    np.testing.assert_allclose(scores.options["completeness_error"], gap, atol=1e-4)


@pytest.mark.parametrize("sites", ["L*.head", "L1.neuron", "L*.resid_post"])
def test_a_site_s_attributions_add_up_to_patching_it(sites):
    task = twins()
    scores = integrated_gradients(LM, task, sites, spans="all", steps=60)
    whole = [str(site) for site in LM.sites(sites)]
    together = scores.array.reshape(len(task), len(whole), -1).sum(2)
    exactly = patching(LM, task, whole).array
    np.testing.assert_allclose(together, exactly, atol=1e-2 * np.abs(exactly).max())
    assert max(scores.options["completeness_error"]) == pytest.approx(np.abs(together - exactly).max(), rel=1e-6)


@pytest.mark.parametrize("rule", ["midpoint", "right"])
def test_the_error_falls_with_more_steps(rule):
    errors = [
        np.mean(integrated_gradients(LM, twins(), "L0.head", steps=m, rule=rule).options["completeness_error"])
        for m in (4, 16, 64)
    ]
    faster = 3 if rule == "midpoint" else 2
    assert errors[0] > faster * errors[1] > faster**2 * errors[2] > 0


def test_one_step_by_hand():
    """The midpoint of one step is the gradient half way; the other rule's is that at the clean value."""
    task, site = twins(2), "L1.head"
    both, measured = sides(LM, task), measure(LM, task)
    near, far = LM.run(both.negative, site), LM.run(both.positive, site)
    for rule, alpha in (("midpoint", 0.5), ("right", 1.0)):
        edit = Edit(site, "set", Ref("far"), strength=alpha)
        found = LM.gradients(both.negative, measured.readout, site, edit=edit, runs={"far": far})
        change = (far[site] - near[site]) * found.gradients[site]
        hand = change[torch.arange(2), torch.tensor(both.negative.positions("end"))[:, 0]].sum(2)
        scores = integrated_gradients(LM, task, site, spans="end", steps=1, rule=rule)
        np.testing.assert_allclose(scores.array[:, 0, :, 0], hand.numpy(), rtol=1e-8)


def test_where_the_metric_is_linear_one_step_is_exact():
    task = twins(metric="logit_diff")
    scores = integrated_gradients(LM, task, "final@end", steps=1)
    np.testing.assert_allclose(scores.array, attribution_patching(LM, task, "final@end").array, rtol=1e-8)
    np.testing.assert_allclose(scores.array[:, 0], total_effect(LM, task), rtol=1e-8)
    assert max(scores.options["completeness_error"]) < 1e-8


@pytest.mark.parametrize("path", ["site", "input"])
def test_batches_of_steps_and_prompts_make_no_difference(path):
    task = twins()
    sizes = [integrated_gradients(LM, task, "L*.head", steps=5, path=path, batch_size=size).array for size in (32, 1)]
    np.testing.assert_allclose(*sizes, rtol=1e-6, atol=1e-9)


def test_moving_inputs_reads_every_site_along_one_way():
    """By hand: embeddings half way, gradients at the heads."""
    task, site = twins(1), "L1.head"
    both, measured = sides(LM, task), measure(LM, task)
    near, far = LM.run(both.negative, ["embed", site]), LM.run(both.positive, ["embed", site])
    edit = Edit("embed", "set", Ref("far"), strength=0.5)
    found = LM.gradients(both.negative, measured.readout, site, edit=edit, runs={"far": far})
    hand = ((far[site] - near[site]) * found.gradients[site]).sum((1, 3))
    scores = integrated_gradients(LM, task, site, spans="all", steps=1, path="input")
    np.testing.assert_allclose(scores.array[:, 0, :, 0], hand.numpy(), rtol=1e-8)
    assert scores.options["completeness_error"] is None
    for sites in ("embed", ["embed", "L0.head"]):
        both_ways = [integrated_gradients(LM, task, sites, path=path) for path in ("input", "site")]
        np.testing.assert_allclose(both_ways[0].array[:, 0], both_ways[1].array[:, 0], rtol=1e-9)


def test_from_zero_they_add_up_to_what_zero_takes_away():
    task = pairs(4)
    scores = integrated_gradients(LM, task, "L1.neuron", spans="all", steps=200, baseline="zero")
    lost = numbers(LM, task) - numbers(LM, task, edits=lambda row: "L1.neuron set 0")
    np.testing.assert_allclose(scores.array.sum((1, 2, 3)), lost, atol=2e-3 * np.abs(lost).max())
    assert scores.direction is None


def test_from_zero_inputs_what_all_of_the_change_passes_adds_up():
    """Where the metric is linear: from the run whose embeddings are 0, and not from 0 itself."""
    task = twins(4, metric="logit_diff")
    scores = integrated_gradients(LM, task, "final", spans="all", steps=1, baseline="zero", path="input")
    change = numbers(LM, task, "clean") - numbers(LM, task, "clean", lambda row: "embed set 0")
    found = scores.array.reshape(len(task), -1).sum(1)
    np.testing.assert_allclose(found, change, atol=1e-8 * np.abs(change).max())
    assert scores.options["completeness_error"] is None


@pytest.mark.parametrize("site", ["L0.head", "L1.resid_pre"])
def test_from_zero_inputs_one_step_by_hand(site):
    """Every site from what it is without embeddings; its gradient with embeddings half as large."""
    task = twins(1)
    clean, measured = sides(LM, task).positive, measure(LM, task, on="clean")
    near, far = LM.run(clean, site, Edit("embed", "set", 0.0)), LM.run(clean, site)
    found = LM.gradients(clean, measured.readout, site, edit=Edit("embed", "scale", 0.5))
    hand = ((far[site] - near[site]) * found.gradients[site]).sum()
    assert float(near[site].abs().max()) > 1e-2
    scores = integrated_gradients(LM, task, site, spans="all", steps=1, baseline="zero", path="input")
    np.testing.assert_allclose(scores.array.sum(), float(hand), rtol=1e-8)


def test_from_zero_inputs_and_the_embedding_alone_are_the_same():
    both_ways = [
        integrated_gradients(LM, twins(), "embed", baseline="zero", path=path, steps=4) for path in ("input", "site")
    ]
    np.testing.assert_allclose(both_ways[0].array, both_ways[1].array, rtol=1e-9, atol=1e-12)
    errors = [scores.options["completeness_error"] for scores in both_ways]
    np.testing.assert_allclose(*errors, rtol=1e-6)


def test_the_error_of_an_example_is_that_of_all_its_rows():
    """Without a question an example is two rows, one counted negatively: their gaps add up before they are sized."""
    task = pairs(4, question=False)
    scores = integrated_gradients(LM, task, "L1.neuron", spans="all", steps=2, baseline="zero")
    change = numbers(LM, task) - numbers(LM, task, edits=lambda row: "L1.neuron set 0")
    whole = np.abs(scores.array.sum((1, 2, 3)) - change)
    np.testing.assert_allclose(scores.options["completeness_error"], whole, rtol=1e-5, atol=1e-9)


def test_little_memory_means_one_row_and_one_step_at_once(monkeypatch):
    rows, task = [], twins(2)
    real = type(LM).gradients

    def counted(lm, prompts, *args, **options):
        rows.append(prompts.batch)
        return real(lm, prompts, *args, **options)

    monkeypatch.setattr(type(LM), "gradients", counted)
    whole = integrated_gradients(LM, task, "embed", steps=4)
    assert max(rows) > 2
    rows.clear()
    small = integrated_gradients(LM, task, "embed", steps=4, memory=1.0)
    assert rows == [1] * 8
    np.testing.assert_allclose(small.array, whole.array, rtol=1e-6, atol=1e-10)


def test_nothing_is_left_behind_and_progress_is_told():
    told = []
    with untouched(LM):
        integrated_gradients(LM, twins(), steps=2, batch_size=2, progress=lambda *now: told.append(now))
    assert told[-1] == (6, 6)


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(TaskError, match='give baseline="zero"'):
        integrated_gradients(LM, pairs(), "embed")
    with pytest.raises(TrimtabError, match="at least 1, got 0"):
        integrated_gradients(LM, twins(), steps=0)
    with pytest.raises(TrimtabError, match="rule is"):
        integrated_gradients(LM, twins(), rule="left")
    with pytest.raises(SiteError, match="no gradient reaches them"):
        integrated_gradients(LM, twins(), "L*.resid_post.feature@sae")
