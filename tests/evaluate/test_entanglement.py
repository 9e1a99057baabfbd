"""Entanglement: a matrix by plain calls, and two planted traits that have nothing to do with each other."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import passages, questions
from tests.model.tinies import lm_of
from trimtab.errors import EditError, TaskError, TrimtabError
from trimtab.evaluate.effect import effects
from trimtab.evaluate.entanglement import entanglement
from trimtab.evaluate.side_effects import side_effects
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit, Intervention
from trimtab.values.entanglement import Entanglement, standardised

LM = lm_of("llama", torch.float64)
TEXTS = passages(3)
W = LM.anatomy.unembed.weight.detach()
ONE, OTHER = questions(12, " w70", " w71"), questions(12, " w80", " w81").with_(name="other")


def push(answer, distractor):
    return Intervention.of(Edit("L1.resid_post@-1:", "add", (W[answer] - W[distractor]).numpy()))


@cache
def found():
    given = {"one": push(70, 71), "other": push(80, 81), "nothing": Intervention.of(Edit("L1.resid_post", "add", 0.0))}
    return entanglement(LM, given, {"one": ONE, "other": OTHER}, kl=0.05, passages=TEXTS, length=24)


def test_all_are_set_to_the_same_kl():
    made = found()
    assert list(made.matched_well) == [True, True, False]
    for i in range(2):
        kl = side_effects(LM, [made.matched[i]], TEXTS, length=24).kl.mean()
        assert kl == pytest.approx(made.kl[i])
        assert abs(kl / 0.05 - 1) <= 0.1


def test_cells_are_changes_in_standard_deviations():
    made = found()
    for name, task in (("one", ONE), ("other", OTHER)):
        plain = effects(LM, measure(LM, task), [made.matched[0]])
        wanted = plain.changes[0].mean() / plain.base.std()
        assert made.estimate("one", name).mean == pytest.approx(wanted, abs=1e-9)
        np.testing.assert_allclose(made.base[name], plain.base)
    assert made.matrix.shape == (3, 2)


def test_each_moves_its_own_task_most():
    made = found()
    own = [made.estimate(trait, trait) for trait in ("one", "other")]
    assert all(estimate.low > 0 for estimate in own)
    assert made.others("one") < own[0].mean
    assert made.others("other") < own[1].mean
    np.testing.assert_allclose(made.matrix[2], 0, atol=1e-12)


def test_random_directions_of_the_same_kl_are_measured_alike():
    made = found()
    assert len(made.random_kl) == 5
    np.testing.assert_allclose(made.random_kl, 0.05, rtol=0.25)
    for j, name in enumerate(made.tasks):
        sizes = np.abs(made.random[name].mean(1)) / made.base[name].std()
        assert made.chance[j] == pytest.approx(sizes.mean())
        assert abs(made.estimate(name, name).mean) > made.chance[j]  # what was planted is no chance
    again = entanglement(LM, {"one": push(70, 71)}, {"one": ONE}, kl=0.05, passages=TEXTS, length=24, seed=1)
    same = entanglement(LM, {"one": push(70, 71)}, {"one": ONE}, kl=0.05, passages=TEXTS, length=24, seed=1)
    np.testing.assert_array_equal(again.random["one"], same.random["one"])
    assert not np.allclose(again.random["one"], made.random["one"])


def test_without_random_directions():
    given = {"passages": TEXTS, "length": 24, "kl": 0.05}
    none = entanglement(LM, {"one": push(70, 71)}, {"one": ONE}, draws=0, **given)
    assert (none.random_kl, none.random, none.left_out) == ((), {}, {})
    assert np.isnan(none.chance).all()
    assert len(none.to_frame()) == 1
    assert "random" not in str(none)
    assert "random (size)" not in none.plot().drawings[0].svg
    nowhere = entanglement(LM, {"n": Intervention.of(Edit("L1.resid_post", "add", 0.0))}, {"one": ONE}, **given)
    assert list(nowhere.left_out) == ["random directions"]
    with pytest.raises(EditError, match="0 or more, got -1"):
        entanglement(LM, {"one": push(70, 71)}, {"one": ONE}, draws=-1, **given)


def test_a_number_that_does_not_vary_has_no_standard_deviations():
    assert np.isnan(standardised(np.ones(4), np.arange(4.0), ("a", "b", "c", "d")).mean)
    assert standardised(np.array([0.0, 2.0]), np.array([3.0, 3.0]), ("a", "b")).mean == 3.0


def test_tasks_of_other_words_are_left_out():
    long = questions(4).of([e.with_(answers=(" w70 w73", " w72")) for e in questions(4).examples])
    made = entanglement(LM, {"one": push(70, 71)}, {"one": ONE, "long": long}, passages=TEXTS, length=24)
    assert set(made.left_out) == {"long"}
    assert made.tasks == ("one",)
    with pytest.raises(TaskError, match="no task can be measured"):
        entanglement(LM, {"one": push(70, 71)}, {"long": long}, passages=TEXTS, length=24)
    with pytest.raises(EditError, match="needs interventions and tasks"):
        entanglement(LM, {}, {"one": ONE})


def test_it_is_kept_and_shown(tmp_path):
    made = found()
    made.save(tmp_path / "e")
    again = Entanglement.load(tmp_path / "e")
    assert again == made
    assert len(again.to_frame()) == 6 + 5 * 2
    assert len(again.plot().drawings) == 1
    assert "random (size)" in again.plot().drawings[0].svg
    assert "random directions, mean size: one " in str(again)
    with pytest.raises(TrimtabError, match=r"random of one must have shape \(draw, example\) = \(4, 12\)"):
        made.with_(random_kl=made.random_kl[:4])
    assert "nothing: no task of its own" in str(again)
    assert "not matched" in str(again)
    with pytest.raises(TrimtabError, match='no "ones"'):
        again.estimate("ones", "one")
