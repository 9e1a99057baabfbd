"""Values from another run: which rows and which positions."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import IDS, OTHER, RAGGED, SIDES, close, exact, real
from trimtab.errors import EditError, SiteError
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site


class TestPatching:
    lm = property(lambda self: exact("llama"))

    def test_by_span_between_prompts_of_different_length(self):
        lm = self.lm
        clean = lm.prompts(["w5 w6 w7 w8 w9 w10", "w7 w8 w30"], spans={"s": "w7 w8"})
        corrupt = lm.prompts(["w20 w21 w22 w23", "w24 w25 w26 w27 w28"], spans={"s": ["w22 w23", "w25 w26"]})
        run = lm.run(clean, "L0.resid_post")
        patched = lm.run(corrupt, "L0.resid_post", Edit("L0.resid_post@s", "set", Ref("clean")), runs={"clean": run})
        assert torch.equal(patched["L0.resid_post@s"], run["L0.resid_post@s"])
        base = lm.run(corrupt, "L0.resid_post")
        left = ~corrupt.columns("s")
        assert torch.equal(patched["L0.resid_post"][left], base["L0.resid_post"][left])

    def test_from_another_site_and_position(self):
        lm = self.lm
        run = lm.run(OTHER, ["L1.head", "L0.resid_post"])
        edit = Edit("L1.head[0]@-1", "set", Ref("o", Site.parse("L1.head[3]"), "2"))
        patched = lm.run(IDS, "L1.head", edit, runs={"o": run})
        assert torch.equal(patched["L1.head[0]@-1"], run["L1.head[3]@2"])
        edit = Edit("L1.resid_pre@1:4", "add", Ref("o", Site.parse("L0.resid_post"), "0"))
        patched, base = lm.run(IDS, "L1.resid_pre", edit, runs={"o": run}), lm.run(IDS, "L1.resid_pre")
        expected = base["L1.resid_pre@1:4"] + run["L0.resid_post@0"][:, None]
        assert torch.equal(patched["L1.resid_pre@1:4"], expected)

    def test_one_row_for_all(self):
        lm = self.lm
        run = lm.run(OTHER[:1], "L0.resid_post")
        patched = lm.run(IDS, "L0.resid_post", "L0.resid_post@2 set from o", runs={"o": run})
        for row in (0, 1):
            assert torch.equal(patched["L0.resid_post@2"][row], run["L0.resid_post@2"][0])

    def test_across_paddings(self):
        """A run of the same prompts padded at the other end gives the same values, also of attention patterns."""
        lm = exact("llama")
        left, right = (lm.prompts(RAGGED, padding=side) for side in SIDES)
        base = lm.run(left).logits
        for name in ("resid_post", "head", "pattern", "scores"):
            run = lm.run(right, f"L1.{name}")
            logits = lm.run(left, edit=Edit(f"L1.{name}", "set", Ref("same")), runs={"same": run}).logits
            close(lm, real(left, logits), real(left, base), name)

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            ("L0.head set from clean", r'no run named "clean" was given \(runs: o, short\); pass runs='),
            ("L0.head set from o:L0.resid_post", r"L0\.resid_post has units \(32\), L0\.head has \(4 8\)"),
            ("L0.head set from short", r"row 0 has 7 positions to set and run \"short\" has 5 there; compare"),
            ("L0.head@2:4 set from o@1:4", 'row 0 has 2 positions to set and run "o" has 3 there'),
            ("L0.resid_post@-1 set from three", 'run "three" has 3 rows, the prompts have 2'),
        ],
    )
    def test_what_does_not_fit(self, edit, said):
        lm = self.lm
        runs = {"o": lm.run(OTHER, ["L0.head", "L0.resid_post"]), "short": lm.run([[3, 4, 5, 6, 7]], "L0.head")}
        if "three" in edit:
            runs["three"] = lm.run([[3, 4]] * 3, "L0.resid_post")
        with pytest.raises(EditError, match=said):
            lm.run(IDS, edit=edit, runs=runs)

    def test_a_site_that_the_other_run_did_not_read(self):
        with pytest.raises(SiteError, match=r'"L0\.head" was not read in this run'):
            self.lm.run(IDS, edit="L0.head set from o", runs={"o": self.lm.run(OTHER, "L1.head")})
