"""Edits compiled against prompts: what one does to a token does not depend on which other tokens are shown."""

from __future__ import annotations

import pytest
import torch

from tests.model.compiling import OPS, D, compiled, normal
from tests.model.tinies import IDS, RAGGED, SIDES, exact, off
from trimtab.errors import SiteError
from trimtab.model.frame import Frame
from trimtab.values.edit import Edit


class TestFrames:
    """What an edit does to a token is the same whichever columns and rows are shown with it."""

    EDITS = (
        *(Edit("L0.resid_post", op, value, where="1:") for op, value in OPS.values()),
        Edit("L0.resid_post", "add", normal(3, 2, 7, D)),
        Edit("L0.resid_post", "scale", normal(3, 2, D), strength=(0.5, 2.0)),
        Edit("L0.resid_post[3,9]", "set", 1.0, rows=(1,)),
    )

    @pytest.mark.parametrize("edit", EDITS, ids=str)
    @pytest.mark.parametrize("side", SIDES)
    def test_columns(self, edit, side):
        x = normal(5, 2, 7, D)
        one, prompts = compiled(edit, RAGGED, side)
        whole = one.apply(x, Frame.whole(prompts))
        for cut in range(1, 7):
            parts = [
                one.apply(x[:, start:stop], Frame(prompts, 2, start, stop - start))
                for start, stop in ((0, cut), (cut, 7))
            ]
            assert off(torch.cat(parts, 1), whole) < 1e-14

    @pytest.mark.parametrize("edit", EDITS, ids=str)
    def test_rows(self, edit):
        x = normal(5, 2, 7, D)
        one, prompts = compiled(edit)
        frame = Frame.whole(prompts)
        whole = one.apply(x, frame)
        for rows in ([0], [1], [1, 0], [0, 1, 1, 0, 1]):
            picked = one.apply(x[rows], frame.pick(torch.tensor(rows)))
            assert off(picked, whole[rows]) < 1e-14
            suffix = Frame(prompts, len(rows), 3, 4, torch.tensor(rows))
            assert off(one.apply(x[rows][:, 3:], suffix), whole[rows][:, 3:]) < 1e-14
            again = suffix.pick(torch.tensor([0, 0]))
            assert off(one.apply(x[rows[:1] * 2][:, 3:], again), whole[rows[:1] * 2][:, 3:]) < 1e-14

    @pytest.mark.parametrize("edit", EDITS, ids=str)
    def test_moved_says_where_it_changes_anything(self, edit):
        x = normal(5, 2, 7, D)
        one, prompts = compiled(edit)
        frame = Frame.whole(prompts)
        assert torch.equal(one.moved(x, frame), (one.apply(x, frame) != x).any(-1))


def test_an_unknown_site_and_a_head_that_is_not_there():
    with pytest.raises(SiteError, match='did you mean "neuron"'):
        exact("llama").run(IDS, edit="L0.neurn scale 0")
    with pytest.raises(SiteError, match="head 9 is out of range; there are heads 0 to 3"):
        exact("llama").run(IDS, edit="L0.head[9] scale 0")


def test_edits_at_one_site_follow_each_other():
    run = exact("llama").run(IDS, "L0.head", ["L0.head[1] set 2", "L0.head scale 3", "L0.head[1]@-1 add 1"])
    base = exact("llama").run(IDS, "L0.head")["L0.head"]
    expected = base * 3
    expected[:, :, 1] = 6
    expected[:, -1, 1] = 7
    assert torch.equal(run["L0.head"], expected)
