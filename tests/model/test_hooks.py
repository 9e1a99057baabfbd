"""Hooks live exactly as long as a call or a block, also when it raises, and act in the order of computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.tinies import CORE, IDS, RAGGED, every_site, lm_of, plain_logits, state, untouched
from tests.tiny import FAMILIES
from trimtab.errors import EditError, SiteError
from trimtab.model.frame import Frame
from trimtab.model.hooks import Hooks, Step
from trimtab.model.protocols import Readout, logit_diff
from trimtab.values.edit import Condition, Edit, Intervention, Ref, WeightPatch
from trimtab.values.site import Site

READOUT = logit_diff([3, 4], [5, 6])


class Broken(Exception):
    """What the model raises half-way in these tests."""


class Breaking:
    """Makes the model raise in its last block, after every hook before it has run."""

    def __init__(self, lm, error=Broken):
        self.module, self.error = lm.anatomy.blocks[-1].o, error

    def __enter__(self):
        def fail(*_):
            raise self.error

        self.handle = self.module.register_forward_hook(fail)

    def __exit__(self, *_):
        self.handle.remove()


def all_edits(lm):
    """An edit at every site of the model at once."""
    return [Edit(site, "scale", 0.9) for site in every_site(lm)]


def patch(lm):
    name, weight = next((n, w) for n, w in lm.hf.named_parameters() if w.ndim == 2 and "embed" not in n)
    return WeightPatch(name, delta=np.ones(tuple(weight.shape)))


@pytest.mark.parametrize("family", FAMILIES)
class TestNothingIsLeft:
    def test_after_calls(self, family):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED)
        before = plain_logits(lm, prompts)
        with untouched(lm):
            lm.run(prompts, every_site(lm), all_edits(lm))
            lm.run(prompts, "L0.pattern", logits=False)
            lm.generate(prompts, all_edits(lm), max_new_tokens=2)
            lm.counterfactuals(prompts, [*all_edits(lm), "L1.head[1] scale 0"], READOUT)
            lm.gradients(prompts, READOUT, ["L0.resid_post", "L1.pattern"], edit="L0.mlp_out scale 0.5")
            with lm.edited([*all_edits(lm), patch(lm)]):
                lm.run(prompts)
        assert torch.equal(plain_logits(lm, prompts), before)

    def test_after_errors_half_way(self, family):
        lm = lm_of(family)
        prompts = lm.prompts(RAGGED)
        with untouched(lm):
            with Breaking(lm), pytest.raises(Broken):
                lm.run(prompts, every_site(lm), [*all_edits(lm), patch(lm)])
            with Breaking(lm), pytest.raises(Broken):
                lm.generate(prompts, [*all_edits(lm), patch(lm)], max_new_tokens=2)
            with Breaking(lm), pytest.raises(Broken):
                lm.counterfactuals(prompts, ["L1.head[1] scale 0"], READOUT)
            with Breaking(lm), pytest.raises(Broken):
                lm.gradients(prompts, READOUT, ["L0.resid_post", "L1.pattern"], edit=patch(lm))
            with Breaking(lm, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
                lm.run(prompts, every_site(lm), [*all_edits(lm), patch(lm)])
            with torch.no_grad(), pytest.raises(Broken), lm.edited([*all_edits(lm), patch(lm)]), Breaking(lm):
                lm.hf(input_ids=prompts.ids, attention_mask=prompts.mask)


class TestErrorsOnTheWay:
    """Each stops a call at another moment: before hooks are on, while they are put on, while they run."""

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"edit": "L7.head scale 0"}, SiteError),
            ({"edit": ["L0.pattern scale 0", Edit("L1.resid_post", "set", Ref("nowhere"))]}, EditError),
            ({"read": ["L0.pattern", "L1.resid_post", "L1.expert"]}, SiteError),
            ({"edit": ["L0.resid_mid scale 0", "L1.rot_q scale 0", "L1.expert scale 0"]}, SiteError),
            ({"edit": [Intervention(patches=(WeightPatch("no.such", delta=np.ones(2)),)), "L0.q scale 0"]}, EditError),
            ({"edit": Edit("L1.q", "scale", 0.0, when=Condition("L0.pattern", np.ones(4), 0.1))}, EditError),
        ],
    )
    def test_run(self, options, error):
        lm = lm_of("mixtral")
        with untouched(lm), pytest.raises(error):
            lm.run(RAGGED, **options)

    def test_in_the_readout(self):
        lm = lm_of("llama")

        def fail(*_):
            raise Broken

        for call in (lm.counterfactuals, lambda *a: lm.gradients(a[0], a[2], "L0.head")):
            with untouched(lm), pytest.raises(Broken):
                call(RAGGED, ["L0.head scale 0"], Readout(fail))

    def test_in_the_progress(self):
        lm = lm_of("llama")

        def fail(*_):
            raise Broken

        with untouched(lm), pytest.raises(Broken):
            lm.counterfactuals(RAGGED, ["L0.head scale 0"], READOUT, progress=fail)


class TestHooks:
    def frame(self, lm):
        prompts = lm.prompts(IDS)
        return prompts, Frame.whole(prompts)

    def test_steps_run_in_the_order_of_computation_and_looks_see_changes(self):
        lm = lm_of("llama")
        prompts, frame = self.frame(lm)
        seen = []

        def look(name):
            def act(raw, tap, _):
                seen.append((name, float(raw.abs().max())))

            return Step(Site(name, 0), look=act)

        def change(name):
            def act(x, _):
                seen.append((f"change {name}", 0.0))
                return torch.zeros_like(x)

            return Step(Site(name, 0), change=act)

        steps = [look("attn_out"), change("attn_out"), look("attn_raw"), look("head"), change("head")]
        with untouched(lm), Hooks(lm.anatomy, steps, lambda: frame), torch.no_grad():
            lm.call(prompts)
        # attn_raw and attn_out are one tensor in this family: what was read of the first is not what came of the second
        assert [name for name, _ in seen] == ["change head", "head", "attn_raw", "change attn_out", "attn_out"]
        assert [value for name, value in seen if "change" not in name] == [0, 0, 0]

    def test_a_change_that_gives_back_its_tensor_changes_nothing(self):
        lm = lm_of("gemma2")
        prompts, frame = self.frame(lm)
        steps = [Step(site, change=lambda x, _: x) for site in every_site(lm) if site.name not in CORE]
        with Hooks(lm.anatomy, steps, lambda: frame), torch.no_grad():
            assert torch.equal(lm.call(prompts).logits, plain_logits(lm, prompts))

    def test_a_change_of_the_stream_reaches_all_who_hold_it(self):
        """The middle of a block is read by the norm and by the residual path: both go on with what was set."""
        lm = lm_of("llama")
        run = lm.run(IDS, ["L0.resid_post", "L0.mlp_out"], "L0.resid_mid set 0")
        assert torch.equal(run["L0.resid_post"], run["L0.mlp_out"])

    def test_an_error_while_hooks_are_put_on_takes_off_those_that_are(self):
        lm = lm_of("mixtral")
        prompts, frame = self.frame(lm)
        before = state(lm)
        steps = [Step(Site("pattern", 0), look=lambda *_: None), Step(Site("expert", 1), look=lambda *_: None)]
        with pytest.raises(
            SiteError, match=r"L1\.expert: name one expert, L1\.expert\[0\], or select all: expert\[\*\]"
        ):
            Hooks(lm.anatomy, steps, lambda: frame).__enter__()
        assert state(lm) == before
        assert prompts.batch == 2

    def test_an_absent_site_is_refused_before_anything_is_on(self):
        lm = lm_of("llama")
        with untouched(lm), pytest.raises(SiteError, match="does not exist here"):
            Hooks(lm.anatomy, [Step(Site("router", 0))], lambda: Frame.whole(lm.prompts(IDS)))


def test_logits_of_the_last_positions_only():
    """A model that is asked for its last logits only is edited at the columns that these are."""
    lm = lm_of("llama")
    prompts = lm.prompts(RAGGED)
    edits = ["logits@-1 add 3", "logits@-2 add 3", "logits@0 add 3", "logits add 3", "logits[4,9]@-1 set 2"]
    edits += ["final@-1 scale 0.5", "final@-2 add 1", "final[3,7]@-1 set 2", "final[3]@0 set 2", "final scale -1"]
    for edit in edits:
        whole = lm.run(prompts, edit=edit).logits
        with lm.edited(edit), torch.no_grad():
            for kept in (1, 3):
                given = {"input_ids": prompts.ids, "attention_mask": prompts.mask, "position_ids": prompts.position_ids}
                part = lm.hf(**given, logits_to_keep=kept).logits
                assert torch.allclose(part, whole[:, -kept:], atol=1e-5)
