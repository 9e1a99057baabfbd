"""Attribution patching against finite differences, and against exact patching where the metric is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of, untouched
from trimtab.errors import EditError, SiteError
from trimtab.locate.attribution_patching import attribution_maps, attribution_patching
from trimtab.locate.patching import patching, total_effect
from trimtab.locate.shift import shift
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import measure, sides
from trimtab.values.edit import Edit, Ref

LM = lm_of("gpt2", torch.float64)  # whose norms are in float64 too, as finite differences need


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("sites", ["L*.head", "L*.neuron", "L*.resid_post", "L*.mlp_out", "L1.k"])
def test_it_is_the_slope_of_patching(sites, direction):
    """A patch at strength ε does ε times as much, to first order."""
    task, eps = twins(), 1e-6
    scores = attribution_patching(LM, task, sites, direction=direction)
    measured = measure(LM, task, on="corrupt" if direction == "denoise" else "clean")
    both = sides(LM, task)
    run = LM.run(both.positive if direction == "denoise" else both.negative, sites)
    variants = [Edit(site, "set", Ref("other"), strength=eps) for site in scores.sites()]
    found = LM.counterfactuals(measured.prompts, variants, measured.readout, runs={"other": run})
    slope = measured.per_example(found.effects).T / eps * (1 if direction == "denoise" else -1)
    np.testing.assert_allclose(scores.array.reshape(slope.shape), slope, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("question", [True, False])
def test_on_contrast_tasks_it_is_the_slope_of_shift(question):
    task, eps = pairs(question=question), 1e-6
    means = mean_difference(LM, task, "L*.head")
    estimate = attribution_patching(LM, task, "L*.head")
    exact = shift(LM, task, "L*.head", strength=eps, differences=means)
    np.testing.assert_allclose(estimate.array, exact.array / eps, atol=1e-4 * np.abs(estimate.array).max())
    assert estimate.direction is None
    assert estimate.coords["span"] == ("all",)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_where_the_metric_is_linear_it_is_exact(direction):
    task = twins(metric="logit_diff")
    estimate = attribution_patching(LM, task, "final@end", direction=direction)
    exact = patching(LM, task, "final@end", direction=direction)
    np.testing.assert_allclose(estimate.array, exact.array, rtol=1e-8)
    np.testing.assert_allclose(exact.array[:, 0], total_effect(LM, task), rtol=1e-8)


def test_batches_and_padding_make_no_difference():
    for task in (twins(), pairs(question=False)):
        whole, single = (attribution_patching(LM, task, "L*.neuron", batch_size=size).array for size in (16, 1))
        np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-7)


def test_little_memory_means_few_rows_at_once():
    told, task = [], twins()
    small = attribution_maps(LM, task, "L*.neuron", memory=1.0, progress=lambda *now: told.append(now))["L*.neuron"]
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(small.array, attribution_patching(LM, task, "L*.neuron").array, rtol=1e-6, atol=1e-12)


def test_candidates_equal_the_map():
    task = twins()
    grid = attribution_patching(LM, task, "L*.head")
    alone = attribution_patching(LM, task, ["L0.head[2]@subject", "L1.head[3]@end", "L1.head[0,1]@end"])
    np.testing.assert_allclose(alone.array[:, 0], grid.array[:, 0, 2, 0])
    np.testing.assert_allclose(alone.array[:, 1], grid.array[:, 1, 3, 1])
    np.testing.assert_allclose(alone.array[:, 2], grid.array[:, 1, :2, 1].sum(1))


@pytest.mark.parametrize("task", [twins(), pairs()], ids=["twins", "pairs"])
def test_several_maps_at_once_equal_each_alone_from_one_backward_pass(task, monkeypatch):
    calls = []
    real = type(LM).gradients
    monkeypatch.setattr(type(LM), "gradients", lambda *args, **options: calls.append(1) or real(*args, **options))
    maps = ("L*.head", "L*.neuron", "L*.resid_post", "embed")
    found = attribution_maps(LM, task, maps)
    assert len(calls) == 1
    assert tuple(found) == maps
    for name, scores in found.items():
        alone = attribution_patching(LM, task, name)
        assert (scores.dims, scores.site, scores.direction) == (alone.dims, alone.site, alone.direction)
        np.testing.assert_allclose(scores.array, alone.array, rtol=1e-9, atol=1e-12)


def test_flipped_differences_are_a_control():
    task = pairs()
    means = mean_difference(LM, task, "L*.resid_post")
    turned = attribution_patching(LM, task, "L*.resid_post", differences=means.flipped(-np.ones(len(task))))
    np.testing.assert_allclose(turned.array, -attribution_patching(LM, task, "L*.resid_post").array, rtol=1e-6)


def test_the_source_may_be_another_task():
    task = twins()
    scores = attribution_patching(LM, task, "L*.resid_post", source=pairs(), spans="all")
    assert scores.direction is None
    assert scores.options["source"] == "pairs"


def test_nothing_is_left_behind_and_progress_is_told():
    told = []
    with untouched(LM):
        attribution_patching(LM, twins(), "L*.head", batch_size=2, progress=lambda *now: told.append(now))
    assert told[-1] == (6, 6)


def test_what_has_no_gradient_is_refused():
    with pytest.raises(EditError, match="accuracy"):
        attribution_patching(LM, twins(metric="accuracy"), "L*.head")
    with pytest.raises(SiteError, match="no gradient reaches them"):
        attribution_patching(LM, twins(), "L*.resid_post.feature@sae")
