"""Attention neurons: the channels of the heads' outputs, side by side, read and edited as the heads are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.tinies import IDS, close, lm_of
from tests.tiny import FAMILIES
from trimtab.model.protocols import logit_diff
from trimtab.model.serving import Batcher, Request
from trimtab.values.edit import Condition, Edit, Intervention

HEAD, CHANNEL = 2, 5


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_heads_side_by_side_and_sum_to_what_attention_writes(family):
    lm = lm_of(family, torch.float32)
    run = lm.run(IDS, ["L1.head", "L1.attn_neuron", "L1.attn_raw"])
    assert torch.equal(run["L1.attn_neuron"], run["L1.head"].flatten(2))
    torch.testing.assert_close(lm.anatomy.blocks[1].o(run["L1.attn_neuron"]), run["L1.attn_raw"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_one_is_an_edit_of_its_heads_channel(family):
    lm = lm_of(family, torch.float32)
    unit = HEAD * lm.anatomy.d_head + CHANNEL
    values = lm.run(IDS, "L1.head")["L1.head"].clone()
    values[:, :, HEAD, CHANNEL] *= -3.0
    edited = lm.run(IDS, ["L1.head", "L1.attn_neuron"], f"L1.attn_neuron[{unit}] scale -3")
    assert torch.equal(edited["L1.head"], values), "a read sees what the model went on with, whatever it was edited as"
    assert torch.equal(edited["L1.attn_neuron"], values.flatten(2))
    one = lm.run(IDS[:1], edit=[Edit(f"L1.head@{p}", "set", values[0, p]) for p in range(values.shape[1])])
    torch.testing.assert_close(edited.logits[:1], one.logits, atol=1e-5, rtol=1e-4)
    assert not torch.equal(edited.logits, lm.run(IDS).logits)


def orders():
    """Edits of one tensor under its two names, which come to something else in the other order."""
    d_head = lm_of("llama").anatomy.d_head
    set_, add = Edit("L1.attn_neuron[5]", "set", 1.0), Edit("L1.head[0]", "add", np.linspace(1, 9, d_head))
    zero, twice = Edit("L1.attn_neuron", "scale", 0.0), Edit("L1.head[0]", "scale", 2.0)
    push = Edit("L1.attn_neuron", "add", np.linspace(-9, 9, 4 * d_head))
    pairs = [(set_, twice), (set_, add), (zero, add), (push, twice)]
    return [[twice], *(list(pair) for both in pairs for pair in (both, both[::-1]))]


def test_edits_of_both_keep_their_order():
    lm = lm_of("llama", torch.float64)
    heads = lm.run(IDS, "L1.head")["L1.head"]
    both = ["L1.attn_neuron[5] set 1", "L1.head[0] scale 2"]
    for edits, expected in ((both, 2.0), (both[::-1], 1.0)):
        found = lm.run(IDS, "L1.head", edits)["L1.head"]
        assert torch.equal(found[:, :, 0, 5], torch.full_like(found[:, :, 0, 5], expected))
        assert torch.equal(found[:, :, 1:], heads[:, :, 1:])
        assert torch.equal(found[:, :, 0, :5], 2 * heads[:, :, 0, :5])
        with lm.edited(edits):
            assert torch.equal(lm.run(IDS, "L1.head")["L1.head"], found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_the_engine_keeps_the_order_of_each_variant(family):
    lm, readout = lm_of(family, torch.float64), logit_diff([3, 4], [5, 6])
    singles = [[f"L1.attn_neuron[{n}] set 1", "L1.head[0] scale 2"] for n in (0, 5, HEAD * lm.anatomy.d_head)]
    variants = [*orders(), *singles, *(pair[::-1] for pair in singles)]
    for some in (variants, variants[::-1]):
        fast = lm.counterfactuals(IDS, some, readout)
        naive = lm.counterfactuals(IDS, some, readout, exact="naive")
        assert fast.plan.exact == "fast"
        close(lm, fast.values, naive.values)
    effects = [fast.effects[some.index(pair)] for pair in orders()]
    for one, other in zip(effects[1::2], effects[2::2], strict=True):
        assert float((one - other).abs().max()) > 1e-4, "the order does not matter: this test would see nothing"


@pytest.mark.parametrize("turned", [False, True])
def test_a_batch_keeps_the_order_of_each_request(turned):
    """Rows with edits of one tensor in different orders, under either name, and one with a single edit beside them."""
    lm = lm_of("llama", torch.float64)
    variants = orders()[::-1] if turned else orders()
    batcher = Batcher(lm, max_rows=len(variants))
    prompt = (5, 6, 7, 8, 9)
    asked = [Request(prompt, Intervention(tuple(edits)), max_new_tokens=4, logprobs=50) for edits in variants]
    for request, ticket in zip(asked, batcher.submit_all(asked), strict=True):
        deltas = list(ticket)
        said = list(prompt)
        for delta in deltas:
            expected = lm.run([said], edit=request.intervention).logits[0, -1].log_softmax(-1)
            found = torch.tensor([logprob for _, logprob in delta.top], dtype=expected.dtype)
            torch.testing.assert_close(found, expected[[token for token, _ in delta.top]], atol=2e-5, rtol=0)
            said.append(delta.id)


def test_a_condition_reads_them_where_its_request_says():
    """Behind an edit of the heads that stands before it, and before one that stands behind it."""
    lm = lm_of("llama", torch.float64)
    flip = Edit("L1.head", "scale", -1.0)
    state = lm.run(IDS[:1], "L1.attn_neuron")["L1.attn_neuron"][0].mean(0)
    late = Edit("L1.mlp_out", "add", 5.0, when=Condition("L1.attn_neuron", state, 0.9))
    prompt = tuple(IDS[0])
    expected = {}
    for name, edits in {"before": [late, flip], "behind": [flip, late]}.items():
        without = [flip, *[late.with_(when=None)] * (name == "before")]
        expected[name] = lm.run(IDS[:1], edit=without).logits
        assert torch.equal(lm.run(IDS[:1], edit=edits).logits, expected[name])
    assert not torch.equal(*expected.values())
    for rows in ([late, flip], [flip, late]), ([flip, late], [late, flip]):
        tickets = Batcher(lm).submit_all([Request(prompt, Intervention(tuple(e)), logprobs=50) for e in rows])
        for edits, ticket in zip(rows, tickets, strict=True):
            logits = expected["before" if edits[0] is late else "behind"][0, -1].log_softmax(-1)
            top = next(iter(ticket)).top
            found = torch.tensor([logprob for _, logprob in top], dtype=logits.dtype)
            torch.testing.assert_close(found, logits[[token for token, _ in top]], atol=2e-5, rtol=0)


def test_features_of_them_keep_their_order_too():
    class Halves:
        def encode(self, x):
            return x / 2

        def decode(self, features):
            return features * 2

    lm = lm_of("llama", torch.float64)
    both = ["L1.attn_neuron.feature@d[5] set 1", "L1.head[0] scale 2"]
    for edits, expected in ((both, 4.0), (both[::-1], 2.0)):
        found = lm.run(IDS, "L1.head", edits, dictionaries={"d": Halves()})["L1.head"]
        torch.testing.assert_close(found[:, :, 0, 5], torch.full_like(found[:, :, 0, 5], expected))


def test_their_gradients_are_those_of_the_heads():
    lm, readout = lm_of("llama", torch.float64), logit_diff([3, 4], [5, 6])
    both = lm.gradients(lm.prompts(IDS), readout, ["L0.head", "L0.attn_neuron"]).gradients
    alone = lm.gradients(lm.prompts(IDS), readout, ["L0.attn_neuron"]).gradients
    assert float(both["L0.head"].abs().max()) > 1e-4
    torch.testing.assert_close(both["L0.attn_neuron"], both["L0.head"].flatten(2))
    torch.testing.assert_close(alone["L0.attn_neuron"], both["L0.attn_neuron"])
