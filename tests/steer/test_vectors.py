"""Differences of means, planted and found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions, twins
from tests.model.tinies import IDS, RAGGED, fresh, lm_of
from trimtab.steer import difference_of_means, vector_edits
from trimtab.tasks.example import Contrast
from trimtab.tasks.means import mean_difference
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.scope import Scope

LM = lm_of("llama", torch.float64)
PLANTED = np.random.default_rng(3).standard_normal(32)


@pytest.fixture(scope="module")
def planted():
    """A model in which the tokens w41 and w40 differ by a known vector where they are embedded."""
    lm = fresh("llama", torch.float64)
    with torch.no_grad():
        weight = lm.anatomy.embedding.weight
        weight[41] = weight[40] + torch.as_tensor(PLANTED)
    return lm


def ending(n=9):
    """Texts of different lengths that end in w41 against the same ones that end in w40."""
    heads = [" ".join(f"w{5 + (3 * i + k) % 30}" for k in range(2 + i % 4)) for i in range(n)]
    return Task("ending", tuple(Contrast(f"{h} w41", f"{h} w40", f"g{i % 3}") for i, h in enumerate(heads)))


@pytest.mark.parametrize("site", ["embed", "L0.resid_pre"])
def test_a_constant_difference_is_recovered(planted, site):
    (edit,) = difference_of_means(planted, ending(), site, read="last")
    np.testing.assert_allclose(edit.value, PLANTED, atol=1e-6)
    spread = difference_of_means(planted, ending(), site).edits[0].value
    sizes = [1 / (len(e.positive.split()) - 1) for e in ending().examples]  # the text is read without its first token
    np.testing.assert_allclose(spread, PLANTED * np.mean(sizes), atol=1e-6)


def test_it_turns_one_side_into_the_other(planted):
    """Added to the negative texts where the difference was planted, the vector makes them the positive ones."""
    made = difference_of_means(planted, ending(), "L0.resid_pre", read="last", where="-1")
    for e in ending().examples:
        steered, wanted = planted.run(e.negative, edit=made).logits, planted.run(e.positive).logits
        torch.testing.assert_close(steered, wanted, atol=1e-5, rtol=0)
        assert (planted.run(e.negative).logits - wanted).abs().max() > 0.1


def test_the_edit_says_what_it_does():
    made = difference_of_means(LM, questions(8), ["L1.resid_post", "L0.mlp_out"], strength=-1.5, where="-1:")
    assert [(str(e.site), e.op, str(e.where), e.strength) for e in made] == [
        ("L1.resid_post", "add", "-1:", -1.5),
        ("L0.mlp_out", "add", "-1:", -1.5),
    ]
    assert made.name == "questions vector"
    means = mean_difference(LM, questions(8), ["L1.resid_post"])
    np.testing.assert_array_equal(made.edits[0].value, means.difference("L1.resid_post"))


@pytest.mark.parametrize("prompts", [IDS, RAGGED])
def test_strength_zero_is_bitwise_the_model(prompts):
    made = difference_of_means(LM, questions(6), ["L1.resid_post", "L0.head", "L1.neuron[3,8]"], strength=0.0)
    assert torch.equal(LM.run(prompts, edit=made).logits, LM.run(prompts).logits)


@pytest.mark.parametrize("task", [questions(8), twins(8)], ids=["contrast", "counterfactual"])
def test_swapped_sides_turn_the_vector_round(task):
    sites = ["L1.resid_post", "L0.head[1,3]", "L1.neuron"]
    ahead = difference_of_means(LM, task, sites)
    back = difference_of_means(LM, task.of([e.swapped() for e in task.examples]), sites)
    for one, other in zip(ahead, back, strict=True):
        np.testing.assert_allclose(one.value, -other.value, atol=1e-6)
        assert np.abs(one.value).max() > 1e-3
    torch.testing.assert_close(LM.run(IDS, edit=-1 * ahead).logits, LM.run(IDS, edit=back).logits, atol=1e-5, rtol=0)


def test_signs_swap_single_examples():
    task, means = questions(8), mean_difference(LM, questions(8), "L1.resid_post")
    signs = np.array([1.0, -1.0] * 4)
    (edit,) = vector_edits(means, ["L1.resid_post"], signs=signs)
    turned = task.of([e if s > 0 else e.swapped() for e, s in zip(task.examples, signs, strict=True)])
    (wanted,) = difference_of_means(LM, turned, "L1.resid_post")
    np.testing.assert_allclose(edit.value, wanted.value, atol=1e-6)
    assert not np.allclose(edit.value, means.difference("L1.resid_post"), atol=1e-3)


def test_a_vector_of_some_heads_is_theirs():
    whole = difference_of_means(LM, questions(8), "L1.head").edits[0].value
    (edit,) = difference_of_means(LM, questions(8), "L1.head[1,3]", where="-1:")
    assert whole.shape == (4, 8)
    assert edit.value.shape == (2, 8)
    np.testing.assert_array_equal(edit.value, whole[[1, 3]])
    heads, plain = (LM.run(IDS, "L1.head", edit=each)["L1.head"] for each in (edit, None))
    moved = torch.zeros_like(plain)
    moved[:, -1, [1, 3]] = torch.tensor(edit.value, dtype=plain.dtype)
    torch.testing.assert_close(heads - plain, moved)
    one, neurons = difference_of_means(LM, questions(8), ["L1.head[2]", "L0.neuron[3,17]"])
    assert (one.value.shape, neurons.value.shape) == ((1, 8), (2,))
    LM.run(IDS, edit=[one, neurons])


def test_where_it_is_read_is_not_where_it_is_added():
    (edit,) = difference_of_means(LM, questions(8), "L1.resid_post@-1", where="1:3")
    assert edit.where == Scope.parse("1:3")
    (last,) = difference_of_means(LM, questions(8), "L1.resid_post", read="-1")
    np.testing.assert_array_equal(edit.value, last.value)


@pytest.mark.parametrize("where", ["all", "-1:", "generated", "prompt", "-1"])
def test_the_cache_makes_no_difference(where):
    made = difference_of_means(LM, questions(12), ["L0.resid_post", "L1.head[1]"], strength=12.0, where=where)
    plain = LM.generate(RAGGED, max_new_tokens=10)
    cached, whole = (LM.generate(RAGGED, made, max_new_tokens=10, cache=cache) for cache in (True, False))
    assert cached.ids == whole.ids
    assert cached.ids != plain.ids


def test_an_intervention_is_kept_in_a_file(tmp_path):
    made = difference_of_means(LM, questions(6), "L1.resid_post", strength=2.0)
    made.save(tmp_path / "it")
    assert Intervention.load(tmp_path / "it") == made
