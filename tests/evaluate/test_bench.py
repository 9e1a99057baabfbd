"""A bench is its three measures called one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import edits, passages, questions
from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.evaluate.bench import Bench
from trimtab.evaluate.capabilities import measured_items
from trimtab.evaluate.effect import effects
from trimtab.evaluate.side_effects import capability, side_effects
from trimtab.evaluate.texts import Item
from trimtab.tasks.measure import measure
from trimtab.values.edit import Intervention
from trimtab.values.estimate import Estimate

LM = lm_of("llama", torch.float64)
TASK, TEXTS = questions(12), passages(3)
ITEMS = tuple(Item(words(20 + i, 5, 30 + i), f" w{70 + i}", f" w{80 + i}", f"kind {i % 3}") for i in range(9))
VARIANTS = [Intervention.of(edit) for edit in edits()]


def bench(items=ITEMS):
    return Bench(LM, measure(LM, TASK), TEXTS, measured_items(LM, items) if items else None, 24)


def ends(estimate):
    return estimate.mean, estimate.low, estimate.high


def test_numbers_are_those_of_plain_calls():
    kinds = tuple(item.kind for item in ITEMS)
    base = capability(LM, ITEMS)
    for found, variant in zip(bench().found(VARIANTS), VARIANTS, strict=True):
        gain = Estimate.of(effects(LM, TASK, [variant]).changes[0], TASK.groups)
        assert ends(found.effect) == pytest.approx(ends(gain), abs=1e-8)
        assert found.kl == pytest.approx(side_effects(LM, [variant], TEXTS, length=24).kl.mean(), abs=1e-8)
        lost = Estimate.of(base - capability(LM, ITEMS, variant), kinds)
        assert ends(found.capability) == pytest.approx(ends(lost))


def test_without_items_no_accuracy_is_lost():
    assert [found.capability for found in bench(()).found(VARIANTS)] == [None] * len(VARIANTS)
    assert bench(()).lost(VARIANTS) == [None] * len(VARIANTS)


@pytest.mark.parametrize(("items", "measures"), [(ITEMS, 3), ((), 2)], ids=["with items", "without"])
def test_progress_passes_each_measure_and_ends_with_all(items, measures):
    told = []
    bench(items).found(VARIANTS, lambda *n: told.append(n))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {measures * len(VARIANTS)}
    assert {(i + 1) * len(VARIANTS) for i in range(measures)} <= {done for done, _ in told}


def test_nothing_costs_nothing():
    (found,) = bench().found([Intervention()])
    assert (found.effect.mean, found.kl, found.capability.mean) == (0.0, 0.0, 0.0)
    assert np.isfinite(found.effect.low)
