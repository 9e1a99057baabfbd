"""The grid, its front, and the point that is picked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.tinies import passages, questions, vector
from tests.model.tinies import lm_of
from trimtab.errors import EditError
from trimtab.evaluate.effect import effects
from trimtab.evaluate.side_effects import side_effects
from trimtab.steer import grid, pareto_front, scale
from trimtab.steer import search as module
from trimtab.steer.search import Proposal, largest_effect_within
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import Estimate, Point, Search

LM = lm_of("llama", torch.float64)
TEXTS = passages(3)
TASK = questions(12)
TOWARDS = (LM.anatomy.unembed.weight[70] - LM.anatomy.unembed.weight[71]).detach().numpy()


def proposals():
    push = Intervention.of(Edit("L1.resid_post@-1:", "add", TOWARDS))
    return [
        Proposal("push", "L1.resid_post", "-1:", (0.5, 1.0, 4.0), lambda c: push * c),
        Proposal("away", "L1.resid_post", "-1:", (-1.0,), lambda c: push * c),
        Proposal("scale", "L0.head[1]", "all", (0, 2), lambda c: scale("L0.head[1]", c)),
        Proposal("none", "L0.mlp_out", "all", (), lambda c: Intervention()),
        Proposal("nothing", "L0.mlp_out", "all", (1.0,), lambda c: scale("L0.mlp_out", c)),
    ]


def found(limit=0.5, task=TASK):
    return grid(LM, task, proposals(), TEXTS, limit=limit, length=24)


def test_points_are_effects_and_side_effects():
    made, listed = found(), [p.at(c) for p in proposals() for c in p.coefficients]
    assert [(p.method, p.coefficient) for p in made.points] == [
        *(("push", 0.5), ("push", 1.0), ("push", 4.0), ("away", -1.0)),
        *(("scale", 0.0), ("scale", 2.0), ("nothing", 1.0)),
    ]
    for point, intervention in zip(made.points, listed, strict=True):
        changes = effects(LM, TASK, [intervention]).changes[0]
        assert point.effect.mean == pytest.approx(changes.mean(), abs=1e-8)
        assert (point.effect.low, point.effect.high) == pytest.approx(
            (Estimate.of(changes, TASK.groups).low, Estimate.of(changes, TASK.groups).high), abs=1e-8
        )
        kl = side_effects(LM, [intervention], TEXTS, length=24).kl.mean()
        assert point.kl == pytest.approx(kl, abs=1e-8)
        assert point.allowed is bool(kl <= 0.5)
    assert (made.unit, made.examples, made.limit) == ("nat", 12, 0.5)
    assert "0.5 nats" in made.rule


def test_the_one_that_is_picked_is_the_largest_that_may_be():
    made = found(math.inf)
    assert made.points[made.picked].coefficient == 4.0
    assert made.intervention == proposals()[0].at(4.0)
    costs = sorted(point.kl for point in made.points[:3])
    tight = found((costs[0] + costs[1]) / 2)
    assert tight.points[tight.picked].coefficient == 0.5
    assert tight.intervention == proposals()[0].at(0.5)
    front = {i for i, p in enumerate(made.points) if p.front}
    assert front == pareto_front(np.array([p.effect.mean for p in made.points]), np.array([p.kl for p in made.points]))
    assert not made.points[3].front


def test_where_nothing_may_be_picked_nothing_is():
    made = grid(LM, TASK, proposals()[1:2], TEXTS, limit=math.inf, length=24)
    assert (made.picked, made.intervention) == (None, Intervention())
    assert found(limit=1e-15).picked is None  # the one point that costs nothing does nothing


def test_a_measure_serves_as_a_task():
    assert found(task=measure(LM, TASK)) == found()


def test_a_search_is_kept_in_a_file(tmp_path):
    made = found()
    made.save(tmp_path / "search")
    again = Search.load(tmp_path / "search")
    assert again == made
    assert again.points[again.picked] == made.points[made.picked]


def test_progress_goes_up_to_all_points():
    told = []
    grid(LM, TASK, proposals()[:1], TEXTS, limit=1, length=24, progress=lambda *n: told.append(n))
    assert told == sorted(told)
    assert told[-1] == (6, 6)
    assert (3, 6) in told


@pytest.mark.parametrize("none", [[], proposals()[3:4]], ids=["no proposals", "no coefficients"])
def test_without_proposals_there_is_no_search(none):
    with pytest.raises(EditError, match="no proposals were given"):
        grid(LM, TASK, none, TEXTS, limit=1, length=24)


def test_numbers_that_are_missing_are_never_picked(monkeypatch):
    """A model that gives NaN under an intervention costs it the search, and the others go on."""
    real = module.side_effects

    def broken(*arguments, **options):
        cost = real(*arguments, **options)
        cost.kl[0] = np.nan
        return cost

    monkeypatch.setattr(module, "side_effects", broken)
    made = found(math.inf)
    assert math.isnan(made.points[0].kl)
    assert not made.points[0].allowed
    assert not made.points[0].front
    assert made.picked == 2


# The front and the pick
# ---------------------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_infinity=False), st.just(math.nan))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_the_front_is_what_no_other_beats(points):
    effect, cost = np.array([p[0] for p in points]), np.array([p[1] for p in points])

    def beats(i, j):
        return all((effect[i] >= effect[j], cost[i] <= cost[j])) and (effect[i], cost[i]) != (effect[j], cost[j])

    wanted = {
        j
        for j in range(len(points))
        if not (math.isnan(effect[j]) or math.isnan(cost[j])) and not any(beats(i, j) for i in range(len(points)))
    }
    assert pareto_front(effect, cost) == wanted
    there = [j for j in range(len(points)) if not (math.isnan(effect[j]) or math.isnan(cost[j]))]
    assert bool(wanted) == bool(there)
    if there:
        assert max(there, key=lambda j: (effect[j], -cost[j])) in wanted
        assert min(there, key=lambda j: (cost[j], -effect[j])) in wanted


def test_equal_points_are_on_the_front_together():
    assert pareto_front(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.2, 0.2, 0.3, 0.2])) == {0, 1}
    assert pareto_front(np.array([]), np.array([])) == set()


def point(mean, low, allowed=True, kl=0.1):
    return Point("m", "s", "all", 1.0, Estimate(mean, low, mean + 1, 9), kl, False, allowed)


ESTIMATES = st.one_of(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([-1.0, 0.0, 0.5, math.nan])),
    st.just((math.nan, math.nan)),
)


@given(st.lists(st.tuples(ESTIMATES, st.booleans(), st.sampled_from([0.1, 0.2])), max_size=8))
def test_the_pick_is_allowed_above_zero_and_the_largest(drawn):
    points = [point(*ends, allowed, kl) for ends, allowed, kl in drawn]
    picked = largest_effect_within(points)
    fit = [p for p in points if p.allowed and p.effect.low > 0]
    if not fit:
        assert picked is None
        return
    chosen = points[picked]
    assert chosen in fit
    assert chosen.effect.mean == max(p.effect.mean for p in fit)
    assert chosen.kl == min(p.kl for p in fit if p.effect.mean == chosen.effect.mean)


def test_ties_go_to_the_cheaper_and_then_to_the_first():
    assert largest_effect_within([point(1, 0.5, kl=0.3), point(1, 0.5, kl=0.1), point(1, 0.5, kl=0.1)]) == 1
    assert largest_effect_within([]) is None
    assert largest_effect_within([point(5, -0.1), point(4, 0.0), point(3, math.nan), point(9, 8, False)]) is None


def test_the_vector_is_a_direction():
    assert np.linalg.norm(vector()) == pytest.approx(3.0)
