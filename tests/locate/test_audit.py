"""An audit's numbers against patching everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import twins
from tests.model.tinies import lm_of
from trimtab.errors import TrimtabError
from trimtab.evaluate.verify import verify
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.audit import audit_scores
from trimtab.locate.patching import patching
from trimtab.values.audit import Audit
from trimtab.values.shares import share_interval

LM = lm_of("gpt2", torch.float64)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_with_the_whole_rest_it_counts_what_is_missed(direction):
    task = twins()
    screen = attribution_patching(LM, task, "L*.head", direction=direction)
    audit = audit_scores(LM, task, screen, k=4, sample=1000)
    exact = patching(LM, task, "L*.head", direction=direction)
    sizes = dict(zip(map(str, exact.sites()), np.abs(exact.mean()).ravel(), strict=True))
    best = [str(site) for site in screen.top(4)]
    weakest = min(sizes[site] for site in best)
    others = [size for site, size in sizes.items() if site not in best]
    assert list(audit.top.coords["site"]) == best
    assert audit.rest == len(others) == len(audit.sample.coords["site"])
    assert audit.threshold == pytest.approx(weakest)
    assert audit.missed == pytest.approx(np.mean(np.array(others) > weakest))
    low, high = audit.missed_interval
    assert 0 <= low <= audit.missed <= high <= 1


def test_a_perfect_screen_misses_nothing_and_has_no_error():
    task = twins()
    exact = patching(LM, task, "L*.head")
    audit = audit_scores(LM, task, exact, k=4, sample=1000)
    assert audit.missed == 0
    assert audit.error == pytest.approx(0, abs=1e-9)


def test_a_turned_screen_misses_much():
    task = twins()
    exact = patching(LM, task, "L*.head")
    worst = exact.with_(array=1 / (np.abs(exact.array) + 1e-9))
    assert audit_scores(LM, task, worst, k=4, sample=1000).missed > 0.5


def test_the_interval_is_that_of_verify():
    task = twins()
    screen = attribution_patching(LM, task, "L*.head")
    audit = audit_scores(LM, task, screen, k=4, sample=6, seed=3)
    checked = verify(LM, task, screen, k=4, audit=6, seed=3).audit
    for low, high, missed, n, rest in (
        (*audit.missed_interval, audit.missed, 6, audit.rest),
        (checked.low, checked.high, checked.fraction, 6, checked.rest),
    ):
        assert (low, high) == share_interval(round(missed * n), n, of=rest)
    whole = audit_scores(LM, task, screen, k=4, sample=1000)
    assert whole.missed_interval == (whole.missed, whole.missed)


def test_an_interval_by_hand():
    """Of Clopper and Pearson: 0 of n reaches up to 1 − 0.025^(1/n)."""
    assert share_interval(0, 10, of=100) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert share_interval(10, 10, of=100) == pytest.approx((0.025**0.1, 1.0))
    assert share_interval(3, 10, of=10) == (0.3, 0.3)


def test_signs_are_dropped_for_sizes_and_not_for_estimates_that_happen_to_be_positive():
    task = twins()
    exact = patching(LM, task, "L*.head")
    sizes = exact.with_(array=np.abs(np.broadcast_to(exact.mean(), exact.array.shape)))
    assert (exact.mean() < 0).any()
    wrong = audit_scores(LM, task, sizes, k=4, sample=1000)
    assert wrong.error > 0.1
    sized = sizes.with_(options={**sizes.options, "grad_drop": True})
    assert audit_scores(LM, task, sized, k=4, sample=1000).error == pytest.approx(0, abs=1e-9)


def test_samples_follow_their_seed_and_it_is_kept(tmp_path):
    task = twins()
    screen = attribution_patching(LM, task, "L*.head")
    drawn = [audit_scores(LM, task, screen, k=2, sample=3, seed=seed) for seed in (0, 0, 1)]
    labels = [audit.sample.coords["site"] for audit in drawn]
    assert labels[0] == labels[1] != labels[2]
    drawn[0].save(tmp_path / "audit.safetensors")
    kept = Audit.load(tmp_path / "audit.safetensors")
    assert kept.summary() == drawn[0].summary()
    assert "2 places verified, 3 sampled" in repr(kept)


def test_without_a_sample_nothing_is_said_of_the_rest():
    audit = audit_scores(LM, twins(), attribution_patching(LM, twins(), "L*.head"), k=2, sample=0)
    assert math.isnan(audit.missed)
    assert audit.summary()["missed"] is None
    assert "no sample" in repr(audit)


def test_what_cannot_be_asked_is_refused():
    screen = attribution_patching(LM, twins(), "L*.head")
    with pytest.raises(TrimtabError, match="at least 1 place"):
        audit_scores(LM, twins(), screen, k=0)
    with pytest.raises(TrimtabError, match="no place with a value"):
        audit_scores(LM, twins(), screen.with_(array=np.full_like(screen.array, np.nan)))
