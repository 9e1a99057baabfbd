"""Watching: margins on the way equal those of a second pass, and a text is flagged where it turns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import NEGATIVE, POSITIVE, pairs, planted
from tests.model.tinies import RAGGED, SIDES, exact, lm_of, untouched
from tests.tiny import FAMILIES, tiny, tokenizer, words
from trimtab.errors import SiteError, TrimtabError
from trimtab.locate.monitors import fit_monitor
from trimtab.locate.watching import watch, watch_stream
from trimtab.model.lm import LM
from trimtab.values.edit import Edit
from trimtab.values.watched import Watched

TRAIN, SITE = pairs(16, groups=4, name="train"), "L1.resid_post"


@pytest.mark.parametrize("family", FAMILIES)
def test_margins_on_the_way_are_those_of_a_second_pass(family):
    lm = exact(family, padded=True)
    monitors = {"stream": fit_monitor(lm, TRAIN, SITE, kind="difference")}
    monitors["head"] = fit_monitor(lm, TRAIN, "L0.head[2]", kind="difference", read="last")
    prompts, edit = lm.prompts(RAGGED, padding=SIDES[len(family) % 2]), Edit("L0.resid_post", "scale", 1.3)
    heard = []
    with untouched(lm):
        found = watch(lm, prompts, monitors, edit, on_token=heard.append, max_new_tokens=4)
    plain = lm.generate(prompts, edit, max_new_tokens=4)
    streamed = list(watch_stream(lm, prompts, monitors, edit, max_new_tokens=4))
    for row, ids in enumerate(RAGGED):
        assert tuple(piece.ids[row] for piece in heard if piece.ids[row] is not None) == plain.ids[row]
        again = lm.run([ids + list(plain.ids[row])], [m.site for m in monitors.values()], edit)
        for name, monitor in monitors.items():
            margins = monitor.margin(again[monitor.site][0].double().numpy())
            size = np.abs(margins).max()
            np.testing.assert_allclose(found.margins[name][row, : len(margins)], margins, atol=1e-4 * size)
            said = [piece.margins[name][row] for piece in streamed[: len(plain.ids[row])]]
            np.testing.assert_allclose(said, margins[len(ids) :], atol=1e-4 * size)
            if monitor.pooled:
                text = margins[len(ids) :].mean()
                np.testing.assert_allclose(found.running(name)[row, len(plain.ids[row]) - 1], text, atol=1e-4 * size)
                np.testing.assert_allclose(found.of_prompt(name)[row], margins[1 : len(ids)].mean(), atol=1e-4 * size)
            else:
                np.testing.assert_allclose(found.of_prompt(name)[row], margins[len(ids) - 1], atol=1e-4 * size)


def test_a_prompt_s_margin_is_that_of_its_text_without_the_template():
    own = copy.deepcopy(tokenizer())  # other tests read the one that is shared
    own.chat_template = "{% for m in messages %}w90 w91 {{ m['content'] }} w92{% endfor %} w93"
    lm = LM(tiny("llama", torch.float64), own, name="own", check=False)
    monitor = fit_monitor(lm, TRAIN, SITE, kind="difference")
    texts = [words(40, 41, 42), words(50, 51)]
    found = watch(lm, texts, monitor, chat=True, max_new_tokens=1)
    made = lm.prompts(texts, chat=True, spans={"text": texts})
    for row, places in enumerate(made.spans["text"]):
        margins = found.margins["train"][row]
        assert [found.tokens[row][i] for i in places] == texts[row].split()
        np.testing.assert_allclose(found.of_prompt("train")[row], margins[list(places)].mean())
        assert found.prompt[row] > len(places) + 1


def test_a_text_that_turns_is_flagged_where_it_does():
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, "embed", kind="difference", false_positive_rate=0.0, least_tokens=1)
    turn = {NEGATIVE: None, POSITIVE: 0}
    for token, first in turn.items():
        found = watch(lm, [[40, 41, 42]], monitor, f"logits[{token}] add 1000", max_new_tokens=3)
        assert found.flagged("train") == (first,)
        assert found.tokens[0][3:] == (f"w{token}",) * 3
    assert "train" in found._repr_html_()
    assert len(found.to_frame()) == 6


def test_a_row_that_ended_is_nan():
    lm = lm_of("llama")
    monitor = fit_monitor(lm, TRAIN, SITE, kind="difference")
    found = watch(lm, RAGGED, monitor, Edit("logits[2]", "add", 1000.0, rows=(1,)), max_new_tokens=3)
    assert np.isnan(found.new("train")[1]).tolist() == [False, True, True]
    assert found.tokens[1][-1] == "</s>"


def test_save_and_load(tmp_path):
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, SITE)
    found = watch(lm, RAGGED, monitor, max_new_tokens=2)
    found.save(tmp_path / "watched.safetensors")
    again = Watched.load(tmp_path / "watched.safetensors")
    assert again == found
    x = torch.randn(4, 32).numpy()
    np.testing.assert_array_equal(again.monitors["train"].margin(x), monitor.margin(x))


def test_errors():
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, SITE)
    with pytest.raises(TrimtabError, match="leave read out"):
        watch(lm, RAGGED, monitor, read="embed")
    with pytest.raises(TrimtabError, match="no monitor"):
        watch(lm, RAGGED, {})
    with pytest.raises(TrimtabError, match='no monitor "trian"'):
        watch(lm, RAGGED, monitor, max_new_tokens=1).running("trian")
    other = fit_monitor(lm_of("opt-350m"), TRAIN, "L0.head[2]")
    with pytest.raises(SiteError, match="fitted on"):
        watch(lm_of("llama-bias"), RAGGED, other, max_new_tokens=1)
