"""Edits that stay on for a block: `lm.run`, `lm.generate` and the model itself agree inside; after it all is gone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from tests.model.tinies import (
    CORE,
    IDS,
    OTHER,
    RAGGED,
    SIDES,
    close,
    digest,
    exact,
    fresh,
    lm_of,
    off,
    plain_logits,
    real,
    tolerance,
    untouched,
)
from tests.tiny import FAMILIES
from trimtab.errors import EditError, SiteError
from trimtab.model.protocols import logit_diff
from trimtab.values.edit import Condition, Edit, Intervention, Noise, Ref, WeightPatch
from trimtab.values.provenance import Provenance

READOUT = logit_diff([3, 4], [5, 6])
EDITS = ["L0.head[1] scale -1", Edit("L1.mlp_out", "add", np.linspace(-1, 1, 32), where="-2:", strength=0.7)]
NEW = 5


def answer(lm, ids, *, mask=None, **options):
    """New tokens of transformers' own generation, without padding and up to the end of each row."""
    ids = torch.as_tensor(ids)
    mask = torch.ones_like(ids) if mask is None else mask
    out = lm.hf.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options
    )
    rows = out[:, ids.shape[1] :].tolist()
    return tuple(tuple(row[: row.index(2) + 1] if 2 in row else row) for row in rows)


def _fail(*_):
    raise ZeroDivisionError


@pytest.mark.parametrize("family", FAMILIES)
class TestAgreement:
    def test_run_generate_and_the_model_itself(self, family):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED)
        expected, said = lm.run(prompts, edit=EDITS).logits, lm.generate(prompts, EDITS, max_new_tokens=NEW).ids
        plain = lm.generate(prompts, max_new_tokens=NEW).ids
        with untouched(lm), lm.edited(EDITS) as inside:
            assert inside is lm
            assert torch.equal(lm.run(prompts).logits, expected)
            assert torch.equal(plain_logits(lm, prompts), expected)
            assert lm.generate(prompts, max_new_tokens=NEW).ids == said
            assert answer(lm, prompts.ids, mask=prompts.mask) == said
            assert torch.equal(lm.run(prompts).logits, expected)
        assert lm.generate(prompts, max_new_tokens=NEW).ids == plain
        assert answer(lm, prompts.ids, mask=prompts.mask) == plain

    @pytest.mark.parametrize("where", ["all", "prompt", "generated", "-1", "2", "1:3", "-1:", "tokens{9,10,30,56}"])
    def test_scopes_in_the_model_s_own_generation(self, family, where):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED)
        edit = Edit("L1.resid_pre", "scale", -2.0, where=where)
        said = lm.generate(prompts, edit, max_new_tokens=NEW).ids
        with lm.edited(edit):
            assert answer(lm, prompts.ids, mask=prompts.mask) == said
            assert lm.generate(prompts, max_new_tokens=NEW).ids == said


class TestTheModelItself:
    """`lm.hf` called directly: what it is called with is all there is to know the positions from."""

    @pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("where", ["all", "-1", "0", "1:3"])
    def test_padding_at_either_end(self, where, side, family):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED, padding=side)
        edit = Edit("L0.resid_post", "add", np.linspace(-2, 2, 32), where=where)
        expected = lm.run(prompts, edit=edit).logits
        with lm.edited(edit):
            assert off(real(prompts, plain_logits(lm, prompts)), real(prompts, expected)) < 1e-5

    def test_padding_that_every_row_has(self):
        """As a data loader does that rounds widths up."""
        lm = exact("llama")
        edit = "L0.resid_post@-1 scale -2"
        expected = lm.run(IDS, edit=edit).logits
        for left, right in ((2, 0), (0, 3), (1, 1)):
            ids = torch.nn.functional.pad(torch.tensor(IDS), (left, right))
            mask = torch.nn.functional.pad(torch.ones(2, 7, dtype=torch.long), (left, right))
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.no_grad(), lm.edited(edit):
                logits = lm.hf(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            close(lm, logits[:, left : left + 7], expected, (left, right))

    def test_without_a_mask_every_token_is_real(self):
        """As for transformers, also where a token is the one that pads."""
        lm = exact("llama")
        for ids in (IDS, [[0, 0, 5, 6, 7]], [[5, 6, 0]]):
            expected = lm.run(
                lm.prompts(ids, mask=[[1] * len(row) for row in ids]), edit="L0.resid_post@1 scale -2"
            ).logits
            with torch.no_grad(), lm.edited("L0.resid_post@1 scale -2"):
                close(lm, lm.hf(torch.tensor(ids)).logits, expected)
                close(lm, lm.hf(input_ids=torch.tensor(ids)).logits, expected)

    def test_without_position_ids_as_transformers_counts_them(self):
        lm = exact("llama")
        with torch.no_grad(), lm.edited("L0.resid_post@-1 scale -2"):
            close(lm, lm.hf(input_ids=torch.tensor(IDS)).logits, lm.run(IDS).logits)

    @pytest.mark.parametrize("where", ["all", "generated", "-1", "-2:", "tokens{9,30}"])
    def test_token_by_token_with_a_cache(self, where):
        lm = exact("llama")
        prompts = lm.prompts(RAGGED)
        edit = Edit("L1.k", "add", 1.5, where=where)
        new = torch.tensor([[30, 31, 9], [32, 9, 33]])
        ids, mask = torch.cat([prompts.ids, new], 1), torch.cat([prompts.mask, torch.ones_like(new)], 1)
        positions = (mask.cumsum(1) - 1) * mask
        cache, seen = DynamicCache(), []
        with torch.no_grad(), untouched(lm), lm.edited(edit):
            for start, stop in ((0, 7), (7, 8), (8, 10)):
                out = lm.hf(
                    input_ids=ids[:, start:stop],
                    attention_mask=mask[:, :stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                )
                seen.append(out.logits)
        covered = prompts.columns(where, 0, 10, ids=ids)
        values = torch.where(covered[..., None, None], 1.5, 0.0).expand(2, 10, 2, 8)
        expected = lm.run(lm.prompts(ids, mask=mask), edit=Edit("L1.k", "add", values)).logits
        close(lm, torch.cat(seen, 1)[mask.bool()], expected[mask.bool()])

    def test_a_cache_that_is_cut_back(self):
        """As when drafted tokens are not taken: what follows stands in their place."""
        lm = exact("llama")
        edit = Edit("L1.resid_pre", "scale", -2.0, where="tokens{9,30}")
        ids = torch.tensor([[5, 6, 7, 30, 9, 8], [5, 6, 7, 9, 10, 9]])
        cache, drafted = DynamicCache(), torch.tensor([[9, 30, 9], [30, 9, 11]])
        with torch.no_grad(), lm.edited(edit):
            lm.hf(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
            lm.hf(input_ids=drafted, past_key_values=copy.deepcopy(cache), use_cache=True)
            found = [
                lm.hf(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits for at in (3, 4, 5)
            ]
            expected = lm.hf(input_ids=ids).logits[:, 3:]
        close(lm, torch.cat(found, 1), expected)

    def test_a_condition_is_decided_on_the_prompt_and_held(self):
        lm = exact("llama")
        state = lm.run(RAGGED, "L0.resid_post@-1")["L0.resid_post@-1"][1]
        edit = Edit("L1.resid_pre", "scale", -2.0, when=Condition("L0.resid_post", state, 0.9, "last"))
        prompts = lm.prompts(RAGGED)
        said = lm.generate(prompts, edit, max_new_tokens=NEW).ids
        assert said[0] == lm.generate(prompts, max_new_tokens=NEW).ids[0]
        assert said[1] == lm.generate(prompts, edit.with_(when=None), max_new_tokens=NEW).ids[1]
        with lm.edited(edit):
            assert answer(lm, prompts.ids, mask=prompts.mask) == said
            assert torch.equal(lm.run(prompts).logits, lm.run(prompts, edit=[]).logits)

    def test_beams(self):
        """Rows are tripled by transformers; an edit of every row and position does not mind."""
        lm = exact("llama")
        plain = answer(lm, IDS, num_beams=3)
        with untouched(lm), lm.edited("L1.resid_post scale 1"):
            assert answer(lm, IDS, num_beams=3) == plain
        with lm.edited("logits[30] add 100"):
            assert answer(lm, IDS, num_beams=3) == ((30,) * NEW,) * 2

    def test_logits_as_a_tuple(self):
        lm = exact("llama")
        for edit in ("logits[3] add 2", "L0.head[1] scale 0"):
            expected = lm.run(IDS, edit=edit).logits
            with torch.no_grad(), lm.edited(edit):
                close(lm, lm.hf(input_ids=torch.tensor(IDS), return_dict=False)[0], expected)

    def test_two_generations_after_each_other(self):
        lm = exact("llama")
        edit = "L1.resid_pre@-1 scale -2"
        first, second = (lm.generate(ids, edit, max_new_tokens=NEW).ids for ids in (IDS, [[20, 21, 22]]))
        with lm.edited(edit):
            assert answer(lm, IDS) == first
            assert answer(lm, [[20, 21, 22]]) == second
            assert answer(lm, IDS) == first

    def test_embeddings_instead_of_tokens(self):
        lm = exact("llama")
        with (
            untouched(lm),
            lm.edited("L0.head scale 0"),
            pytest.raises(EditError, match="needs input_ids: positions cannot"),
        ):
            lm.hf(inputs_embeds=torch.zeros(1, 3, 32, dtype=torch.float64))

    @pytest.mark.parametrize("edit", ["L0.scores[1]@-1: scale 0", "L0.pattern@-2: scale -3", "L0.rot_k@2 scale 3"])
    @pytest.mark.parametrize("family", ["mistral", "gemma3"])
    def test_sliding_windows(self, family, edit):
        """Under its own cache a model sees the keys of the window only."""
        lm = exact(family, padded=True)
        prompts = lm.prompts(RAGGED)
        said = lm.generate(prompts, edit, max_new_tokens=NEW, cache=False).ids
        with lm.edited(edit):
            assert answer(lm, prompts.ids, mask=prompts.mask) == said

    @pytest.mark.parametrize(
        "edit", ["L0.head scale 0.5", "L0.pattern@-2: scale -3", "L0.q scale 2", "L1.rot_k@2 set 0"]
    )
    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_a_cache_of_fixed_size(self, family, edit):
        """Its keys and masks are made beforehand: what the edit says is done, or it is refused."""
        lm = fresh(family, check=False)
        for ids in (IDS, RAGGED):
            prompts = lm.prompts(ids)
            said = lm.generate(prompts, edit, max_new_tokens=NEW).ids
            with lm.edited(edit):
                try:
                    assert answer(lm, prompts.ids, mask=prompts.mask, cache_implementation="static") == said
                except EditError as error:
                    assert "generate with the default cache" in str(error)  # noqa: PT017

    def test_a_cache_from_before_the_block(self):
        lm = exact("llama")
        cache = DynamicCache()
        with torch.no_grad():
            lm.hf(input_ids=torch.tensor(IDS), past_key_values=cache, use_cache=True)
            with (
                untouched(lm),
                lm.edited("L0.head scale 0"),
                pytest.raises(EditError, match="cache from outside the block"),
            ):
                lm.hf(input_ids=torch.tensor([[9], [9]]), past_key_values=cache, use_cache=True)

    def test_gradients_flow(self):
        """A training loop may run inside: nothing of ours is cut off from the graph."""
        lm = exact("llama")
        for site in ("L0.resid_mid", "L0.head[1]", "L1.q", "L0.gate_pre", "L1.pattern"):
            with lm.edited(f"{site} scale 0.5"):
                loss = lm.hf(input_ids=torch.tensor(IDS)).logits.logsumexp(-1).sum()
            (slope,) = torch.autograd.grad(loss, [lm.hf.get_parameter("model.layers.0.self_attn.q_proj.weight")])
            assert torch.isfinite(slope).all()
            assert slope.any()


class TestReadsInside:
    """What is read inside a block is what is read of a run with the same edits."""

    @pytest.mark.parametrize(
        "family", ["llama", "gpt2", "olmo2", "opt", "opt-350m", "bloom", "gemma2", "falcon", "mixtral"]
    )
    def test_every_site(self, family):
        lm = exact(family)
        names = [name for name in lm.anatomy.present(0) if not name.startswith("expert")]
        for edited in names:
            edit = Edit(f"L0.{edited}", "scale", 0.5, where="-1")
            sites = ["embed", *(f"L0.{name}" for name in names if (name in CORE) == (edited in CORE))]
            expected = lm.run(IDS, sites, edit)
            with lm.edited(edit):
                run = lm.run(IDS, sites)
            for site in expected:
                apart = off(run[site], expected[site])
                assert apart <= tolerance(lm), f"{site} read inside an edit of {edited}: off by {apart:.2g}"

    @pytest.mark.parametrize("family", ["llama", "olmo2", "opt", "opt-350m", "gpt_neox", "gemma3"])
    def test_an_edit_inside_an_edit(self, family):
        """An edit of a call, and one of a block around it at a later site, are the two in one call."""
        lm = exact(family)
        pairs = [
            ("attn_raw", "attn_out"),
            ("mlp_raw", "mlp_out"),
            ("head", "attn_out"),
            ("resid_mid", "mlp_in"),
            ("q", "k"),
        ]
        for first, second in pairs:
            if not {first, second} <= set(lm.anatomy.present(0)):
                continue
            edits = [Edit(f"L0.{first}", "set", 0.5), Edit(f"L0.{second}", "add", 0.3, where="2")]
            expected = lm.run(IDS, edit=edits).logits
            with lm.edited(edits[1]):
                close(lm, lm.run(IDS, edit=edits[0]).logits, expected, (first, second))
            with lm.edited(edits[0]):
                close(lm, lm.run(IDS, edit=edits[1]).logits, expected, (first, second))


class TestNested:
    def test_blocks_add_up_and_come_off_in_turn(self):
        lm = exact("llama")
        one, two = "L0.head[1] scale 0", "L1.mlp_out@-1 scale 3"
        expected = {edits: lm.run(IDS, edit=list(edits)).logits for edits in ((one,), (two,), (one, two))}
        with untouched(lm), lm.edited(one):
            with lm.edited(two):
                close(lm, lm.run(IDS).logits, expected[one, two])
                close(lm, plain_logits(lm, lm.prompts(IDS)), expected[one, two])
                close(lm, lm.run(IDS, edit=one).logits, expected[one, two])
                assert len(lm.active) == 2
            close(lm, lm.run(IDS).logits, expected[one,])
            close(lm, lm.run(IDS, edit=two).logits, expected[one, two])
            close(lm, plain_logits(lm, lm.prompts(IDS)), expected[one,])
        assert lm.active == []

    @pytest.mark.parametrize("outer", ["L0.head[1] scale 0", "logits[4] add 1", "L0.pattern[1] scale 0"])
    @pytest.mark.parametrize(
        "inner", ["logits[3] add 2", "L1.mlp_out scale 0", "embed@2 scale 0", "L1.pattern[2] scale 0"]
    )
    def test_the_model_itself_under_two_blocks(self, outer, inner):
        lm = exact("llama")
        expected = lm.run(IDS, edit=[outer, inner]).logits
        with untouched(lm), lm.edited(outer), lm.edited(inner):
            close(lm, plain_logits(lm, lm.prompts(IDS)), expected)
            close(lm, lm.run(IDS).logits, expected)

    def test_an_error_inside_takes_all_off(self):
        lm = exact("llama")
        with untouched(lm):
            with pytest.raises(ZeroDivisionError), lm.edited("L0.head[1] scale 0"), lm.edited("L1.q scale 0"):
                raise ZeroDivisionError
            with lm.edited("L0.head[1] scale 0"):
                with pytest.raises(SiteError), lm.edited("L9.head scale 0"):
                    raise AssertionError("a block with a site that does not exist was entered")
                assert len(lm.active) == 1

    def test_a_call_that_fails_leaves_the_block_usable(self):
        lm = exact("llama")
        expected = lm.run(IDS, edit="L0.head[1] scale 0").logits
        with untouched(lm), lm.edited("L0.head[1] scale 0"):
            with pytest.raises(EditError):
                lm.run(IDS, edit=Edit("L1.head", "set", Ref("nowhere")))
            with pytest.raises((IndexError, ValueError)):
                lm.hf(input_ids=torch.tensor([[5, 6, 10_000]]))
            handle = lm.anatomy.blocks[1].o.register_forward_pre_hook(_fail)
            for call in (lambda: lm.hf(input_ids=torch.tensor([[5, 6]])), lambda: lm.run(IDS)):
                with pytest.raises(ZeroDivisionError):
                    call()
            handle.remove()
            assert lm.frame is None
            close(lm, lm.run(IDS).logits, expected)
            close(lm, plain_logits(lm, lm.prompts(IDS)), expected)

    def test_patches_and_edits_together(self):
        lm = exact("llama")
        patch = WeightPatch("model.layers.1.mlp.up_proj.weight", delta=np.ones((40, 32)))
        both = Intervention((Edit.parse("L0.head[1] scale 0"),), (patch,))
        expected, before = lm.run(IDS, edit=both).logits, digest(lm)
        with untouched(lm), lm.edited(both):
            close(lm, lm.run(IDS).logits, expected)
            assert digest(lm) != before

    def test_errors_come_on_the_way_in_where_they_can(self):
        lm = exact("llama")
        for edit, error in (
            ("L7.head scale 0", SiteError),
            ("L0.router scale 0", SiteError),
            (Edit("L0.q", "scale", 0.0, when=Condition("L0.resid_pre", np.ones(8), 0.1)), EditError),
        ):
            with untouched(lm), pytest.raises(error), lm.edited(edit):
                raise AssertionError("entered")

    def test_an_edit_that_needs_what_only_prompts_have(self):
        """Spans are known to prompts; a direct call has none, and says so."""
        lm = exact("llama")
        prompts = lm.prompts(["w5 w6 w7"], spans={"s": "w6"})
        expected = lm.run(prompts, edit="L0.resid_post@s scale 0").logits
        with untouched(lm), lm.edited("L0.resid_post@s scale 0"):
            close(lm, lm.run(prompts).logits, expected)
            with pytest.raises(ValueError, match='"s"'):
                lm.hf(input_ids=prompts.ids)


class TestOtherCallsInside:
    def test_gradients(self):
        lm = exact("llama")
        expected = lm.gradients(IDS, READOUT, "L0.resid_post", edit="L1.head[1] scale 0")
        with lm.edited("L1.head[1] scale 0"):
            found = lm.gradients(IDS, READOUT, "L0.resid_post")
        close(lm, found.gradients["L0.resid_post"], expected.gradients["L0.resid_post"])

    @pytest.mark.parametrize("edit", ["L0.head[1] scale 0", "L1.resid_pre@2 set 0", "embed@1 scale 3"])
    def test_counterfactuals(self, edit):
        """No shortcut is taken inside, the plan says so, and every cell is that of both edits."""
        lm = exact("llama")
        variants = ["L0.head[2] scale 0", "L1.mlp_out@-1 set 0"]
        expected = [lm.run(IDS, edit=[edit, variant]).logits[:, -1] for variant in variants]
        with untouched(lm), lm.edited(edit):
            found = lm.counterfactuals(IDS, variants, READOUT)
            assert "computed by whole forward passes: the model is inside lm.edited" in str(found.plan)
            assert "inside lm.edited" in str(lm.plan(IDS, variants, READOUT))
        for row in (0, 1):
            for variant in (0, 1):
                logits = expected[variant][row]
                value = logits[[3, 4][row]] - logits[[5, 6][row]]
                assert abs(float(found.values[variant, row] - value)) < 1e-10

    def test_noise_and_patches_from_runs(self):
        lm = exact("llama")
        other = lm.run(OTHER, "L0.resid_post")
        edits = [Edit("embed", "noise", Noise(0.5, 3)), Edit("L0.resid_post@3", "set", Ref("o"))]
        expected = lm.run(IDS, edit=edits, runs={"o": other}).logits
        with lm.edited(edits, runs={"o": other}):
            close(lm, lm.run(IDS).logits, expected)
            close(lm, plain_logits(lm, lm.prompts(IDS)), expected)


def test_what_is_only_run_may_be_from_several_weights():
    lm = lm_of("llama")
    a, b = (Intervention.of("L0.mlp_out add 1").with_(provenance=Provenance(name, name)) for name in ("ab", "cd"))
    close(lm, lm.run(IDS, edit=[a, b]).logits, lm.run(IDS, edit="L0.mlp_out add 2").logits)
