"""Plans: what is counted is what is computed, and passes follow from layers and positions by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of
from trimtab import locate
from trimtab.errors import PromptError
from trimtab.locate.plans import cost, tokens
from trimtab.tasks.measure import measure, sides

LM, TASK = lm_of("llama"), twins(3)
LENGTHS = measure(LM, TASK).prompts.lengths.numpy()


def test_a_place_costs_the_layers_and_positions_that_are_left():
    one = cost(locate.patching, LM, TASK, {"sites": ["L1.mlp_out@end"]})
    assert (one.places, one.variants) == (1, 3)
    assert one.passes == pytest.approx(2 * 3 + 0.5 * (1 / LENGTHS).sum())
    every = cost(locate.patching, LM, TASK, {"sites": "L*.head", "spans": "all"})
    assert every.passes == pytest.approx(2 * 3 + 3 * 4 * (1 + 0.5))
    assert cost(locate.ablation, LM, TASK, {"sites": "L*.head"}) == every
    assert cost(locate.patching, LM, TASK, {"sites": "final", "spans": "all"}).passes == pytest.approx(2 * 3)


def test_draws_of_the_noise_multiply_and_windows_do_not():
    one, three = (cost(locate.causal_tracing, LM, TASK, {"samples": n}) for n in (1, 3))
    assert one.places == three.places == 12
    assert (one.variants, three.variants) == (36, 108)
    assert three.passes - 3 == pytest.approx(3 * (one.passes - 3))


def test_the_paths_that_are_planned_are_those_that_are_computed():
    options = {"senders": "L*.head", "receivers": ["L1.head[0].q", "L1.head[1].v", "logits"]}
    planned = cost(locate.path_patching, LM, TASK, options)
    found = locate.path_patching(LM, TASK, options["senders"], options["receivers"])
    assert planned.variants == np.isfinite(found.array).sum() == 3 * (4 * 3 + 4)
    assert planned.places == found.array[0].size


def test_methods_without_a_plan_have_their_places_counted():
    found = cost(locate.attribution_patching, LM, TASK, {"sites": "L*.head"})
    assert (found.places, found.variants, found.passes) == (16, None, None)
    assert cost(locate.text_noise, LM, TASK, {}).places is None


def test_the_twins_are_compared_only_by_methods_that_put_one_into_the_other():
    longer = TASK.of([e.with_(corrupt=e.corrupt + " w39") for e in TASK.examples])
    assert tokens(LM, longer) == 2 * LENGTHS.sum() + 3
    assert tokens(LM, TASK) == 2 * LENGTHS.sum()
    assert tokens(LM, pairs(4)) == sum(int(side.lengths.sum()) for side in sides(LM, pairs(4)))
    with pytest.raises(PromptError, match="do not correspond"):
        cost(locate.patching, LM, longer, {"sites": "L*.head"})
    assert cost(locate.causal_tracing, LM, longer, {}).places == 12
