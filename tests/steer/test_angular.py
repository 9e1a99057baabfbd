"""Angular steering: lengths are kept, angles are reached, planes are those that were planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions
from tests.model.tinies import IDS, RAGGED, lm_of, real
from tests.steer.planting import PLANTED, cosine, ending, is_cached_right, is_nothing_at_zero, planted, swapped
from tests.tiny import FAMILIES
from trimtab.errors import EditError, SiteError
from trimtab.steer.angular import angular_steering
from trimtab.steer.both_sides import both_sides

LM = lm_of("llama", torch.float64)
TASK = questions(10)
STREAM = ["L0.resid_pre", "L0.resid_post", "L1.resid_post"]


def parts(x, rotation):
    """The coordinates of activations in the plane of a rotation."""
    basis = torch.tensor(np.stack([rotation.b1, rotation.b2]), dtype=x.dtype)
    return (x @ basis.T).unbind(-1)


@pytest.mark.parametrize("angle", [0.0, 37.0, 90.0, 180.0, -120.0])
@pytest.mark.parametrize("prompts", [IDS, RAGGED])
def test_lengths_are_kept_and_the_angle_is_reached(angle, prompts):
    made = angular_steering(LM, TASK, "L1.resid_post", angle=angle)
    (edit,) = made
    made_of = LM.prompts(prompts)
    x, y = (real(made_of, LM.run(made_of, "L1.resid_post", edit=each)["L1.resid_post"]) for each in (None, made))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    (p, q), (new_p, new_q) = parts(x, edit.value), parts(y, edit.value)
    radius = torch.hypot(p, q)
    torch.testing.assert_close(new_p, radius * np.cos(np.deg2rad(angle)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new_q, radius * np.sin(np.deg2rad(angle)), rtol=1e-5, atol=1e-5)
    b1, b2 = (torch.tensor(b, dtype=x.dtype) for b in (edit.value.b1, edit.value.b2))
    rest = [z - u[..., None] * b1 - v[..., None] * b2 for z, u, v in ((x, p, q), (y, new_p, new_q))]
    torch.testing.assert_close(*rest, rtol=1e-5, atol=1e-5)


def test_the_planted_direction_is_the_first_and_the_given_one_the_second():
    other = np.random.default_rng(5).standard_normal(32)
    (edit,) = angular_steering(planted(), ending(), "L0.resid_pre", read="last", second=other)
    assert cosine(edit.value.b1, PLANTED) == pytest.approx(1, abs=1e-6)
    across = other - (other @ edit.value.b1) * edit.value.b1
    assert abs(cosine(edit.value.b2, across)) == pytest.approx(1, abs=1e-5)


def test_constant_differences_have_no_second_direction_of_their_own():
    with pytest.raises(EditError, match=r"the second direction \(examples\) does not leave the line of the first"):
        angular_steering(planted(), ending(), "L0.resid_pre", read="last")
    with pytest.raises(EditError, match=r"second direction \(as given\) does not leave the line"):
        angular_steering(planted(), ending(), "L0.resid_pre", read="last", second=-3 * PLANTED)


def test_one_plane_for_all_sites_is_the_paper_s():
    from sklearn.decomposition import PCA

    found = both_sides(LM, TASK, STREAM)
    units = np.stack([both.difference / np.linalg.norm(both.difference) for both in found])
    cosines = [np.mean([cosine(one, other) for other in units]) for one in units]
    first, second = units[int(np.argmax(cosines))], PCA(1).fit(units).components_[0]
    second = second - (second @ first) * first
    made = angular_steering(LM, TASK, STREAM, angle=20)
    assert len({edit.value for edit in made}) == 1
    assert cosine(made.edits[0].value.b1, first) == pytest.approx(1, abs=1e-6)
    assert abs(cosine(made.edits[0].value.b2, second)) == pytest.approx(1, abs=1e-6)
    assert made.edits[0].value.angle == pytest.approx(np.deg2rad(20))
    assert made.name == "questions at 20°"


def test_a_plane_for_each_site():
    for second, sites in (("layers", STREAM), ("examples", STREAM[1:])):
        made, found = angular_steering(LM, TASK, sites, plane="own", second=second), both_sides(LM, TASK, sites)
        for edit, both in zip(made, found, strict=True):
            assert cosine(edit.value.b1, both.difference) == pytest.approx(1, abs=1e-6)
            assert both.rows.mean(0) @ edit.value.b2 >= 0, "b2 points to where activations are"
    heads = angular_steering(LM, TASK, "L1.head[*]")
    assert [str(edit.site) for edit in heads] == [f"L1.head[{i}]" for i in range(4)]
    assert heads == angular_steering(LM, TASK, "L1.head[*]", plane="own", second="examples")


@pytest.mark.parametrize("angle", [0.0, 50.0, 180.0])
def test_swapped_sides_mirror_the_angle(angle):
    ahead = angular_steering(LM, TASK, STREAM[1:], angle=angle)
    back = angular_steering(LM, swapped(TASK), STREAM[1:], angle=180 - angle)
    torch.testing.assert_close(LM.run(IDS, edit=ahead).logits, LM.run(IDS, edit=back).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(LM.run(IDS, edit=ahead).logits, LM.run(IDS).logits, atol=1e-2)


def test_strength_is_a_share_of_the_way():
    half, whole = (angular_steering(LM, TASK, "L1.resid_post", angle=30, strength=s) for s in (0.5, 1.0))
    x, y, z = (LM.run(IDS, "L1.resid_post", edit=each)["L1.resid_post"] for each in (None, half, whole))
    a, b, c = (torch.atan2(*reversed(parts(each, whole.edits[0].value))) for each in (x, y, z))
    turn = torch.remainder(c - a + np.pi, 2 * np.pi) - np.pi
    torch.testing.assert_close(torch.remainder(b - a + np.pi, 2 * np.pi) - np.pi, turn / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


def test_at_a_right_angle_nothing_is_left_along_the_direction():
    made = angular_steering(LM, TASK, "L1.resid_post", angle=90)
    y = LM.run(IDS, "L1.resid_post", edit=made)["L1.resid_post"]
    along, _ = parts(y, made.edits[0].value)
    assert float((along.abs() / y.norm(dim=-1)).max()) < 1e-6


def test_what_cannot_be_is_refused():
    with pytest.raises(
        EditError, match=r"L1.head: a rotation acts on one vector, and these are 4 heads.*L1.head\[\*\]"
    ):
        angular_steering(LM, TASK, "L1.head")
    for options in ({"plane": "shared"}, {"second": "layers"}):
        with pytest.raises(SiteError, match="a plane of one is none of another"):
            angular_steering(LM, TASK, ["L0.head[1]", "L1.head[1]"], **options)
    with pytest.raises(EditError, match="plane is one of shared, own, got 'share' \\(did you mean \"shared\""):
        angular_steering(LM, TASK, STREAM, plane="share")
    with pytest.raises(EditError, match=r"second must have shape \(32,\)"):
        angular_steering(LM, TASK, "L1.resid_post", second=np.ones(8))
    with pytest.raises(EditError, match="the angle of angular_steering must be finite"):
        angular_steering(LM, TASK, "L1.resid_post", angle=np.nan)
    with pytest.raises(EditError, match=r"\(layers\) does not leave the line"):
        angular_steering(LM, TASK, "L1.resid_post", second="layers")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm = lm_of(family)
    for site in ("L0.resid_post", "L1.head[1]"):
        made, whole = angular_steering(lm, TASK, site, angle=10), site.split("[")[0]
        x, y = (lm.run(IDS, whole, edit=each)[whole] for each in (None, made))
        torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(x, y, atol=1e-3)


def test_nothing_at_strength_zero_and_the_same_with_a_cache():
    is_nothing_at_zero(lambda lm, **options: angular_steering(lm, TASK, [*STREAM, "L1.mlp_out"], **options))
    is_cached_right(lambda lm, **options: angular_steering(lm, TASK, STREAM, **options))
