"""The bundled model: what is published of it holds, and so do the identities, on weights whose residual stream reaches
10⁴ in a few channels."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import off, plain_logits, untouched
from trimtab.model.anatomy import apply_linear
from trimtab.model.identities import check_anatomy
from trimtab.model.protocols import all_logits, logit_diff
from trimtab.values.edit import Edit, Ref

FRANCE = "The capital of France is"
STORE = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
NEAR = 1e-4
"""Relative to the largest entry, in float32."""


@pytest.fixture(scope="module")
def lm(bundled):
    return bundled


@pytest.fixture(scope="module")
def pair(lm):
    """A clean and a corrupt prompt that differ in one token, and runs of both with every residual stream."""
    clean, corrupt = lm.prompts(STORE), lm.prompts(CORRUPT)
    corrupt.align(clean)
    sites = ["embed", "L*.resid_pre", "L*.resid_post", "L*.head", "L*.attn_raw"]
    return clean, corrupt, lm.run(clean, sites), lm.run(corrupt, sites)


def margin(lm, logits):
    mary, john = (int(lm.prompts(name).ids[0, 0]) for name in (" Mary", " John"))
    return float(logits[0, -1, mary] - logits[0, -1, john])


class TestKnowledge:
    def test_paris_is_the_capital_of_france(self, lm):
        best = int(lm.run(FRANCE).logits[0, -1].argmax())
        assert lm.tokenizer.decode([best]) == " Paris"

    def test_mary_is_given_the_drink(self, lm, pair):
        logits = pair[2].logits
        assert margin(lm, logits) > 3.0
        assert lm.tokenizer.decode([int(logits[0, -1].argmax())]) == " Mary"
        assert margin(lm, pair[3].logits) < 0

    def test_names_are_single_tokens(self, lm):
        for name in (" Mary", " John", " Paris"):
            assert lm.prompts(name).tokens == ((name,),)


class TestIdentities:
    def test_anatomy(self, lm):
        found = check_anatomy(lm)
        assert all(identity.holds for identity in found)
        assert lm.anatomy.tied
        assert (lm.anatomy.n_layers, lm.anatomy.n_heads, lm.anatomy.n_kv, lm.anatomy.d_model) == (30, 9, 3, 576)

    def test_1_no_edit_is_the_model_itself(self, lm, pair):
        for side in ("left", "right"):
            batch = lm.prompts([FRANCE, STORE], padding=side)
            expected = plain_logits(lm, batch)
            with untouched(lm):
                run = lm.run(batch, ["L*.resid_mid", "L*.head", "L*.mlp_out", "L*.q", "L*.neuron"], [])
                zero = lm.run(batch, edit=[Edit("L3.head", "scale", 0.0, strength=0.0)])
                with lm.edited("L5.resid_post@2 set 0"):
                    assert not torch.equal(lm.run(batch).logits, expected)
            assert torch.equal(run.logits, expected)
            assert torch.equal(zero.logits, expected)
            assert torch.equal(plain_logits(lm, batch), expected)

    def test_2_the_stream_is_the_sum_of_what_is_added(self, lm):
        run = lm.run(FRANCE, ["embed", "L*.attn_out", "L*.mlp_out", "L29.resid_post"])
        total = sum((run[s] for s in run if s.name in ("attn_out", "mlp_out")), run["embed"])
        assert off(total, run["L29.resid_post"]) < NEAR
        assert float(run["L29.resid_post"].abs().max()) > 1e3

    def test_3_heads_through_the_output_projection(self, lm, pair):
        a = lm.anatomy
        for layer in (0, 14, 29):
            z = pair[2][f"L{layer}.head"]
            with torch.no_grad():
                weight, bias = apply_linear(a.blocks[layer].o, a.n_heads * a.d_head, z)
            each = torch.einsum("bphd,hdm->bphm", z, weight.view(a.n_heads, a.d_head, -1))
            assert off(each.sum(2) + bias, pair[2][f"L{layer}.attn_raw"]) < NEAR

    def test_5_the_lens_at_the_last_layer_is_the_logits(self, lm, pair):
        with torch.no_grad():
            assert off(lm.unembed(lm.final(pair[2]["L29.resid_post"])), pair[2].logits) < NEAR

    def test_6_patches(self, lm, pair):
        clean, corrupt, of_clean, _ = pair
        for layer in (0, 11, 29):
            own = lm.run(clean, edit=Edit(f"L{layer}.resid_pre", "set", Ref("own")), runs={"own": of_clean})
            assert torch.equal(own.logits, of_clean.logits)
            other = lm.run(corrupt, edit=Edit(f"L{layer}.resid_pre", "set", Ref("clean")), runs={"clean": of_clean})
            assert off(other.logits, of_clean.logits) < NEAR

    def test_7_a_patch_leaves_the_positions_before_it(self, lm, pair):
        _, corrupt, of_clean, of_corrupt = pair
        at = int(corrupt.differ(pair[0])[0].int().argmax())
        run = lm.run(corrupt, edit=Edit("L5.resid_pre", "set", Ref("clean"), where=str(at)), runs={"clean": of_clean})
        assert torch.equal(run.logits[:, :at], of_corrupt.logits[:, :at])
        assert not torch.equal(run.logits[:, at:], of_corrupt.logits[:, at:])

    def test_9_the_engine_is_the_naive_loop(self, lm, pair):
        """Residual patches, heads and neurons, early and late: every cell to 1e-5 of the largest logit."""
        clean, corrupt, of_clean, of_corrupt = pair
        last = clean.width - 1
        at = int(corrupt.differ(clean)[0].int().argmax())
        variants = [
            Edit(f"L{n}.resid_pre", "set", Ref("clean"), where=str(p)) for n in (0, 13, 29) for p in (at - 1, at, last)
        ]
        variants += [Edit(f"L{n}.head[{h}]", "set", Ref("clean")) for n, h in ((4, 0), (20, 8))]
        variants += [
            "L9.neuron[17]@-1 scale 0",
            "L28.mlp_out scale 0",
            ["L2.head[1] scale 0", Edit("L9.head", "set", Ref("base"))],
        ]
        mary, john = (int(lm.prompts(name).ids[0, 0]) for name in (" Mary", " John"))
        readout = logit_diff([mary], [john])
        with untouched(lm):
            fast, naive = (
                lm.counterfactuals(corrupt, variants, readout, runs={"clean": of_clean}, exact=how)
                for how in ("fast", "naive")
            )
        largest = float(of_corrupt.logits.abs().max())
        assert float((fast.values - naive.values).abs().max()) <= 1e-5 * largest
        # the tokens before the one that differs are the same, and at layer 0 only that one is
        assert fast.computed[:3, 0].tolist() == [False, True, False]
        assert torch.equal(fast.values[~fast.computed], fast.base.expand_as(fast.values)[~fast.computed])
        assert fast.plan.passes < 0.5 * naive.plan.passes

    def test_9_batched_and_padded_as_alone(self, lm):
        variants = ["L3.head[2] scale 0", "L14.resid_pre@-1 scale 0.5", "L27.mlp_out@-2 scale 0"]
        for side in ("left", "right"):
            batch = lm.counterfactuals(lm.prompts([FRANCE, STORE], padding=side), variants, all_logits())
            for row, text in enumerate((FRANCE, STORE)):
                alone = lm.counterfactuals(text, variants, all_logits())
                assert off(batch.values[:, row], alone.values[:, 0]) < NEAR

    def test_10_generation(self, lm):
        batch = lm.prompts([FRANCE, STORE])
        ids = {"input_ids": batch.ids, "attention_mask": batch.mask}
        theirs = lm.hf.generate(**ids, max_new_tokens=6, do_sample=False)[:, batch.width :]
        with untouched(lm):
            ours = lm.generate(batch, [], max_new_tokens=6)
            edit = "L15.mlp_out@-1: scale -2"
            cached, whole = (lm.generate(batch, edit, max_new_tokens=4, cache=cache) for cache in (True, False))
        assert [list(row) for row in ours.ids] == [
            row[: len(said)] for row, said in zip(theirs.tolist(), ours.ids, strict=True)
        ]
        assert ours.texts[0].startswith(" Paris")
        assert cached.ids == whole.ids != tuple(row[:4] for row in ours.ids)
        alone = lm.generate(STORE, edit, max_new_tokens=4)
        assert alone.ids[0] == cached.ids[1]
