"""Contrasts of activations: a planted unit is found, shuffled labels give nothing, and the formulas hold by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, planted, twins
from tests.model.tinies import lm_of
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.magnitude import activation_magnitude, magnitude_contrast
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import sides
from trimtab.values.site import Site

TASK = pairs()


def tossed(task, seed):
    """With sides swapped by independent coins: balanced ones lean a held-out direction against its group."""
    coins = np.random.default_rng(seed).integers(0, 2, len(task))
    return task.of([e.swapped() if coin else e for e, coin in zip(task.examples, coins, strict=True)])


def test_a_planted_neuron_is_found():
    scores = magnitude_contrast(planted(), TASK, "L*.neuron", statistic="difference")
    assert scores.top(1) == [Site.parse("L1.neuron[7]@text")]
    assert scores.dims == ("example", "layer", "neuron", "span")
    assert scores.groups == TASK.groups


@pytest.mark.parametrize("statistic", ["z", "difference", "auroc"])
@pytest.mark.parametrize("sites", ["L*.resid_post", "L*.head"])
def test_shuffled_labels_give_nothing(statistic, sites):
    lm, task = planted(), pairs(24, groups=8)
    true = magnitude_contrast(lm, task, sites, statistic=statistic).mean()
    null = np.mean([magnitude_contrast(lm, tossed(task, i), sites, statistic=statistic).mean() for i in range(16)], 0)
    assert true.max() > (0.35 if statistic == "auroc" else 1)
    assert np.abs(null).max() < 0.4 * true.max()


def test_scalars_by_hand():
    lm = lm_of("llama", torch.float64)
    made = sides(lm, TASK)
    means = []
    for prompts in made:
        run = lm.run(prompts, "L1.neuron")
        means.append(
            np.stack([run["L1.neuron"][i, c].mean(0).numpy() for i, c in enumerate(prompts.positions("text"))])
        )
    p, n = means
    s = np.sqrt((p.var(0, ddof=1) + n.var(0, ddof=1)) / 2)
    wanted = {
        "difference": p - n,
        "z": (p - n) / s,
        "auroc": ((p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])).mean(1) - 0.5,
    }
    for statistic, values in wanted.items():
        got = magnitude_contrast(lm, TASK, "L1.neuron", statistic=statistic).array[:, 0, :, 0]
        np.testing.assert_allclose(got, values, atol=1e-4)


def test_vectors_by_hand():
    lm, task = lm_of("llama", torch.float64), pairs(6, groups=3)
    made = sides(lm, task)
    p, n = (lm.run(prompts, "L1.resid_post@last")["L1.resid_post@last"].numpy() for prompts in made)
    got = magnitude_contrast(lm, task, "L1.resid_post", spans="last", statistic="difference").array[:, 0, 0]
    for i, group in enumerate(task.groups):
        others = [j for j, other in enumerate(task.groups) if other != group]
        u = (p - n)[others].mean(0)
        assert got[i] == pytest.approx((p - n)[i] @ u / np.linalg.norm(u), abs=1e-4)


def test_batches_and_padding_make_no_difference():
    lm = lm_of("llama", torch.float64)
    whole, single = (magnitude_contrast(lm, TASK, "L*.head", batch_size=size).array for size in (16, 1))
    np.testing.assert_allclose(whole, single, rtol=1e-4, atol=1e-5)


def test_candidates_equal_the_map():
    lm = lm_of("llama", torch.float64)
    task = twins()
    grid = magnitude_contrast(lm, task, "L*.head", statistic="difference")
    alone = magnitude_contrast(lm, task, ["L0.head[2]@subject", "L1.head[3]@end"], statistic="difference")
    np.testing.assert_allclose(alone.array[:, 0], grid.array[:, 0, 2, 0], atol=1e-6)
    np.testing.assert_allclose(alone.array[:, 1], grid.array[:, 1, 3, 1], atol=1e-6)


def test_one_pass_serves_every_kind():
    lm = lm_of("llama", torch.float64)
    means = mean_difference(lm, TASK, ["L*.head", "L*.mlp_out", "L0.neuron@last"])
    for sites in ("L*.head", "L*.mlp_out", ["L1.head[2]"]):
        given = magnitude_contrast(lm, TASK, sites, differences=means)
        np.testing.assert_array_equal(given.array, magnitude_contrast(lm, TASK, sites).array)
    assert magnitude_contrast(lm, TASK, "L0.neuron", spans="last", differences=means).array.any()
    with pytest.raises(SiteError, match="read them at -1"):
        magnitude_contrast(lm, TASK, "L*.head", spans="last", differences=means)
    with pytest.raises(TaskError, match="other examples"):
        magnitude_contrast(lm, pairs(6), "L*.head", differences=means)


def test_units_that_do_not_vary_are_zero_or_undefined():
    lm = planted()
    scores = magnitude_contrast(lm, TASK, "embed", spans="0")
    assert np.isnan(scores.array).all() or np.allclose(scores.array, 0)


def test_one_group_is_refused():
    with pytest.raises(TaskError, match="group"):
        magnitude_contrast(lm_of("llama", torch.float64), pairs(4, groups=1), "L0.resid_post")
    with pytest.raises(TrimtabError, match='did you mean "auroc"'):
        magnitude_contrast(lm_of("llama", torch.float64), TASK, "L0.resid_post", statistic="auroc_")


def test_activation_magnitude_by_hand():
    lm = lm_of("llama", torch.float64)
    prompts = sides(lm, TASK).positive
    run = lm.run(prompts, ["L1.neuron", "L1.head"])
    rows = prompts.positions("text")
    neuron = [run["L1.neuron"][i, c] for i, c in enumerate(rows)]
    head = [run["L1.head"][i, c] for i, c in enumerate(rows)]
    got = activation_magnitude(lm, TASK, "L1.neuron").array[:, 0, :, 0]
    np.testing.assert_allclose(got, torch.stack([x.abs().mean(0) for x in neuron]).numpy(), rtol=1e-5)
    got = activation_magnitude(lm, TASK, "L1.head", statistic="max_abs").array[:, 0, :, 0]
    np.testing.assert_allclose(got, torch.stack([x.abs().amax((0, 2)) for x in head]).numpy(), rtol=1e-5)
    got = activation_magnitude(lm, TASK, "L1.neuron", statistic="frequency", threshold=0.1).array[:, 0, :, 0]
    np.testing.assert_allclose(got, torch.stack([(x > 0.1).double().mean(0) for x in neuron]).numpy(), rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2", "falcon-40b"])
@torch.no_grad()
def test_what_is_written_by_hand(family):
    """Each head's and neuron's activation through its own rows of the projection, at every position of the span."""
    lm = lm_of(family, torch.float64)
    prompts = sides(lm, TASK).positive
    block = lm.anatomy.blocks[1]
    run = lm.run(prompts, ["L1.head", "L1.neuron"])
    for name, linear, d in (("head", block.o, lm.anatomy.d_head), ("neuron", block.down, 1)):
        x = run[f"L1.{name}"].flatten(2)
        nothing = linear(torch.zeros_like(x))
        units = x.shape[-1] // d
        for unit in (0, units - 1):
            only = torch.zeros_like(x)
            only[..., unit * d : (unit + 1) * d] = x[..., unit * d : (unit + 1) * d]
            norms = (linear(only) - nothing).norm(dim=-1)
            hand = [float(norms[i, columns].mean()) for i, columns in enumerate(prompts.positions("text"))]
            found = activation_magnitude(lm, TASK, f"L1.{name}", statistic="written", batch_size=3)
            np.testing.assert_allclose(found.array[:, 0, unit, 0], hand, rtol=1e-6)
            eye = torch.zeros(d, x.shape[-1], dtype=x.dtype)
            eye[range(d), range(unit * d, unit * d + d)] = 1
            weight = linear(eye[None])[0] - linear(torch.zeros_like(eye)[None])[0]
            alone = activation_magnitude(lm, TASK, f"L1.{name}", statistic="weight")
            np.testing.assert_allclose(alone.array[:, 0, unit, 0], float(weight.norm()), rtol=1e-6)


def test_the_stream_is_its_own_norm_and_queries_write_nothing():
    lm = lm_of("llama", torch.float64)
    found = activation_magnitude(lm, TASK, "L0.attn_out", statistic="written", spans="last")
    x = lm.run(sides(lm, TASK).positive, "L0.attn_out@last")["L0.attn_out@last"].reshape(len(TASK), -1)
    np.testing.assert_allclose(found.array[:, 0, 0], x.norm(dim=-1), rtol=1e-9)
    with pytest.raises(SiteError, match="writes nothing"):
        activation_magnitude(lm, TASK, "L0.q", statistic="written")
    with pytest.raises(SiteError, match="no unit with weights"):
        activation_magnitude(lm, TASK, "L0.attn_out", statistic="weight")
