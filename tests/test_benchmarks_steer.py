"""The benchmark of steering on a tiny model: every case runs, compares the same work, and agrees; nothing is judged."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import steer
from benchmarks.steering import speed
from tests.evaluate.tinies import questions
from tests.model.tinies import lm_of
from trimtab.evaluate.effect import effects
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit, Intervention

SIZES = speed.Sizes(
    tokens=2, rounds=2, pairs=9, passes=2, examples=5, layers=2, coefficients=(-1.0, 2.0), timed=2, grids=1
)


def test_names_are_of_cases_or_of_files(capsys):
    assert list(steer.chosen(None)) == ["speed", "mixed", "table"]
    assert steer.chosen(["extract", "mixed_16", "one_vector"]) == {
        "speed": ["extract", "one_vector"],
        "mixed": ["mixed_16"],
    }
    assert steer.chosen(["one_vector", "speed", "table"]) == {"speed": None, "table": None}
    with pytest.raises(SystemExit, match="no case one_vectr: there are speed, mixed, table, one_vector"):
        steer.chosen(["one_vectr"])


def test_the_cases_are_those_that_can_be_named():
    jobs = speed.jobs(lm_of("llama"), SIZES, questions(12))
    assert tuple(jobs) == steer.FILES["speed"]


@pytest.mark.parametrize("name", steer.FILES["speed"])
def test_every_case_runs(name, monkeypatch):
    monkeypatch.setattr(speed, "OPENINGS", ("w5 w6", "w7 w8 w9"))
    monkeypatch.setattr(speed, "LEADS", ("", "w11 "))
    cases = speed.jobs(lm_of("llama"), SIZES, questions(12))[name]()
    assert cases[0].name == name
    assert cases[0].target is not None
    assert all(case.low <= case.high for case in cases if case.low is not None)
    for case in cases:
        if case.name.endswith("_equal"):
            assert case.holds, case.value
            assert case.value > 0


@pytest.mark.parametrize("scope", ["all", "-1"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_plain_evaluation_is_the_effect(family, scope):
    lm = lm_of(family)
    made = measure(lm, questions(7))
    vector = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    edit = Edit("L0.resid_post", "add", vector, where=scope, strength=1.5)
    wanted = effects(lm, made, [Intervention((edit,))])
    np.testing.assert_allclose(speed.evaluated(lm, made, None), wanted.base, atol=1e-4)
    np.testing.assert_allclose(speed.evaluated(lm, made, edit), wanted.values[0], atol=1e-4)
    assert np.abs(wanted.changes).max() > 1e-2


def test_pairs_are_texts_with_lead_ins():
    pairs = speed.many(questions(6), 20)
    assert len(pairs) == 20
    assert len({e.positive for e in pairs.examples}) == 20
    assert len(speed.many(questions(6), 7)) == 7
