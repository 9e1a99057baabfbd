"""What a slope at one prompt cannot see, on transformers made by hand, and which method sees it all the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from tests.handbuilt import KEPT, bits, facts, logic, memory, opposed
from tests.locate.copier import COPIER, copier, cued
from tests.locate.mechanisms import INDUCTION, PREVIOUS, SLOPES, strengths
from tests.locate.tinytasks import numbers
from tests.locate.wired import asked, wired, written
from trimtab.locate.atp_star import atp_star
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.patching import patching
from trimtab.tasks.task import Task


def test_a_saturated_softmax_hides_the_head_that_its_keys_read():
    """L0.head[0] decides where L1.head[0] looks, and no small change of it does: only the way there tells."""
    lm, task = wired(), written()
    exact = strengths("patching", lm, task)
    assert exact[PREVIOUS] == pytest.approx(exact[INDUCTION], rel=1e-3)
    for method in SLOPES:
        assert strengths(method, lm, task)[PREVIOUS] < 1e-6 * exact[PREVIOUS]
    way = integrated_gradients(lm, task, "L*.head", spans="all", steps=100, batch_size=256)
    assert float(way.mean()[(*PREVIOUS, 0)]) == pytest.approx(exact[PREVIOUS], rel=1e-3)


def test_what_a_slope_sees_there_is_the_norm():
    """To first order the old token goes, and what stands beside it grows: the wrong answer, so that the sign is wrong
    too. In truth another token takes its place, and nothing grows."""
    lm, task = wired(), written()
    at = 5  # where the corrupt prompt's induction head looks
    clean, corrupt = (
        lm.run([getattr(e, side) for e in task.examples], ["L1.resid_pre"])["L1.resid_pre"][:, at]
        for side in ("clean", "corrupt")
    )
    stream = corrupt - corrupt.mean(-1, keepdim=True)
    growth = -((clean - corrupt) * stream).sum(-1) / stream.square().sum(-1)
    assert float(growth.min()) > 0.9
    slope = attribution_patching(lm, task, ["L0.head[0]"], spans="all").array[:, 0]
    np.testing.assert_allclose(slope, growth.numpy() * numbers(lm, task), rtol=0.05)
    assert (slope < 0).all()


@pytest.mark.parametrize(
    ("lm", "task", "part", "unit"),
    [(wired, asked, "q", 0), (wired, written, "k", 0), (copier, cued, "q", COPIER)],
    ids=["query", "keys", "rotated query"],
)
def test_a_recomputed_softmax_sees_what_its_slope_does_not(lm, task, part, unit):
    given = lm(), task(), f"L1.{part}[{unit}]"
    exact = float(patching(*given).mean()[0])
    assert abs(float(attribution_patching(*given).mean()[0])) < 1e-3 * exact
    assert float(atp_star(*given, grad_drop=False).mean()[0]) > 0.5 * exact
    assert float(atp_star(*given, fix=(), grad_drop=False).mean()[0]) < 1e-3 * exact


@pytest.mark.parametrize(("turned", "head"), [("A", 0), ("B", 1)])
def test_the_slope_of_xor_has_the_wrong_sign_where_one_bit_is_on(turned, head):
    """There another bit seems to help, as the first did; turned on, it undoes the answer. Where both are on, and along
    the way, the slope is right."""
    lm, task, place = logic("xor"), bits("xor", turned), f"L0.head[{head}]"
    exact = patching(lm, task, [place], direction="noise").array
    assert (exact > 1.0).all()
    assert (attribution_patching(lm, task, [place], direction="noise").array < -1.0).all()
    assert (attribution_patching(lm, task, [place], spans="all").array > 1.0).all()
    assert (integrated_gradients(lm, task, [place], spans="all").array > 1.0).all()


@pytest.mark.parametrize(("turned", "head"), [("A", 0), ("B", 1)])
def test_the_slope_of_and_is_flat_at_both_ends(turned, head):
    """Where one bit is off the neuron is silent; where both are on the last norm keeps its answer from growing."""
    lm, task, place = logic("and"), bits("and", turned), [f"L0.head[{head}]"]
    exact = patching(lm, task, place).array
    for direction in ("denoise", "noise"):
        slope = attribution_patching(lm, task, place, spans="all", direction=direction).array
        assert (np.abs(slope) < 0.25 * exact).all()
    way = integrated_gradients(lm, task, place, spans="all", steps=100, batch_size=256)
    np.testing.assert_allclose(way.array, exact, rtol=0.01)


def test_grad_drop_of_two_layers_is_blind_to_a_way_through_the_other_one():
    """It averages over the layers but its own: of two, over the one that carries the fact on."""
    lm, task, places = memory(), facts(), [f"L0.neuron[{neuron}]" for neuron in KEPT.values()]
    assert float(atp_star(lm, task, places).mean().max()) < 1e-3
    assert (attribution_patching(lm, task, places).mean() > 0.5).all()


def test_grad_drop_sees_paths_whose_slopes_cancel():
    """The head's straight way to the logits and its way through L1 cancel at the base, and not where it is patched."""
    given = bits("and", "A")
    task = Task("opposed", tuple(example.mislabelled() for example in given.examples), metric="logit_diff")

    def slope(straight):
        return float(attribution_patching(opposed(straight), task, ["L0.head[0]"], spans="all").mean()[0])

    assert slope(0.0) > 0 > slope(1.0)
    lm = opposed(brentq(slope, 0.0, 1.0, xtol=1e-12))
    exact, plain, dropped = (strengths(name, lm, task) for name in ("patching", "attribution patching", "AtP*"))
    assert exact[0, 0] > 0.5
    assert abs(plain[0, 0]) < 1e-6 * exact[0, 0]
    assert dropped[0, 0] > 0.2 * exact[0, 0]
    assert dropped[0, 0] > 5 * np.delete(dropped.ravel(), 0).max()
