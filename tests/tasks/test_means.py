"""Means of the two sides, against reading the runs by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of, untouched
from trimtab.errors import SiteError, TaskError
from trimtab.tasks import means as module
from trimtab.tasks.means import batches, mean_difference, pooled
from trimtab.tasks.measure import sides
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
TASK = pairs()


def by_hand(prompts, site, scope):
    run = LM.run(prompts, site)
    return np.stack([run[site][i, c].mean(0).numpy() for i, c in enumerate(prompts.positions(scope))])


@pytest.mark.parametrize("site", ["embed", "L1.resid_post", "L0.head", "L1.k", "L1.neuron", "L0.mlp_out"])
@pytest.mark.parametrize("read", ["text", "last", "all", "1:3"])
def test_means_are_those_of_the_scopes_tokens(site, read):
    means = mean_difference(LM, TASK, site, read=read)
    made = sides(LM, TASK)
    key = Site.parse(site)
    for side, prompts in zip((means.positive, means.negative), made, strict=True):
        np.testing.assert_allclose(side[key], by_hand(prompts, site, read), atol=1e-5)
        assert side[key].dtype == np.float32
    np.testing.assert_allclose(means.difference(site), means.pairs(site).mean(0), atol=1e-6)


def test_positions_and_units_of_a_site():
    task = twins()
    means = mean_difference(LM, task, ["L1.head[2]@subject", "L0.neuron[3,17]", "L0.mlp_out"])
    assert means.read == "-1"
    wanted = by_hand(sides(LM, task).positive, "L1.head", "subject")[:, 2:3]
    np.testing.assert_allclose(means.positive[Site.parse("L1.head[2]@subject")], wanted, atol=1e-5)
    wanted = by_hand(sides(LM, task).negative, "L0.neuron", "last")[:, [3, 17]]
    np.testing.assert_allclose(means.negative[Site.parse("L0.neuron[3,17]")], wanted, atol=1e-5)
    np.testing.assert_array_equal(means.pairs("L0.mlp_out[4,5]"), means.pairs("L0.mlp_out")[:, [4, 5]])
    np.testing.assert_array_equal(means.pairs("L0.mlp_out@end"), means.pairs("L0.mlp_out"))
    with pytest.raises(SiteError, match="was not read"):
        means.difference("L1.mlp_out")


def test_pools_are_those_of_the_tokens():
    prompts, site = sides(LM, TASK).positive, Site.parse("L0.mlp_out@text")
    run = LM.run(prompts, "L0.mlp_out")
    rows = [run["L0.mlp_out"][i, c].numpy() for i, c in enumerate(prompts.positions("text"))]
    for pool, made in {
        "mean": lambda x: x.mean(0),
        "mean_abs": lambda x: np.abs(x).mean(0),
        "max": lambda x: x.max(0),
        "max_abs": lambda x: np.abs(x).max(0),
        "frequency": lambda x: (x > 0.1).mean(0),
    }.items():
        found = pooled(LM, prompts, [site], pool=pool, threshold=0.1 if pool == "frequency" else 0.0)[site]
        np.testing.assert_allclose(found, np.stack([made(x) for x in rows]), atol=1e-6)


def test_signs_swap_the_sides():
    means = mean_difference(LM, TASK, "L1.head")
    signs = np.where(np.arange(len(TASK)) % 3 == 0, -1.0, 1.0)
    turned = mean_difference(LM, TASK, "L1.head", signs=signs)
    swapped = TASK.of([e.swapped() if s < 0 else e for e, s in zip(TASK.examples, signs, strict=True)])
    again = mean_difference(LM, swapped, "L1.head")
    for other in (turned, means.flipped(signs)):
        np.testing.assert_allclose(other.difference("L1.head"), again.difference("L1.head"), atol=1e-6)
    np.testing.assert_allclose(means.difference("L1.head", signs), again.difference("L1.head"), atol=1e-6)
    with pytest.raises(TaskError, match="1 or −1"):
        means.difference("L1.head", np.zeros(len(TASK)))


def test_batches_and_padding_make_no_difference(monkeypatch):
    whole = mean_difference(LM, TASK, "L*.head")
    with untouched(LM):
        single = mean_difference(LM, TASK, "L*.head", batch_size=1)
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    cut = mean_difference(LM, TASK, "L*.head")
    for other in (single, cut):
        for site in whole:
            np.testing.assert_allclose(other.pairs(site), whole.pairs(site), atol=1e-5)


def test_batches_hold_every_row_once_and_no_more_than_fits(monkeypatch):
    prompts = sides(LM, TASK).positive
    for size in (1, 5, 100):
        rows = list(batches(prompts, 64, size))
        assert sorted(row for part in rows for row in part) == list(range(len(TASK)))
        assert max(map(len, rows)) <= size
    monkeypatch.setattr(module, "AT_ONCE", 64 * 20)
    for part in batches(prompts, 64, 100):
        assert len(part) == 1 or len(part) * max(len(prompts.tokens[row]) for row in part) <= 20
    with pytest.raises(TaskError, match="batch_size"):
        next(batches(prompts, 64, 0))


def test_spans_without_tokens_and_attention_are_refused():
    prompts = sides(LM, TASK).positive
    empty = prompts.with_spans(nothing=tuple(() for _ in range(len(TASK))))
    with pytest.raises(TaskError, match="covers no token"):
        pooled(LM, empty, [Site.parse("L0.mlp_out@nothing")])
    with pytest.raises(SiteError, match="no units"):
        mean_difference(LM, TASK, "L*.pattern")


def test_progress_counts_both_sides():
    told = []
    mean_difference(LM, TASK, "L0.mlp_out", batch_size=4, progress=lambda *now: told.append(now))
    assert told[-1] == (24, 24)
