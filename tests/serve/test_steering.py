"""From what a request asks for to an intervention, and what cannot be served."""

from __future__ import annotations

import pytest

from tests.serve.running import VECTORS, random_vector
from trimtab.errors import EditError
from trimtab.serve.problems import Problem
from trimtab.serve.registry import Registry
from trimtab.serve.schema import Steer
from trimtab.serve.steering import check_servable, steered
from trimtab.values.edit import Edit, Intervention, WeightPatch

REGISTRY = Registry("tiny", VECTORS)


def asked(model=None, **part):
    return steered(REGISTRY, model, [Steer(**({"vector": "joy"} | part))])


def test_strengths_are_multiplied_and_nothing_else_is_changed():
    assert asked() == VECTORS["joy"]
    assert asked(coefficient=2.5) == 2.5 * VECTORS["joy"]
    assert asked(coefficient=0.0) == Intervention()
    assert asked("tiny+anger:-1", coefficient=2.0) == -1 * VECTORS["anger"] + 2 * VECTORS["joy"]
    assert asked(layers=[0, 0]) == Intervention(VECTORS["joy"].edits[:1])
    assert [str(edit.where) for edit in asked(scope="2:5")] == ["2:5"] * 2
    assert [str(edit.where) for edit in asked(vector="late")] == ["-1:"]


@pytest.mark.parametrize(
    ("part", "param", "words"),
    [
        ({"layers": [0, 3]}, "steering.0.layers", "no edit in layer 3; its layers: 0, 1"),
        ({"scope": "subject"}, "steering.0.scope", "names a span"),
        ({"scope": "5:2"}, "steering.0.scope", "covers no position"),
    ],
)
def test_what_a_vector_does_not_have(part, param, words):
    with pytest.raises(Problem, match=words) as found:
        asked(**part)
    assert (found.value.status, found.value.param) == (422, param)


def test_the_name_of_a_model_does_not_lead_past_the_limit():
    many = "tiny" + "+joy:0.1" * 31
    assert len(asked(many).edits) == 32 * 2
    for model, parts in ((f"{many}+joy", 1), (None, 33)):
        with pytest.raises(Problem, match="33 vectors were asked for") as found:
            steered(REGISTRY, model, [Steer(vector="joy")] * parts)
        assert found.value.status == 422


def test_a_product_that_is_not_finite():
    registry = Registry("tiny", {"huge": Intervention((Edit("L0.resid_post", "add", 1.0, strength=1e200),))})
    with pytest.raises(Problem, match="finite") as found:
        steered(registry, None, [Steer(vector="huge", coefficient=1e200)])
    assert found.value.status == 422


@pytest.mark.parametrize(
    ("intervention", "words"),
    [
        (Intervention.of("L0.head[1] set from clean"), "takes values from another run"),
        (Intervention((Edit("L0.head[1]", "scale", 0.0, rows=(0,)),)), "certain rows"),
        (Intervention((Edit("L0.head[1]", "scale", 0.0, strength=(1.0, 2.0)),)), "certain rows"),
        (Intervention((Edit("L9.head[1]", "scale", 0.0),)), "layer 9"),
        (Intervention((Edit("L0.resid_post", "add", [1.0] * 31),)), "31"),
        (Intervention((Edit("L0.head[1]@subject", "scale", 0.0),)), "subject"),
    ],
)
def test_what_cannot_be_served(lm, intervention, words):
    with pytest.raises(EditError, match=f'the vector "v" .*{words}'):
        check_servable(lm, "v", intervention)


def test_weights_are_shared_by_all_requests(lm):
    patch = WeightPatch("model.layers.0.mlp.down_proj.weight", [[1.0]], [[1.0]])
    with pytest.raises(EditError, match="changes weights"):
        check_servable(lm, "v", Intervention(patches=(patch,)))


def test_what_can(lm):
    for vector in (*VECTORS.values(), random_vector(5, "L0.resid_post@3"), random_vector(5, "L0.mlp_out@-8:-1")):
        check_servable(lm, "v", vector)
