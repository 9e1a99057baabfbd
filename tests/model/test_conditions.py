"""An edit in the rows only whose activation points somewhere (arXiv 2409.05907)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.compiling import D, Features, few
from tests.model.tinies import IDS, RAGGED, SIDES, close, exact
from trimtab.errors import EditError
from trimtab.values.edit import Condition, Edit


class TestConditions:
    """An edit in the rows only whose activation points somewhere (arXiv 2409.05907)."""

    def states(self, ids, pool="mean"):
        lm = exact("llama", padded=True)
        run = lm.run(ids, "L0.resid_post")
        rows = [row[mask] for row, mask in zip(run["L0.resid_post"], run.prompts.mask.bool(), strict=True)]
        return torch.stack([row.mean(0) if pool == "mean" else row[-1] for row in rows])

    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("pool", ["mean", "last"])
    def test_true_rows_are_edited_and_false_rows_bitwise_those_of_the_base(self, pool, side):
        lm = exact("llama")
        ids = [*RAGGED, [20, 21, 22]]
        prompts = lm.prompts(ids, padding=side)
        base, everywhere = lm.run(prompts).logits, lm.run(prompts, edit="L1.resid_pre scale -3").logits
        states = self.states(ids, pool)
        for row, state in enumerate(states):
            cosines = torch.nn.functional.cosine_similarity(states, state[None], dim=-1)
            assert sorted(cosines.tolist())[-2] < 0.9
            for above in (True, False):
                condition = Condition("L0.resid_post", state, 0.9, pool, above)
                edit = Edit("L1.resid_pre", "scale", -3.0, when=condition)
                logits = lm.run(prompts, edit=edit).logits
                for other, real in enumerate(prompts.mask.bool()):
                    met = (other == row) == above
                    assert torch.equal(logits[other, real], (everywhere if met else base)[other, real])
                    assert not torch.equal(logits[other, real], (base if met else everywhere)[other, real])
                    if not met:
                        assert torch.equal(logits[other], base[other])

    @few
    @given(threshold=st.floats(-1, 1), above=st.booleans())
    def test_the_threshold_is_a_cosine(self, threshold, above):
        lm = exact("llama")
        direction = np.linspace(-1, 1, D)
        cosines = torch.nn.functional.cosine_similarity(self.states(RAGGED), torch.tensor(direction)[None], dim=-1)
        edit = Edit("L1.resid_pre", "set", 0.0, when=Condition("L0.resid_post", direction, threshold, "mean", above))
        run = lm.run(RAGGED, "L1.resid_pre", edit)
        for row, cosine in enumerate(cosines.tolist()):
            met = cosine > threshold if above else cosine < threshold
            real = run.prompts.mask[row].bool()
            assert (not run["L1.resid_pre"][row, real].any()) == met

    def test_scope_strength_and_rows_hold_too(self):
        lm = exact("llama")
        prompts = lm.prompts(IDS)
        always = Condition("embed", np.ones(D), -1.0)
        edit = Edit("L1.resid_pre", "add", 2.0, where="-2", strength=(0.5, 3.0), rows=(1,), when=always)
        run, base = lm.run(prompts, "L1.resid_pre", edit), lm.run(prompts, "L1.resid_pre")
        expected = base["L1.resid_pre"].clone()
        expected[1, -2] += 6
        close(lm, run["L1.resid_pre"], expected)

    def test_at_positions(self):
        lm = exact("llama")
        state = lm.run(RAGGED, "L0.resid_post@1")["L0.resid_post@1"][1]
        edit = Edit("L1.resid_pre", "set", 0.0, when=Condition("L0.resid_post@1", state, 0.999))
        run = lm.run(RAGGED, "L1.resid_pre", edit)
        assert not run["L1.resid_pre"][1, 2:].any()
        assert run["L1.resid_pre"][0].any(-1).all()

    def test_reads_what_earlier_edits_left(self):
        lm = exact("llama")
        direction = np.eye(D)[3]
        edits = [
            Edit("L0.resid_post", "set", direction * 5, rows=(0,)),
            Edit("L1.resid_pre", "set", 0.0, when=Condition("L0.resid_post", direction, 0.99)),
        ]
        run = lm.run(IDS, "L1.resid_pre", edits)
        assert not run["L1.resid_pre"][0].any()
        assert run["L1.resid_pre"][1].any()

    @pytest.mark.parametrize("site", ["L1.resid_pre", "L1.head", "L1.resid_post", "final"])
    def test_after_its_edit_is_refused(self, site):
        condition = Condition(site, np.ones(D), 0.1)
        with pytest.raises(
            EditError, match=rf"condition reads {site}, which is .*computed .*L1\.resid_pre; choose an earlier"
        ):
            exact("llama").run(IDS, edit=Edit("L1.resid_pre", "scale", 0.0, when=condition))

    @pytest.mark.parametrize(
        "condition",
        [
            Condition("L0.resid_post", np.ones(8), 0.1),
            Condition("L0.resid_post[3]", np.ones(1), 0.1),
            Condition("L0.head", np.ones(4), 0.1),
            Condition("L0.head", np.ones(8), 0.1),
            Condition("L0.pattern", np.ones(4), 0.1),
        ],
        ids=str,
    )
    def test_of_the_wrong_width(self, condition, unchecked):
        with pytest.raises(EditError, match=r"needs a direction of|reads one vector at each position"):
            exact("llama").run(IDS, edit=Edit("L1.resid_pre", "scale", 0.0, when=condition))

    def test_on_a_dictionary_s_features_is_of_the_features_or_refused(self):
        """Never of the tensor under the dictionary."""
        lm, doubled = exact("llama"), Features(-torch.eye(D, dtype=torch.float64))
        state = self.states(IDS)[0]
        condition = Condition("L0.resid_post.feature@d", state, 0.9)
        edit = Edit("L1.resid_pre", "scale", 0.0, when=condition)
        try:
            logits = lm.run(IDS, edit=edit, dictionaries={"d": doubled}).logits
        except EditError:
            return
        features = doubled.encode(lm.run(IDS, "L0.resid_post")["L0.resid_post"]).mean(1)
        met = torch.nn.functional.cosine_similarity(features, state[None], dim=-1) > 0.9
        base = lm.run(IDS).logits
        for row in (0, 1):
            assert torch.equal(logits[row], base[row]) != bool(met[row])
