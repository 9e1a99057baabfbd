"""Scaling what located parts put out."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import IDS, RAGGED, lm_of
from trimtab.errors import EditError
from trimtab.steer import scale
from trimtab.values.edit import Edit
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
MIXED = ["L1.head[2]", "L0.neuron[7,3]", "L1.head[0]", "L1.head[2]", "L0.neuron[20]", "L0.mlp_out"]


def test_units_of_one_layer_are_one_edit():
    assert [str(edit) for edit in scale(MIXED, 2)] == [
        "L1.head[0,2] scale 2",
        "L0.neuron[3,7,20] scale 2",
        "L0.mlp_out scale 2",
    ]


def test_positions_are_those_of_the_site_or_of_the_call():
    made = scale(["L1.head[1]@-1", "L1.head[2]", "L1.head[0]@-1", "L0.mlp_out@1:3"], 0.5, where="-1:")
    assert [str(edit) for edit in made] == [
        "L1.head[0,1]@-1 scale 0.5",
        "L1.head[2]@-1: scale 0.5",
        "L0.mlp_out@1:3 scale 0.5",
    ]


@pytest.mark.parametrize("order", [["L1.head", "L1.head[1]"], ["L1.head[1]", "L1.head", "L1.head[2]"]])
def test_a_whole_site_takes_its_units_in(order):
    assert [str(edit) for edit in scale(order, 0)] == ["L1.head scale 0"]


@pytest.mark.parametrize("prompts", [IDS, RAGGED])
@pytest.mark.parametrize("where", ["all", "-1:", "1:3"])
def test_factor_one_is_bitwise_the_model(prompts, where):
    assert torch.equal(LM.run(prompts, edit=scale(MIXED, 1, where=where)).logits, LM.run(prompts).logits)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.5])
def test_activations_are_multiplied(factor):
    sites = ["L1.head[0,2]", "L0.neuron[3,7]"]
    plain, run = LM.run(IDS, "L0.neuron"), LM.run(IDS, ["L0.neuron", "L1.head"], edit=scale(sites, factor, where="-2:"))
    wanted = plain["L0.neuron"].clone()
    wanted[:, -2:, [3, 7]] *= factor
    torch.testing.assert_close(run["L0.neuron"], wanted)
    unscaled = LM.run(IDS, "L1.head", edit=scale(sites[1:], factor, where="-2:"))["L1.head"].clone()
    unscaled[:, -2:, [0, 2]] *= factor
    torch.testing.assert_close(run["L1.head"], unscaled)


def test_one_site_may_be_given_alone():
    for site in ("L1.head[2]", Site.parse("L1.head[2]")):
        made = scale(site, 0)
        assert made.edits == (Edit.parse("L1.head[2] scale 0"),)
        assert made.name == "scale x 0"


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_what_cannot_be_is_refused(factor):
    with pytest.raises(EditError, match="no sites were given"):
        scale([], 1)
    with pytest.raises(EditError, match="the value of"):
        scale("L1.head[2]", factor)
