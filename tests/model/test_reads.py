"""Reading while text is generated: what a step sees for the first time is what a run of the finished text has there."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import RAGGED, SIDES, close, exact, lm_of, untouched
from tests.tiny import FAMILIES
from trimtab.errors import PromptError, SiteError
from trimtab.values.edit import Edit

NEW = 4
READ = ["embed", "L*.resid_post", "L1.head", "L0.k", "L1.neuron", "L0.mlp_out"]


def heard(lm, prompts, edit=None, **options):
    """Tokens of each row, and what was read: (site, row) -> (token unit …), those of the prompt first."""
    pieces = list(lm.stream(prompts, edit, **({"max_new_tokens": NEW} | options)))
    rows = [[p.ids[row] for p in pieces if p.ids[row] is not None] for row in range(len(pieces[0].ids))]
    mask = lm.prompts(prompts).pad("left").mask.bool()
    read = {}
    for site in pieces[0].read:
        for row, real in enumerate(mask):
            after = [piece.read[site][row] for piece in pieces[1 : 1 + len(rows[row])]]
            read[site, row] = torch.cat([pieces[0].read[site][row, real], *after])
    return rows, read


def present(lm):
    return [site for site in READ if not (site == "L1.neuron" and "neuron" not in lm.anatomy.present(1))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", SIDES)
def test_what_is_read_on_the_way_is_what_the_finished_text_has(family, side):
    lm = exact(family, padded=True)
    prompts, edit = lm.prompts(RAGGED, padding=side), Edit("L0.resid_post", "scale", 1.3)
    with untouched(lm):
        rows, read = heard(lm, prompts, edit, read=present(lm))
    assert rows == [list(ids) for ids in lm.generate(prompts, edit, max_new_tokens=NEW).ids]
    for row, ids in enumerate(RAGGED):
        again = lm.run([ids + rows[row]], present(lm), edit)
        for site in again:
            close(lm, read[site, row], again.whole(site)[0], (site, row), times=5)


def test_cached_is_uncached_and_edits_are_seen():
    lm = exact("llama")
    edit = Edit("L0.resid_post", "add", 0.5, where="generated")
    cached, plain = heard(lm, RAGGED, edit, read="L*.resid_post"), heard(lm, RAGGED, read="L*.resid_post")
    uncached = heard(lm, RAGGED, edit, read="L*.resid_post", cache=False)
    assert cached[0] == uncached[0]
    for place, values in cached[1].items():
        close(lm, values, uncached[1][place], place)
    assert any(not torch.equal(cached[1][place][7:], plain[1][place][7:]) for place in plain[1])


def test_the_last_token_is_read_too_and_a_row_that_ended_waits():
    lm = exact("llama")
    end = Edit("logits[2]", "add", 1000.0, rows=(1,))
    pieces = list(lm.stream(RAGGED, end, max_new_tokens=NEW, read="L1.resid_post"))
    assert [piece.ids[1] for piece in pieces] == [2, None, None, None, None]
    assert [piece.ids[0] is None for piece in pieces] == [False] * NEW + [True]
    assert pieces[-1].texts == ("", "")
    both = list(lm.stream(RAGGED, "logits[2] add 1000", max_new_tokens=NEW, read="L1.resid_post"))
    assert [piece.ids for piece in both] == [(2, 2), (None, None)]
    assert [piece.ids for piece in lm.stream(RAGGED, "logits[2] add 1000")] == [(2, 2)]


def test_a_unit_is_read_alone():
    lm = exact("llama")
    (_, whole), (_, one) = heard(lm, RAGGED, read="L1.head"), heard(lm, RAGGED, read="L1.head[2]")
    for (site, row), values in one.items():
        close(lm, values, whole[site.whole, row][:, [2]])


def test_errors():
    lm = lm_of("gpt2")
    with untouched(lm):
        with pytest.raises(SiteError, match="leave the positions out"):
            list(lm.stream(RAGGED, read="L0.resid_post@-1"))
        for site in ("L0.pattern", "L0.scores", "final", "logits"):
            with pytest.raises(SiteError, match="run the finished text"):
                list(lm.stream(RAGGED, read=site))
        with pytest.raises(PromptError, match=r"lm\.stream"):
            lm.generate(RAGGED, read="L0.resid_post")
        rows = [[5] * 60]
        with pytest.raises(PromptError, match="max_new_tokens is at most 4 here"):
            list(lm.stream(rows, read="L0.resid_post", max_new_tokens=5))
        assert len(list(lm.stream(rows, "logits[2] add -1000", read="L0.resid_post", max_new_tokens=4))) == 5
