"""The front of several objectives by brute force, and the rules on points made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.values.estimate import Estimate
from trimtab.values.front import Rule, objectives, pareto_front
from trimtab.values.search import Point

NUMBERS = st.one_of(st.integers(-2, 2).map(float), st.just(math.nan))


@given(
    st.integers(1, 3).flatmap(lambda k: st.lists(st.lists(NUMBERS, min_size=k, max_size=k), min_size=1, max_size=10))
)
def test_the_front_is_what_no_other_beats(rows):
    def beats(one, other):
        return all(a >= b for a, b in zip(one, other, strict=True)) and one != other

    known = [row for row in rows if not any(map(math.isnan, row))]
    wanted = {
        i
        for i, row in enumerate(rows)
        if not any(map(math.isnan, row)) and not any(beats(other, row) for other in known)
    }
    assert pareto_front(np.array(rows)) == wanted


def test_nothing_has_no_front():
    assert pareto_front(np.zeros((0, 3))) == set()


def point(mean, kl, low=0.1, lost=None, front=True):
    capability = None if lost is None else Estimate(lost, lost - 0.1, lost + 0.1, 9)
    return Point("m", "L0.resid_post", "all", 1.0, Estimate(mean, low, mean + 1, 9), kl, front, True, capability)


def test_objectives_turn_costs_round():
    np.testing.assert_array_equal(objectives([point(1, 0.2), point(2, 0.3)]), [[1, -0.2], [2, -0.3]])
    both = objectives([point(1, 0.2, lost=0.1), point(2, 0.3)])
    np.testing.assert_array_equal(both, [[1, -0.2, -0.1], [2, -0.3, np.nan]])


POINTS = [point(1.0, 0.1), point(2.0, 0.2), point(2.5, 0.6), point(9.0, 0.15, low=-0.1), point(2.0, 0.2, lost=0.1)]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("largest_effect_within:0.3", 1),
        ("largest_effect_within:0.1", 0),
        ("largest_effect_within:0.05", None),
        ("largest_effect_within:1", 2),
        ("least_cost_for:1.5", 1),
        ("least_cost_for:0", 0),
        ("least_cost_for:2.1", 2),
        ("least_cost_for:3", None),
        ("knee", 1),
        ("largest-effect-within: 0.3", 1),
    ],
)
def test_rules_pick(rule, wanted):
    """An interval that reaches zero is never picked; of equals, the one that loses less."""
    assert Rule.parse(rule).choose(POINTS) == wanted


def test_the_knee_is_where_effect_is_furthest_above_kl():
    """Effects spread to 0, 0.8, 1 and KLs to 0, 0.25, 1: 0.55 above at the second."""
    points = [point(1.0, 0.1), point(1.8, 0.2), point(2.0, 0.5), point(1.7, 0.15, front=False)]
    assert Rule("knee").choose(points) == 1
    assert Rule("knee").choose(points[:1]) == 0
    assert Rule("knee").choose([]) is None


@pytest.mark.parametrize(
    "text", ["", "best", "knee:2", "largest_effect_within", "least_cost_for:much", "least_cost_for:nan"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(TrimtabError, match="rule"):
        Rule.parse(text)


def test_a_rule_is_written_as_it_is_read():
    for text in ("largest_effect_within:0.3", "least_cost_for:1.5", "knee"):
        assert str(Rule.parse(text)) == text
    assert "0.3 nats" in Rule.parse("largest_effect_within:0.3").sentence
