"""In text, an edit of a selection is an edit at each of its sites."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import IDS, OTHER, close, exact, off
from trimtab.errors import EditError, SiteError
from trimtab.model.protocols import logit_diff


class TestSelections:
    """In text, an edit of a selection is an edit at each of its sites."""

    lm = property(lambda self: exact("llama"))

    @pytest.mark.parametrize(
        ("text", "spelled"),
        [
            ("L*.head[1] scale 0", ["L0.head[1] scale 0", "L1.head[1] scale 0"]),
            ("L0-1.mlp_out@-1 scale 0.5 x 0.5", ["L0.mlp_out@-1 scale 0.5 x 0.5", "L1.mlp_out@-1 scale 0.5 x 0.5"]),
            ("L1.k[*]@2: add 1 rows 1", ["L1.k[0]@2: add 1 rows 1", "L1.k[1]@2: add 1 rows 1"]),
            ("L0.head[0-2] set 0", ["L0.head[0,1,2] set 0"]),
            ("L*.resid_pre@2 set from o", ["L0.resid_pre@2 set from o", "L1.resid_pre@2 set from o"]),
        ],
    )
    def test_spelled_out(self, text, spelled):
        lm = self.lm
        runs = {"o": lm.run(OTHER, "L*.resid_pre")}
        expected = lm.run(IDS, edit=spelled, runs=runs).logits
        assert off(expected, lm.run(IDS).logits) > 1e-4
        assert torch.equal(lm.run(IDS, edit=text, runs=runs).logits, expected)
        assert torch.equal(lm.run(IDS, edit=[text], runs=runs).logits, expected)
        with lm.edited(text, runs=runs):
            assert torch.equal(lm.run(IDS).logits, expected)
        said = [lm.generate(IDS, edit, runs=runs, max_new_tokens=3).ids for edit in (text, spelled)]
        assert said[0] == said[1]

    def test_one_variant_of_many_edits(self):
        lm, readout = self.lm, logit_diff([3, 4], [5, 6])
        found = lm.counterfactuals(IDS, ["L*.head[1] scale 0", ["L0.q scale 0", "L*.k[*] add 1"]], readout)
        spelled = [
            ["L0.head[1] scale 0", "L1.head[1] scale 0"],
            ["L0.q scale 0", "L0.k[0] add 1", "L0.k[1] add 1", "L1.k[0] add 1", "L1.k[1] add 1"],
        ]
        expected = lm.counterfactuals(IDS, spelled, readout)
        close(lm, found.values, expected.values)
        assert found.plan.variants == 2

    def test_sites_that_a_layer_lacks_are_left_out(self):
        lm = exact("qwen2_moe")
        expected = lm.run(IDS, edit=["L0.neuron scale 0"]).logits
        assert torch.equal(lm.run(IDS, edit="L*.neuron scale 0").logits, expected)
        expected = lm.run(IDS, edit=[f"L1.expert[{e}] scale 0" for e in range(4)]).logits
        assert torch.equal(lm.run(IDS, edit="L*.expert[*] scale 0").logits, expected)

    @pytest.mark.parametrize(
        ("text", "error", "said"),
        [
            ("L0-9.head scale 0", SiteError, "layer 2 .*out of range"),
            ("L*.haed scale 0", SiteError, 'did you mean "head"'),
            ("L*.router scale 0", SiteError, "no such site in this model"),
            ("L*.head scle 0", EditError, 'did you mean "scale"'),
            ("L*.head", EditError, "is not an edit"),
            ("", EditError, "is not an edit"),
        ],
    )
    def test_what_cannot_be_read(self, text, error, said):
        for call in (lambda: self.lm.run(IDS, edit=text), lambda: self.lm.generate(IDS, text, max_new_tokens=1)):
            with pytest.raises(error, match=said):
                call()
