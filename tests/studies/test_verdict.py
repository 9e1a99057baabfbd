"""The verdict follows from the numbers: every way it can go, and that each number said is one that was found."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.studies.verdict import conclude
from trimtab.values.edit import Intervention
from trimtab.values.findings import (
    Candidate,
    Check,
    Control,
    Entangled,
    Estimate,
    Evaluation,
    Point,
    Search,
    Validation,
)
from trimtab.values.outcome import Outcome

UP, NONE = Estimate(2.0, 1.5, 2.5, 20), Estimate(0.1, -0.2, 0.4, 20)


def check(works):
    return Check(Candidate("L3.resid_post", "resid_post", "shift", 1.0, 1), UP, NONE, UP, works)


def validation(*works):
    return Validation(tuple(map(check, works)), "patched", "nat", 10)


def point(effect=UP, kl=0.1, limit=0.3):
    return Point("difference_of_means", "L3.resid_post", "all", 1.5, effect, kl, True, kl <= limit)


def search(*points, picked=None):
    edit = Intervention() if picked is None else Intervention.of("L3.resid_post add 1")
    return Search(points, "the rule", 0.3, "nat", picked, edit, 10)


def control(name, beaten):
    return Control(name, "", np.zeros((20, 4)), np.full(20, 0.1), UP if beaten else NONE, 0.04, beaten)


def evaluation(effect=UP, beaten=(True, True, True), wrong_way=0.0, **more):
    before = np.zeros(4)
    names = ("random directions", "shuffled labels", "random sites")
    return Evaluation(
        effect=effect,
        wrong_way=wrong_way,
        kl=Estimate(0.12, 0.1, 0.14, 28),
        neutral_tokens=4312,
        neutral_sources=28,
        perplexity=(20.0, 22.0),
        capability=Outcome("accuracy", "share", np.ones(10), np.r_[np.ones(9), 0.0]),
        controls=tuple(map(control, names, beaten)),
        samples=(),
        **{"outcome": Outcome("log_prob_diff", "nat", before, before + effect.mean), "entangled": (), **more},
    )


def test_found_when_every_control_is_beaten():
    verdict = conclude("sentiment", validation(True, False), search(point(), picked=0), evaluation())
    assert verdict.found
    assert str(verdict).startswith("Found. Difference of means at L3.resid_post (coefficient 1.5, all positions)")
    text = str(verdict)
    assert "+2.00 [1.50, 2.50] nat" in text
    assert "0.12 nats of KL per token" in text
    assert "perplexity there from 20 to 22" in text
    assert "−10.0 points" in text
    assert "Of 2 screened candidates 1 did something" in text
    assert "1 (50%) were false positives" in text


@pytest.mark.parametrize("which", range(3))
def test_one_control_that_does_as_much_is_enough(which):
    beaten = [i != which for i in range(3)]
    verdict = conclude("sentiment", validation(True), search(point(), picked=0), evaluation(beaten=beaten))
    assert verdict.outcome == "not beaten"
    name = ("random directions", "shuffled labels", "random sites")[which]
    assert f"does not beat {name}." in verdict.sentences[0]


def test_an_effect_whose_interval_holds_zero_is_none():
    verdict = conclude("sentiment", validation(True), search(point(), picked=0), evaluation(effect=NONE))
    assert verdict.outcome == "not beaten"
    assert "does not beat zero" in verdict.sentences[0]


@pytest.mark.parametrize(
    ("validated", "searched", "reason"),
    [
        (validation(False, False), search(), "None of the 2 candidates"),
        (validation(), search(), "None of the 0 candidates"),
        (validation(True), search(), "None of the steering methods"),
        (validation(True), search(point(kl=0.7), point(kl=0.5)), "the cheapest costs 0.5"),
        (validation(True), search(point(effect=NONE)), "None of the 1 points"),
    ],
)
def test_not_found_says_why(validated, searched, reason):
    verdict = conclude("sentiment", validated, searched, evaluation(beaten=()))
    assert verdict.outcome == "not found"
    assert not verdict.found
    assert reason in verdict.sentences[0]


def test_what_speaks_against_it_is_said():
    moved = Entangled("truth", Outcome("x", "nat", np.zeros(3), np.ones(3)), Estimate(-1.4, -2.0, -0.8, 3))
    still = Entangled("language", Outcome("x", "nat", np.zeros(3), np.zeros(3)), NONE)
    told = evaluation(
        wrong_way=0.25,
        outcome=Outcome("log_prob_diff", "nat", np.zeros(4), np.array([3.0, 3.0, 3.0, -1.0])),
        entangled=(still, moved),
        prompt_only=Outcome("log_prob_diff", "nat", np.zeros(4), np.full(4, 0.5)),
        figures={"balanced accuracy of a probe at L3.resid_post": Estimate(0.9, 0.8, 1.0, 4)},
    )
    text = str(conclude("sentiment", validation(True), search(point(), picked=0), told))
    assert "25% [1%, 81%] of the test examples move the wrong way." in text
    assert "truth (−1.4 SD)" in text
    assert "language" not in text
    assert "An instruction alone moves the same number by +0.50" in text
    assert "probe at L3.resid_post is 0.90 [0.80, 1.00]" in text
