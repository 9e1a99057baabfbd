"""Weight patches: what they add, that undoing them is bitwise, and the messages for those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.tinies import IDS, close, digest, exact, fresh, lm_of, off, untouched
from tests.tiny import FAMILIES
from trimtab.errors import EditError
from trimtab.model.protocols import logit_diff
from trimtab.model.weights import patched
from trimtab.values.edit import Edit, Intervention, WeightPatch

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
READOUT = logit_diff([3, 4], [5, 6])


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.hf.named_parameters()}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class Broken(Exception):
    pass


class TestPatched:
    def test_low_rank_and_full_add_their_matrix(self):
        lm = exact("llama")
        left, right = random(40, 2), random(2, 32)
        before = weights(lm)
        for patch in (WeightPatch(UP, left=left, right=right), WeightPatch(UP, delta=left @ right)):
            with untouched(lm), patched(lm.hf, [patch]):
                assert off(weights(lm)[UP] - before[UP], torch.tensor(left @ right)) < 1e-12
        delta = random(32)
        with untouched(lm), patched(lm.hf, [WeightPatch(NORM, delta=delta)]):
            assert off(weights(lm)[NORM], before[NORM] + torch.tensor(delta)) < 1e-12

    def test_several_of_one_parameter_add_up(self):
        lm = exact("llama")
        before = weights(lm)
        first, second = WeightPatch(UP, delta=random(40, 32)), WeightPatch(UP, left=random(40, 1), right=random(1, 32))
        with untouched(lm), patched(lm.hf, [first, second, first, WeightPatch(NORM, delta=random(32))]):
            after = weights(lm)
            assert off(after[UP] - before[UP], torch.tensor(2 * first.matrix + second.matrix)) < 1e-12
            assert {name for name in before if not torch.equal(before[name], after[name])} == {UP, NORM}

    @settings(max_examples=20)
    @given(seed=st.integers(0, 999), size=st.sampled_from([1e-8, 1.0, 1e6, 1e30]))
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_undone_bitwise_whatever_rounding_there_was(self, dtype, seed, size):
        """Taking away what was added would not do: the saved original is put back."""
        lm = lm_of("llama", dtype)
        patch = WeightPatch(UP, delta=random(40, 32, seed=seed) * size)
        with untouched(lm), patched(lm.hf, [patch]):
            pass

    def test_undone_after_an_error(self):
        lm = exact("llama")
        with untouched(lm), pytest.raises(Broken), patched(lm.hf, [WeightPatch(UP, delta=random(40, 32))]):
            raise Broken

    def test_nothing_to_patch(self):
        lm = exact("llama")
        with untouched(lm), patched(lm.hf, []):
            assert digest(lm) == digest(exact("llama"))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_parameter_of_every_family(self, family):
        lm = lm_of(family)
        shapes = {name: tuple(p.shape) for name, p in lm.hf.named_parameters()}
        patches = [WeightPatch(name, delta=np.full(shape, 0.5)) for name, shape in shapes.items()]
        before = weights(lm)
        with untouched(lm), patched(lm.hf, patches):
            after = weights(lm)
            assert all(torch.equal(after[name], before[name] + 0.5) for name in before)


class TestWrong:
    @pytest.mark.parametrize(
        ("patch", "said"),
        [
            (
                WeightPatch("model.layers.1.mlp.up_prj.weight", delta=np.ones((40, 32))),
                r'no parameter "model\.layers\.1\.mlp\.up_prj\.weight" \(did you mean ".*\.mlp\.up_proj\.weight"\?\)',
            ),
            (WeightPatch(UP, delta=np.ones((32, 40))), r"must have shape \(40, 32\), got \(32, 40\)"),
            (
                WeightPatch(UP, left=np.ones((32, 2)), right=np.ones((2, 40))),
                r"must have shape \(40, 32\), got \(32, 40\)",
            ),
            (
                WeightPatch(NORM, left=np.ones((32, 1)), right=np.ones((1, 1))),
                r"must have shape \(32,\), got \(32, 1\)",
            ),
        ],
    )
    def test_name_and_shape(self, patch, said):
        lm = exact("llama")
        good = WeightPatch(NORM, delta=np.ones(32))
        for call in (
            lambda: lm.run(IDS, edit=[good, patch]),
            lambda: lm.edited([good, patch]).__enter__(),
            lambda: lm.generate(IDS, [good, patch], max_new_tokens=1),
        ):
            with untouched(lm), pytest.raises(EditError, match=said):
                call()

    def test_a_quantised_weight(self):
        lm = fresh("llama", check=False)
        whole = torch.nn.Parameter(torch.ones(40, 32, dtype=torch.int8), requires_grad=False)
        lm.hf.model.layers[1].mlp.up_proj.weight = whole
        with pytest.raises(
            EditError, match=r"is stored in torch\.int8: a quantised weight cannot be patched; load in bfloat16"
        ):
            lm.run(IDS, edit=WeightPatch(UP, delta=np.ones((40, 32))))

    def test_in_a_list_of_variants(self):
        with pytest.raises(EditError, match="a variant with weight patches has no shared base run"):
            exact("llama").counterfactuals(IDS, [Intervention.of(WeightPatch(NORM, delta=np.ones(32)))], READOUT)


class TestOnAModel:
    """A patch is what the model with changed weights would do, wherever an intervention can be given."""

    def changed(self):
        lm = fresh("llama", torch.float64, check=False)
        with torch.no_grad():
            lm.hf.get_parameter(UP).add_(torch.tensor(random(40, 32)))
        return lm

    patch = WeightPatch(UP, delta=random(40, 32))

    def test_run_generate_gradients_and_counterfactuals(self):
        lm, changed = exact("llama"), self.changed()
        both = Intervention((Edit.parse("L0.head[1] scale 0"),), (self.patch,))
        with untouched(lm):
            close(lm, lm.run(IDS, edit=both).logits, changed.run(IDS, edit="L0.head[1] scale 0").logits)
            expected = changed.generate(IDS, max_new_tokens=5).ids
            assert lm.generate(IDS, self.patch, max_new_tokens=5).ids == expected
            assert expected != lm.generate(IDS, max_new_tokens=5).ids
            ours, theirs = (
                one.gradients(IDS, READOUT, "L0.resid_post", edit=edit)
                for one, edit in ((lm, self.patch), (changed, None))
            )
            close(lm, ours.gradients["L0.resid_post"], theirs.gradients["L0.resid_post"])
            variants = ["L0.head[1]@3 scale 0", "L1.resid_pre@-1 set 0"]
            with lm.edited(self.patch):
                swept = lm.counterfactuals(IDS, variants, READOUT)
            close(lm, swept.values, changed.counterfactuals(IDS, variants, READOUT).values)
            assert swept.plan.exact == "fast"

    def test_twice_the_intervention_is_twice_the_patch(self):
        lm = exact("llama")
        twice = 2 * Intervention.of(self.patch)
        close(lm, lm.run(IDS, edit=twice).logits, lm.run(IDS, edit=WeightPatch(UP, delta=2 * random(40, 32))).logits)

    def test_nested_blocks_undo_in_turn(self):
        lm = exact("llama")
        with untouched(lm), lm.edited(self.patch):
            inside = digest(lm)
            with lm.edited(self.patch):
                assert digest(lm) != inside
            assert digest(lm) == inside
            lm.run(IDS, edit=self.patch)
            assert digest(lm) == inside

    def test_the_run_says_that_it_was_edited(self):
        assert exact("llama").run(IDS, edit=self.patch).edited

    def test_tied_weights_move_together(self):
        lm = exact("llama")
        assert lm.anatomy.tied
        with untouched(lm), lm.edited(WeightPatch("model.embed_tokens.weight", delta=np.ones((97, 32)))):
            assert torch.equal(lm.hf.lm_head.weight, lm.hf.model.embed_tokens.weight)
        with pytest.raises(EditError, match=r'no parameter "lm_head\.weight"'):
            lm.run(IDS, edit=WeightPatch("lm_head.weight", delta=np.ones((97, 32))))


class TestUntied:
    """A patch marked `untie` changes the embedding and leaves the unembedding that shares its weights as it was."""

    EMBED = "model.embed_tokens.weight"
    patch = WeightPatch(EMBED, delta=random(97, 32), untie=True)

    def changed(self):
        """A model whose embedding alone is another one."""
        lm = fresh("llama", torch.float64, check=False)
        head = lm.hf.lm_head
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        with torch.no_grad():
            lm.hf.model.embed_tokens.weight.add_(torch.tensor(random(97, 32)))
        return lm

    def test_it_is_the_model_with_another_embedding(self):
        lm, changed = exact("llama"), self.changed()
        expected = changed.run(IDS).logits
        with untouched(lm):
            close(lm, lm.run(IDS, edit=self.patch).logits, expected)
            assert lm.generate(IDS, self.patch, max_new_tokens=5).ids == changed.generate(IDS, max_new_tokens=5).ids
            ours, theirs = (
                one.gradients(IDS, READOUT, "L0.resid_post", edit=edit)
                for one, edit in ((lm, self.patch), (changed, None))
            )
            close(lm, ours.gradients["L0.resid_post"], theirs.gradients["L0.resid_post"])
        assert off(lm.run(IDS, edit=self.patch.with_(untie=False)).logits, expected) > 1e-3

    def test_afterwards_the_weights_are_tied_again(self):
        lm = exact("llama")
        shared, plain = lm.hf.lm_head.weight, lm.hf.lm_head.weight.detach().clone()
        hashed = lm.hash
        with untouched(lm), lm.edited(self.patch):
            assert lm.hf.lm_head.weight is not lm.hf.model.embed_tokens.weight
            assert torch.equal(lm.hf.lm_head.weight, plain)
            assert lm.hash == hashed
        assert lm.hf.lm_head.weight is lm.hf.model.embed_tokens.weight is shared
        with untouched(lm), pytest.raises(Broken), lm.edited(self.patch):
            raise Broken
        assert lm.hf.lm_head.weight is lm.hf.model.embed_tokens.weight

    def test_blocks_within_blocks(self):
        lm, tied = exact("llama"), self.patch.with_(untie=False)
        plain = lm.hf.lm_head.weight.detach().clone()
        with untouched(lm), lm.edited(tied), lm.edited(self.patch):
            assert off(lm.hf.lm_head.weight.detach(), plain + torch.tensor(tied.matrix)) < 1e-12
            assert off(lm.hf.model.embed_tokens.weight.detach(), plain + 2 * torch.tensor(tied.matrix)) < 1e-12
            with lm.edited(self.patch):
                assert off(lm.hf.lm_head.weight.detach(), plain + torch.tensor(tied.matrix)) < 1e-12
            assert lm.hf.lm_head.weight is not lm.hf.model.embed_tokens.weight

    def test_a_tied_patch_beside_it_is_meant_for_both(self):
        lm, other = exact("llama"), WeightPatch(self.EMBED, delta=random(97, 32, seed=1))
        plain = lm.hf.lm_head.weight.detach().clone()
        for both in ([other, self.patch], [self.patch, other]):
            with untouched(lm), patched(lm.hf, both):
                assert off(lm.hf.lm_head.weight.detach(), plain + torch.tensor(other.matrix)) < 1e-12
                total = plain + torch.tensor(other.matrix + self.patch.matrix)
                assert off(lm.hf.model.embed_tokens.weight.detach(), total) < 1e-12

    @pytest.mark.parametrize("name", [UP, NORM])
    def test_the_mark_means_nothing_elsewhere(self, name):
        lm = exact("llama")
        patch = WeightPatch(name, delta=random(*lm.hf.get_parameter(name).shape), untie=True)
        with untouched(lm), lm.edited(patch):
            assert lm.hf.lm_head.weight is lm.hf.model.embed_tokens.weight
        apart = exact("gpt_neox")
        patch = WeightPatch("gpt_neox.embed_in.weight", delta=random(97, 32))
        logits = [apart.run(IDS, edit=patch.with_(untie=mark)).logits for mark in (True, False)]
        assert torch.equal(*logits)

    def test_what_does_not_fit_is_refused_before_anything_is_untied(self):
        lm = exact("llama")
        wrong = WeightPatch(UP, delta=np.ones((3, 3)))
        with untouched(lm), pytest.raises(EditError, match="must have shape"):
            lm.run(IDS, edit=[self.patch, wrong])
        assert lm.hf.lm_head.weight is lm.hf.model.embed_tokens.weight


@pytest.mark.parametrize("dtypes", [(np.float32, np.float64), (np.float64, np.float32)])
def test_factors_of_different_precision(dtypes):
    lm = exact("llama")
    left, right = random(40, 2).astype(dtypes[0]), random(2, 32).astype(dtypes[1])
    before = lm.hf.get_parameter(UP).detach().clone()
    with untouched(lm), patched(lm.hf, [WeightPatch(UP, left=left, right=right)]):
        expected = before + torch.tensor(left.astype(np.float64) @ right.astype(np.float64))
        assert off(lm.hf.get_parameter(UP).detach(), expected) < 1e-12


def test_a_patch_is_rounded_once():
    """To half precision only when it has been added."""
    lm = lm_of("llama", torch.bfloat16)
    before = lm.hf.get_parameter(UP).detach().clone()
    delta = random(40, 32) * 1e-2
    with untouched(lm), patched(lm.hf, [WeightPatch(UP, delta=delta)]):
        expected = (before.double() + torch.tensor(delta)).to(torch.bfloat16)
        assert torch.equal(lm.hf.get_parameter(UP).detach(), expected)


def test_experts_have_factors_in_common():
    lm = exact("mixtral")
    name = "model.layers.1.mlp.experts.down_proj"
    left, right = random(32, 2), random(4, 2, 40)
    before = lm.hf.get_parameter(name).detach().clone()
    with untouched(lm), patched(lm.hf, [WeightPatch(name, left=left, right=right)]):
        after = lm.hf.get_parameter(name).detach()
        for expert in range(4):
            assert off(after[expert], before[expert] + torch.tensor(left @ right[expert])) < 1e-12
