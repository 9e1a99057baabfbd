"""One probe: what it says of held-out groups, and its direction as an edit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, planted, twins
from tests.model.tinies import lm_of
from tests.tiny import FAMILIES
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.classifiers import KINDS, fit
from trimtab.locate.folds import crossed as crossed_
from trimtab.locate.folds import group_split, shuffled_labels, true_labels
from trimtab.locate.probes import LINEAR, features, fit_probe, probe_accuracy
from trimtab.locate.probing import probe
from trimtab.tasks.means import mean_difference
from trimtab.values.linear_probe import LinearProbe

TASK = pairs(24, groups=8)


@pytest.mark.parametrize("kind", KINDS)
def test_two_tasks(kind):
    lm = planted()
    train, test = pairs(16, groups=4, name="train"), pairs(8, groups=2, start=60, name="test")
    result = probe_accuracy(lm, train, test, "L1.resid_post", kind=kind, hidden=4)
    assert result.balanced_accuracy > 0.9
    assert abs(result.shuffled.mean() - 0.5) < 0.25
    assert result.selectivity == pytest.approx(result.balanced_accuracy - result.shuffled.mean())
    assert result.correct.shape == (8,)
    assert result.groups == test.groups
    if kind == "mlp":
        with pytest.raises(TrimtabError, match="no direction"):
            _ = result.direction
        return
    assert result.direction.shape == (32,)
    assert np.linalg.norm(result.direction) == pytest.approx(1, abs=1e-6)
    means = mean_difference(lm, test, "L1.resid_post")
    site = next(iter(means))
    right = means.positive[site] @ result.direction + result.bias > 0
    wrong = means.negative[site] @ result.direction + result.bias > 0
    np.testing.assert_allclose(result.correct, (1 + right - wrong.astype(float)) / 2)
    np.testing.assert_array_equal(result.probe.margin(means.positive[site]) > 0, right)


@pytest.mark.parametrize("kind", LINEAR)
def test_sides_that_do_not_differ_are_told_apart_by_chance(kind):
    """Every example is there both ways round, so that nothing read at any site can say which side is which."""
    lm = planted()

    def both_ways(*args, **options):
        task = pairs(*args, **options)
        return task.of([*task.examples, *(example.swapped() for example in task.examples)])

    train, test = both_ways(12, groups=4, name="train"), both_ways(6, groups=2, start=60, name="test")
    result = probe_accuracy(lm, train, test, "L1.resid_post", kind=kind, shuffles=1)
    assert result.balanced_accuracy == pytest.approx(0.5)


def test_a_probe_without_a_direction_says_why():
    """The first token of every row is the same, and so is what is read there."""
    result = probe_accuracy(
        planted(), pairs(8, name="train"), pairs(8, name="test", start=60), "L0.resid_pre", read="0", shuffles=1
    )
    assert result.probe is None
    assert result.balanced_accuracy == pytest.approx(0.5)
    with pytest.raises(TrimtabError, match=r"L0\.resid_pre has no direction: the two sides do not differ there at 0"):
        _ = result.direction


def test_a_direction_is_an_edit_of_its_site():
    lm, train, test = planted(), pairs(16, name="train"), pairs(8, name="test")
    result = probe_accuracy(lm, train, test, "L1.head[2]", kind="difference", shuffles=1)
    assert result.direction.shape == (1, 8)
    v = mean_difference(lm, train, "L1.head[2]").difference("L1.head[2]")
    np.testing.assert_allclose(result.direction, v / np.linalg.norm(v), atol=1e-5)
    np.testing.assert_allclose(result.probe.vector, v, atol=1e-5)


@pytest.mark.parametrize("kind", LINEAR)
def test_metrics_are_those_of_probe(kind):
    lm = planted()
    found = fit_probe(lm, TASK, "L0.resid_post", kind=kind, shuffles=2, seed=3)
    crossed = probe(lm, TASK, "L0.resid_post", kind=kind, seed=3)
    assert found.metrics["balanced accuracy"].mean == pytest.approx(crossed.mean().item())
    rng, x = np.random.default_rng(3), features(lm, TASK, lm.sites("L0.resid_post")[0], "text")
    null = [
        crossed_(x, shuffled_labels(24, rng), true_labels(24), group_split(TASK, 5, 3), lambda r, y: fit(r, y, kind))
        for _ in range(2)
    ]
    shuffled = found.metrics["with shuffled labels"]
    assert shuffled.mean == pytest.approx(np.mean(null))
    assert shuffled.n == 2, "draws, and not the examples that share them"
    train, test = pairs(16, groups=4, name="train"), pairs(8, groups=2, start=60, name="test")
    on = fit_probe(lm, train, "L0.resid_post", test=test, kind=kind, shuffles=2)
    assert on.metrics["balanced accuracy"].n == 8
    assert on.metrics["balanced accuracy"].mean == probe_accuracy(lm, train, test, "L0.resid_post").balanced_accuracy


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_moves_margins_by_the_scale_and_erasing_to_the_border(family):
    lm, task = lm_of(family), pairs(8, groups=4)
    site = ("L0.resid_post", "L1.head[2]", "L0.mlp_out")[len(family) % 3]
    found = fit_probe(lm, task, site, kind="difference", shuffles=0)
    prompts = lm.prompts([[5, 6, 7, 8], [9, 10]])
    plain, moved, erased = (
        found.margin(lm.run(prompts, site, edit).tokens(site).numpy())
        for edit in (None, found.edit(1.5), found.erase())
    )
    size = float(np.abs(plain).max())
    np.testing.assert_allclose(moved, plain + 1.5 * found.scale, atol=1e-4 * max(size, found.scale))
    np.testing.assert_allclose(erased, 0, atol=1e-4 * size)


def test_the_planted_direction_is_what_the_model_goes_by():
    """Erased behind the embedding, the two sides of the planted task look alike to a fresh probe further up."""
    lm = planted()
    found = fit_probe(lm, TASK, "embed", kind="difference", shuffles=0)
    assert abs(found.direction[:2] @ [1, -1]) / np.sqrt(2) > 0.9
    with lm.edited(found.erase()):
        after = probe(lm, TASK, "L1.neuron[7]", kind="difference").mean()
    before = probe(lm, TASK, "L1.neuron[7]", kind="difference").mean()
    assert after.max() < before.min()


def test_positions_of_the_site_are_those_of_the_edit():
    lm = lm_of("llama", torch.float64)
    found = fit_probe(lm, twins(), "L0.resid_post@subject", shuffles=0, kind="difference")
    assert found.read == "subject"
    assert str(found.edit().where) == "subject"


def test_save_and_load(tmp_path):
    found = fit_probe(planted(), TASK, "L1.resid_post", shuffles=1)
    found.save(tmp_path / "probe.safetensors")
    again = LinearProbe.load(tmp_path / "probe.safetensors")
    assert again == found
    assert again.metrics["balanced accuracy"].mean == found.metrics["balanced accuracy"].mean
    assert again.provenance.method == "fit_probe"


def test_errors():
    lm = planted()
    with pytest.raises(TaskError, match="share the group"):
        probe_accuracy(lm, TASK, TASK, "L0.resid_post")
    with pytest.raises(SiteError, match="one site"):
        probe_accuracy(lm, pairs(name="a"), pairs(name="b"), "L*.resid_post")
    with pytest.raises(TrimtabError, match='no probe "mlp"'):
        fit_probe(lm, TASK, "L0.resid_post", kind="mlp")
    with pytest.raises(TaskError, match="1 group"):
        fit_probe(lm, pairs(4, groups=1), "L0.resid_post")
