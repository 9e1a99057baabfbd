"""Directions of probes: recovered where they were planted, of a length that is said, and from probes that exist."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions
from tests.model.tinies import IDS, lm_of
from tests.steer.planting import (
    PLANTED,
    SITES,
    cosine,
    ending,
    is_cached_right,
    is_nothing_at_zero,
    planted,
    rows,
    swapped,
)
from tests.tiny import FAMILIES
from trimtab.errors import EditError
from trimtab.locate.classifiers import fit
from trimtab.locate.probes import fit_probe
from trimtab.steer.both_sides import both_sides
from trimtab.steer.probe_direction import from_probe, probe_direction, weight_of
from trimtab.steer.vectors import difference_of_means
from trimtab.tasks.means import mean_difference
from trimtab.values.linear_probe import LinearProbe

LM = lm_of("llama", torch.float64)
TASK = questions(10)
KINDS = ("logistic", "mass_mean", "lda")


@pytest.mark.parametrize("probe", ["mass_mean", "lda"])
def test_a_constant_difference_is_recovered(probe):
    (edit,) = probe_direction(planted(), ending(), "L0.resid_pre", read="last", probe=probe)
    np.testing.assert_allclose(edit.value, PLANTED, atol=1e-6)


def test_each_kind_finds_its_own_direction_in_noise():
    """Gaussian rows of a known covariance Σ: mass-mean goes along v, the other two along Σ⁻¹v."""
    v, covariance = np.array([2.0, 2.0, 0, 0]), np.diag([4.0, 0.25, 1, 1])
    drawn = rows(v, covariance, n=4000)
    tilted = np.linalg.solve(covariance, v)
    assert cosine(weight_of(drawn, "mass_mean"), v) > 0.995
    assert cosine(weight_of(drawn, "lda"), tilted) > 0.995
    assert cosine(weight_of(drawn, "logistic", C=1.0), tilted) > 0.99
    assert cosine(v, tilted) < 0.8, "the two are far apart here"


@pytest.mark.parametrize(
    ("probe", "kind"), [("logistic", "logistic"), ("lda", "mass_mean"), ("mass_mean", "difference")]
)
def test_weights_are_those_of_the_classifiers_that_locate_has(probe, kind):
    (both,) = both_sides(LM, TASK, "L1.resid_post")
    wanted = fit(both.rows[:, None], np.repeat([1, 0], len(TASK)), kind).weight[0]
    assert cosine(weight_of(both, probe), wanted) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("probe", KINDS)
def test_the_length_is_how_far_the_means_lie_apart_along_it(probe):
    sites = ["L1.resid_post", "L0.head[1,3]", "L1.neuron[3,8,20]"]
    means = mean_difference(LM, TASK, sites)
    made = probe_direction(LM, TASK, sites, probe=probe, strength=1.5, where="-1:")
    for edit, site in zip(made, sites, strict=True):
        value, raw = edit.value.astype(np.float64), means.difference(site)
        length = np.linalg.norm(value)
        assert value.shape == raw.shape
        assert (raw * value).sum() / length == pytest.approx(length, rel=1e-4), "and towards the positive side"
        assert length < np.linalg.norm(raw) * 1.0001
        assert (edit.strength, str(edit.where)) == (1.5, "-1:")
    if probe == "mass_mean":
        assert all(
            np.allclose(a.value, b.value) for a, b in zip(made, difference_of_means(LM, TASK, sites), strict=True)
        )


@pytest.mark.parametrize("probe", KINDS)
def test_swapped_sides_turn_it_round(probe):
    sites = ["L1.resid_post", "L0.head"]
    ahead, back = (probe_direction(LM, task, sites, probe=probe) for task in (TASK, swapped(TASK)))
    for one, other in zip(ahead, back, strict=True):
        np.testing.assert_allclose(one.value, -other.value, atol=1e-3 * np.abs(one.value).max())


def test_what_cannot_be_is_refused():
    with pytest.raises(EditError, match='no probe "logistc" \\(did you mean "logistic"\\?\\)'):
        probe_direction(LM, TASK, "L1.resid_post", probe="logistc")
    with pytest.raises(EditError, match="C is the inverse of the penalty"):
        probe_direction(LM, TASK, "L1.resid_post", C=0.0)
    for probe in KINDS:
        with pytest.raises(EditError, match="embed: the means of the two sides are the same there"):
            probe_direction(LM, TASK, "embed", read="0", probe=probe)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm, probe = lm_of(family), KINDS[len(family) % 3]
    made, raw = probe_direction(lm, TASK, SITES, probe=probe), difference_of_means(lm, TASK, SITES)
    assert all(cosine(edit.value, mean.value) > 0 for edit, mean in zip(made, raw, strict=True))
    assert not torch.allclose(lm.run(IDS, edit=made).logits, lm.run(IDS).logits)


def test_nothing_at_strength_zero_and_the_same_with_a_cache():
    is_nothing_at_zero(lambda lm, **options: probe_direction(lm, TASK, SITES, **options))
    is_cached_right(lambda lm, **options: probe_direction(lm, TASK, SITES, probe="lda", strength=60.0, **options))


# A probe that has been fitted already
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["L1.resid_post", "L0.head[2]"])
def test_a_fitted_probe_is_the_probe_direction(site):
    probe = fit_probe(LM, TASK, site, shuffles=1)
    (ours,), (theirs,) = probe_direction(LM, TASK, site), from_probe(probe, strength=2.0, where="-1:")
    np.testing.assert_allclose(theirs.value, ours.value, atol=1e-5)
    assert (theirs.site, theirs.strength, str(theirs.where)) == (ours.site, 2.0, "-1:")
    assert from_probe(probe, site).edits == (probe.edit(),)


def test_a_probe_is_used_elsewhere():
    probe = LinearProbe("L1.resid_post@-1", PLANTED, 0.3, 2.0, task="truth")
    made = from_probe(probe, "L0.resid_post", where="1:3")
    assert [str(edit) for edit in made] == ["L0.resid_post@1:3 add array(32,)"]
    assert made.name == "truth probe"
    assert str(from_probe(probe, where="1:3").edits[0].where) == "-1", "positions on the site come first"
    moved, plain = (LM.run(IDS, "L0.resid_post", edit=edit)["L0.resid_post"] for edit in (made, None))
    apart = (moved - plain)[:, 1:3].numpy()
    np.testing.assert_allclose(apart, np.broadcast_to(2 * PLANTED / np.linalg.norm(PLANTED), apart.shape), atol=1e-6)
