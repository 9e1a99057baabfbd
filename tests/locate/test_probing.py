"""Probes: near one for what is planted, near chance for shuffled labels, never trained on what they are tested on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, planted
from tests.model.tinies import lm_of
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.probing import fit, probe, probe_accuracy
from trimtab.tasks.means import mean_difference

TASK = pairs(24, groups=8)
KINDS = ["logistic", "difference", "mass_mean"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_read_and_shuffled_labels_are_not(kind):
    lm = planted()
    true = probe(lm, TASK, "L*.resid_post", kind=kind)
    assert true.mean().min() > 0.9
    assert set(np.unique(true.array)) <= {0.0, 0.5, 1.0}
    null = [probe(lm, TASK.shuffled(seed), "L*.resid_post", kind=kind).mean() for seed in range(6)]
    assert np.abs(np.mean(null, axis=0) - 0.5).max() < 0.2


def test_maps_of_units_have_a_probe_each():
    scores = probe(planted(), TASK, "L1.neuron", kind="difference")
    assert scores.dims == ("example", "layer", "neuron", "span")
    assert scores.mean()[0, 7, 0] > 0.9
    heads = probe(planted(), TASK, "L*.head")
    alone = probe(planted(), TASK, ["L1.head[2]"])
    np.testing.assert_allclose(alone.array[:, 0], heads.array[:, 1, 2, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_two_tasks(kind):
    lm = planted()
    train, test = pairs(16, groups=4, name="train"), pairs(8, groups=2, start=60, name="test")
    result = probe_accuracy(lm, train, test, "L1.resid_post", kind=kind)
    assert result.balanced_accuracy > 0.9
    assert abs(result.shuffled.mean() - 0.5) < 0.25
    assert result.selectivity == pytest.approx(result.balanced_accuracy - result.shuffled.mean())
    assert result.direction.shape == (32,)
    assert np.linalg.norm(result.direction) == pytest.approx(1, abs=1e-6)
    assert result.correct.shape == (8,)
    assert result.groups == test.groups
    means = mean_difference(lm, test, "L1.resid_post")
    site = next(iter(means))
    right = means.positive[site] @ result.direction + result.bias > 0
    wrong = means.negative[site] @ result.direction + result.bias > 0
    np.testing.assert_allclose(result.correct, (1 + right - wrong.astype(float)) / 2)


def test_a_direction_is_an_edit_of_its_site():
    lm, train, test = planted(), pairs(16, name="train"), pairs(8, name="test")
    result = probe_accuracy(lm, train, test, "L1.head[2]", kind="difference", shuffles=1)
    assert result.direction.shape == (1, 8)
    v = mean_difference(lm, train, "L1.head[2]").difference("L1.head[2]")
    np.testing.assert_allclose(result.direction, v / np.linalg.norm(v), atol=1e-5)


def test_mass_mean_is_the_optimal_direction_of_a_gaussian():
    rng = np.random.default_rng(0)
    mixing = np.array([[2.0, 0.0], [1.9, 0.3]])
    p, n = (rng.standard_normal((4000, 1, 2)) @ mixing.T + shift for shift in ([1.0, 0.0], [-1.0, 0.0]))
    weight, bias = fit(p, n, "mass_mean", 1.0)
    best = np.linalg.solve(mixing @ mixing.T, np.array([2.0, 0.0]))
    assert weight[0] @ best / np.linalg.norm(weight[0]) / np.linalg.norm(best) > 0.99
    assert abs(bias[0]) < 0.2 * np.linalg.norm(weight[0])


def test_batches_and_padding_make_no_difference():
    lm = lm_of("llama", torch.float64)
    one, single = (probe(lm, TASK, "L*.resid_post", kind="difference", batch_size=b).array for b in (16, 1))
    np.testing.assert_allclose(one, single)


def test_errors():
    lm = planted()
    with pytest.raises(TaskError, match="1 group"):
        probe(lm, pairs(4, groups=1), "L0.resid_post")
    with pytest.raises(TaskError, match="share the group"):
        probe_accuracy(lm, TASK, TASK, "L0.resid_post")
    with pytest.raises(SiteError, match="one site"):
        probe_accuracy(lm, pairs(name="a"), pairs(name="b"), "L*.resid_post")
    with pytest.raises(TrimtabError, match='did you mean "logistic"'):
        probe(lm, TASK, "L0.resid_post", kind="logistics")
