"""Plans: what is counted is what is computed, and passes follow from layers and positions by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of
from trimtab import locate
from trimtab.errors import PromptError, SiteError
from trimtab.locate.plans import Cost, cost, tokens
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


def test_a_window_costs_the_layers_from_its_first_one_on():
    one = cost(locate.patching, LM, TASK, {"sites": ["L1.mlp_out@end"], "window": 2})
    assert one.places == 1
    assert one.passes == pytest.approx(2 * 3 + (1 / LENGTHS).sum())
    assert one.memory > cost(locate.patching, LM, TASK, {"sites": ["L1.mlp_out@end"]}).memory


class Twice:
    """The entries as features, twice over."""

    def encode(self, x):
        return torch.cat([x, x], -1)

    def decode(self, f):
        return f[..., : f.shape[-1] // 2]


@pytest.mark.parametrize("method", [locate.patching, locate.ablation, locate.shift, locate.magnitude_contrast])
def test_features_are_counted_with_their_dictionaries(method):
    options = {"sites": "L0.resid_post.feature@sae", "dictionaries": {"sae": Twice()}}
    whole = cost(method, LM, TASK, {"sites": "L0.resid_post"}).places
    assert cost(method, LM, TASK, options).places == 2 * LM.anatomy.d_model * whole
    with pytest.raises(SiteError, match='no dictionary named "sae"'):
        cost(method, LM, TASK, {"sites": options["sites"]})


def test_a_reference_is_run_in_place_of_the_task():
    options = {"sites": "L*.head", "kind": "mean"}
    own, other = (cost(locate.ablation, LM, TASK, options | more).passes for more in ({}, {"reference": twins(6)}))
    assert other - own == pytest.approx(6 - 3)


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


def unplanned(lm, task, sites, *, spans=None):
    """A method that says nothing of its cost."""


def test_methods_without_a_plan_have_their_places_counted():
    found = cost(unplanned, LM, TASK, {"sites": "L*.head"})
    assert (found.places, found.variants, found.passes) == (16, None, None)
    assert cost(unplanned, LM, TASK, {"sites": "L*.head", "spans": "end"}).places == 8
    assert cost(unplanned, LM, TASK, {}) == cost(unplanned, LM, None, {"sites": "L*.head"}) == Cost()


def test_a_plan_that_says_no_places_has_them_counted():
    found = cost(locate.attribution_patching, LM, TASK, {"sites": "L*.head"})
    assert (found.places, found.variants, found.passes) == (16, None, 3 * 4)
    assert cost(locate.text_noise, LM, TASK, {}).places is None


def test_the_twins_are_compared_only_by_methods_that_put_one_into_the_other():
    longer = TASK.of([e.with_(corrupt=e.corrupt + " w39") for e in TASK.examples])
    assert tokens(LM, longer) == 2 * LENGTHS.sum() + 3
    assert tokens(LM, TASK) == 2 * LENGTHS.sum()
    assert tokens(LM, pairs(4)) == sum(int(side.lengths.sum()) for side in sides(LM, pairs(4)))
    with pytest.raises(PromptError, match="do not correspond"):
        cost(locate.patching, LM, longer, {"sites": "L*.head"})
    assert cost(locate.causal_tracing, LM, longer, {}).places == 12
