"""Principal components of differences: planted, voted on, and refused where nothing is left of them."""

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
from trimtab.steer.both_sides import BothSides
from trimtab.steer.reading_vector import principal_direction, reading_vector
from trimtab.tasks.means import mean_difference
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
TASK = questions(10)


def both(differences, base=None):
    differences = np.asarray(differences, dtype=np.float64)
    base = np.zeros_like(differences) if base is None else base
    return BothSides(Site.parse("L0.resid_post"), base + differences, base, differences.shape[1:])


def test_constant_differences_give_the_mean_difference():
    (edit,) = reading_vector(planted(), ending(), "L0.resid_pre", read="last")
    np.testing.assert_allclose(edit.value, PLANTED, atol=1e-6)
    assert (str(edit.site), edit.op) == ("L0.resid_pre", "add")


def test_constant_differences_are_refused_when_centred():
    for sites in ("L0.resid_pre", ["L0.resid_post", "L0.resid_pre"]):
        with pytest.raises(EditError, match=r"L0.resid_pre: the differences .* are constant, and centring takes their"):
            reading_vector(planted(), ending(), sites, read="last", centred=True)
    assert reading_vector(planted(), ending(), "L1.resid_post", read="last", centred=True)


def test_where_the_sides_do_not_differ_is_refused():
    with pytest.raises(EditError, match="embed: the means of the two sides are the same there"):
        reading_vector(LM, TASK, "embed", read="0")


def test_it_is_the_component_of_pairs_in_random_order():
    """The paper's recipe, differences in random order and then a centred PCA, agrees as the number of pairs grows."""
    from sklearn.decomposition import PCA

    drawn = rows(2 * np.eye(6)[0] + np.eye(6)[3], np.diag([0.5, 1, 0.2, 1.5, 1, 1]), n=4000)
    signs = np.random.default_rng(0).choice([-1, 1], 4000)
    paper = PCA(1).fit(drawn.differences * signs[:, None]).components_[0]
    ours = principal_direction(drawn)
    assert abs(cosine(paper, ours)) > 0.999
    assert abs(cosine(drawn.difference, ours)) < 0.999, "which is not the mean difference here"
    second = np.linalg.eigh(drawn.differences.T @ drawn.differences)[1][:, -2]
    assert abs(cosine(principal_direction(drawn, 1), second)) == pytest.approx(1, abs=1e-9)


def test_centred_is_the_component_of_scikit_learn():
    from sklearn.decomposition import PCA

    drawn = rows(3 * np.eye(5)[0], np.diag([0.1, 1, 0.2, 2, 1]), n=50)
    wanted = PCA(2).fit(drawn.differences).components_
    for i in (0, 1):
        assert abs(cosine(principal_direction(drawn, i, centred=True), wanted[i])) == pytest.approx(1, abs=1e-9)
    assert abs(cosine(principal_direction(drawn, 0), wanted[0])) < 0.5


def test_the_sign_is_what_most_pairs_say():
    """Three small differences outvote one large one; with as many voices on each side the mean decides."""
    few = both([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-9.0, 0.0]])
    assert principal_direction(few)[0] > 0.9
    np.testing.assert_allclose(np.linalg.norm(few.along(principal_direction(few))), 1.5, atol=1e-3)
    even = both([[1.0, 0.0], [1.0, 0.1], [-9.0, 0.0], [-1.0, -0.1]])
    assert principal_direction(even)[0] < -0.9


def test_the_length_is_how_far_the_means_lie_apart_along_it():
    for component in (0, 2):
        sites = ["L1.resid_post", "L0.head[1,3]", "L1.neuron[3,8,20]"]
        made = reading_vector(LM, TASK, sites, component=component)
        means = mean_difference(LM, TASK, sites)
        for edit, site in zip(made, sites, strict=True):
            value, raw = edit.value.astype(np.float64), means.difference(site)
            length = np.linalg.norm(value)
            assert value.shape == raw.shape
            assert length == pytest.approx(abs(float((raw * value).sum() / length)), rel=1e-4)
            assert length < np.linalg.norm(raw) * 1.0001
    assert made.name == "questions reading vector"


@pytest.mark.parametrize("options", [{}, {"component": 1}, {"centred": True}])
def test_swapped_sides_turn_it_round(options):
    sites = ["L1.resid_post", "L0.head"]
    ahead, back = (reading_vector(LM, task, sites, **options) for task in (TASK, swapped(TASK)))
    for one, other in zip(ahead, back, strict=True):
        np.testing.assert_allclose(one.value, -other.value, atol=1e-5)
        assert np.abs(one.value).max() > 1e-4


def test_components_there_are():
    known = {"component": 3, "read": "last"}
    for wrong in (2, -1, 3):
        with pytest.raises(EditError, match=rf"no component {wrong}; .* 2 examples have 2 here, 0 to 1"):
            reading_vector(LM, questions(2), "L1.resid_post", **known | {"component": wrong})
    with pytest.raises(EditError, match="have 1 here"):
        reading_vector(planted(), ending(), "L0.resid_pre", **known | {"component": 1})
    with pytest.raises(EditError, match="no sites were given"):
        reading_vector(LM, TASK, [])


def test_a_component_across_the_means_has_no_length():
    across = both([[5.0, 1.0], [-5.0, 1.0]])
    np.testing.assert_allclose(np.abs(principal_direction(across)), [1, 0], atol=1e-9)
    with pytest.raises(EditError, match="do not differ along this direction"):
        across.along(principal_direction(across))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm = lm_of(family)
    made = reading_vector(lm, TASK, SITES, where="-1:")
    for edit, site in zip(made, SITES, strict=True):
        whole = site.split("[")[0]
        moved, plain = (lm.run(IDS, whole, edit=each)[whole] for each in (edit, None))
        apart = (moved - plain)[:, -1, 1] if "head" in site else (moved - plain)[:, -1]
        wanted = torch.tensor(edit.value.reshape(1, -1)).expand_as(apart)
        torch.testing.assert_close(apart, wanted, atol=1e-4, rtol=1e-4)
        assert torch.equal(moved[:, :-1], plain[:, :-1])


def test_nothing_at_strength_zero_and_the_same_with_a_cache():
    is_nothing_at_zero(lambda lm, **options: reading_vector(lm, TASK, SITES, **options))
    is_cached_right(lambda lm, **options: reading_vector(lm, TASK, SITES, strength=40.0, **options))
