"""Function vectors: what is added is what the heads write, and heads are found by what they restore."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions
from tests.model.tinies import IDS, lm_of
from tests.steer.planting import is_cached_right
from tests.tiny import FAMILIES
from trimtab.errors import EditError, ModelError, SiteError, TaskError
from trimtab.steer.function_vector import causal_indirect_effect, function_vector, in_context_task_vector
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.in_context import in_context
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
WRITING = {"shots": 3, "colon": " w4", "separator": " w3 ", "most": 6}
NORMED = {"gemma2", "gemma3", "olmo2"}


def successors(n=10):
    """Each word asks for another one."""
    examples = []
    for i in range(n):
        own, other = f"w{10 + i}", f"w{10 + (i + 1) % n}"
        answers = (f" w{40 + i}",), (f" w{40 + (i + 1) % n}",)
        examples.append(
            Counterfactual(f"{own} w5", f"{other} w5", *answers, f"g{i % 5}", {"subject": own}, {"subject": other})
        )
    return Task("successors", tuple(examples), metric="logit_diff")


def shown(lm, **options):
    return lm.prompts([e.clean for e in in_context(successors(), **(WRITING | options)).examples])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NORMED])
def test_what_is_added_is_what_the_heads_write(family):
    """Of each head, what attention's output lacks at the last token when the head is silent, mean over prompts."""
    lm = lm_of(family, torch.float32 if family in {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"} else torch.float64)
    heads = ["L0.head[1]", "L0.head[3]", "L1.head[2]"]
    (edit,) = function_vector(lm, successors(), "L1.resid_pre", heads=heads, **WRITING)
    prompts = shown(lm)
    wanted = torch.zeros(32, dtype=torch.float64)
    for head in map(Site.parse, heads):
        out = Site("attn_raw", head.layer)
        for row in range(len(prompts)):
            alone = prompts.rows([row], trim=True)
            whole, without = (lm.run(alone, out, edit=e)[out][0, -1] for e in (None, Edit(head, "scale", 0.0)))
            wanted += (whole - without).double() / len(prompts)
    np.testing.assert_allclose(edit.value, wanted.numpy(), atol=1e-4)
    assert np.abs(edit.value).max() > 0.01
    assert (str(edit.site), edit.op, str(edit.where)) == ("L1.resid_pre", "add", "-1")


@pytest.mark.parametrize("family", sorted(NORMED))
def test_a_norm_behind_the_heads_is_refused_and_the_state_serves(family):
    with pytest.raises(ModelError, match="use in_context_task_vector"):
        function_vector(lm_of(family), successors(), heads="L0.head[1]", **WRITING)
    assert len(in_context_task_vector(lm_of(family), successors(), **WRITING)) == 1


def test_heads_add_up():
    both, one, other = (
        function_vector(LM, successors(), heads=h, **WRITING).edits[0].value
        for h in (["L0.head[1]", "L1.head[2]"], "L0.head[1]", "L1.head[2]")
    )
    np.testing.assert_allclose(both, one + other, atol=1e-6)
    whole = function_vector(LM, successors(), heads="L0.head", **WRITING).edits[0].value
    each = [function_vector(LM, successors(), heads=f"L0.head[{i}]", **WRITING).edits[0].value for i in range(4)]
    np.testing.assert_allclose(whole, sum(each), atol=1e-6)


def test_strength_zero_is_bitwise_the_model_and_the_default_place_is_early():
    made = function_vector(LM, successors(), heads="L0.head[1]", strength=0.0, **WRITING)
    assert torch.equal(LM.run(IDS, edit=made).logits, LM.run(IDS).logits)
    assert str(made.edits[0].site) == "L0.resid_post"
    assert made.provenance.options["heads"] == ["L0.head[1]"]


def test_indirect_effects_are_those_of_single_runs():
    scores = causal_indirect_effect(LM, successors(), **WRITING)
    assert scores.array.shape == (6, 2, 4)
    assert (scores.unit, scores.order) == ("probability", "high")
    means = {}
    for layer in range(2):
        run = LM.run(shown(LM), f"L{layer}.head@-1")
        means[layer] = run[f"L{layer}.head@-1"].mean(0).numpy()
    mixed = in_context(successors(), **WRITING, shuffled=True)
    for row, example in enumerate(mixed.examples):
        answer = LM.token(example.answers[0].strip())
        plain = torch.softmax(LM.run(example.clean).logits[0, -1], -1)[answer]
        for layer, head in ((0, 1), (1, 3)):
            edit = Edit(f"L{layer}.head[{head}]@-1", "set", means[layer][head][None])
            patched = torch.softmax(LM.run(example.clean, edit=edit).logits[0, -1], -1)[answer]
            assert scores.array[row, layer, head] == pytest.approx(float(patched - plain), abs=1e-7)


def test_the_heads_of_the_largest_effect_are_taken():
    scores = causal_indirect_effect(LM, successors(), **WRITING)
    top = [site.with_(at=None) for site in scores.top(3, by="high")]
    found = function_vector(LM, successors(), n_heads=3, **WRITING)
    assert found == function_vector(LM, successors(), heads=top, **WRITING)
    assert found == function_vector(LM, successors(), heads=scores, n_heads=3, **WRITING)
    assert found.provenance.options["heads"] == [str(site) for site in top]


def test_the_task_vector_is_the_mean_state():
    (edit,) = in_context_task_vector(LM, successors(), "L1.resid_mid", **WRITING)
    state = LM.run(shown(LM), "L1.resid_mid@-1")["L1.resid_mid@-1"]
    np.testing.assert_allclose(edit.value, state.mean(0).numpy(), atol=1e-6)
    assert (edit.op, str(edit.where)) == ("set", "-1")


def test_the_state_of_one_prompt_put_into_itself_changes_nothing_and_decides_elsewhere():
    one = WRITING | {"most": 1}
    made = in_context_task_vector(LM, successors(), "L1.resid_post", **one)
    prompt = shown(LM, most=1)
    plain = LM.run(prompt).logits
    torch.testing.assert_close(LM.run(prompt, edit=made).logits, plain, atol=1e-5, rtol=0)
    # after the last layer the state is all there is: any query then gets the same answer
    for query in ("w70 w4", "w9 w8 w4"):
        torch.testing.assert_close(LM.run(query, edit=made).logits[0, -1], plain[0, -1], atol=1e-5, rtol=0)
        assert (LM.run(query).logits[0, -1] - plain[0, -1]).abs().max() > 0.1


def test_positions_on_a_site_are_where_it_is_edited():
    added = {"heads": "L0.head[1]", **WRITING}
    for make, options in ((function_vector, added), (in_context_task_vector, WRITING)):
        for site, where, expected in (
            ("L0.resid_post", None, "-1"),
            ("L0.resid_post@-1:", None, "-1:"),
            ("L0.resid_post@2", "2", "2"),
            ("L0.resid_post", "generated", "generated"),
        ):
            (edit,) = make(LM, successors(), site, where=where, **options)
            assert (str(edit.site), str(edit.where)) == ("L0.resid_post", expected)
        with pytest.raises(EditError, match="names the positions 2 and also -1"):
            make(LM, successors(), "L0.resid_post@2", where="last", **options)


def test_generation_is_the_same_with_and_without_a_cache():
    heads = ["L0.head[1]", "L1.head[2]"]
    is_cached_right(
        lambda lm, where: function_vector(lm, successors(), heads=heads, strength=60.0, where=where, **WRITING)
    )
    is_cached_right(lambda lm, where: in_context_task_vector(lm, successors(), where=where, **WRITING))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: function_vector(LM, successors(), heads="L0.mlp_out", **WRITING), SiteError, "is no head"),
        (lambda: function_vector(LM, successors(), heads=[], **WRITING), SiteError, "no heads were given"),
        (lambda: function_vector(LM, successors(), "L0.neuron", heads="L0.head", **WRITING), SiteError, "is added to"),
        (lambda: function_vector(LM, questions(8), heads="L0.head"), TaskError, "is a contrast task"),
        (lambda: in_context_task_vector(LM, successors(), shots=20), TaskError, "are asked for"),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
