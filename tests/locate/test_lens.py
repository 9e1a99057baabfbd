"""The logit lens: the last row is the model's own output, and every number is what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.largest import Largest
from tests.tiny import DENSE, FAMILIES, tiny, tokenizer, words
from trimtab.errors import PromptError, SiteError, TrimtabError
from trimtab.locate import lens as module
from trimtab.locate import logit_lens
from trimtab.model.lm import LM

TEXT = words(5, 6, 7, 8, 9)


def model(family="llama", dtype=torch.float32):
    return LM(tiny(family, dtype), tokenizer(), name=family, check=False)


@pytest.fixture(scope="module")
def lm():
    return model()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_row_is_the_model_s_own_output(family):
    lm = model(family, torch.float64 if family in DENSE else torch.float32)
    lens = logit_lens(lm, TEXT, top=3)
    p = torch.softmax(lm.run(TEXT).logits[0].double(), -1)
    best = p.topk(3, -1)
    assert lens.sites == ("L0.resid_post", "L1.resid_post")
    assert lens.tokens == tuple(TEXT.split())
    np.testing.assert_array_equal(lens.top_ids[-1], best.indices)
    np.testing.assert_allclose(lens.top_probabilities[-1], best.values, rtol=2e-5)
    np.testing.assert_allclose(lens.kl[-1], 0, atol=1e-6)
    assert (lens.rank[-1] == 1).all()
    np.testing.assert_array_equal(lens.targets, best.indices[:, 0])


def test_every_cell_is_the_unembedded_stream(lm, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2 * lm.anatomy.vocab)  # two positions at a time
    sites = ["embed", "L*.resid_mid", "L1.resid_post"]
    lens = logit_lens(lm, TEXT, top=4, answer="w40", sites=sites)
    assert lens.sites == ("embed", "L0.resid_mid", "L1.resid_mid", "L1.resid_post")
    assert lens.answer == "w40"
    assert (lens.targets == 40).all()
    run = lm.run(TEXT, sites)
    own = torch.log_softmax(run.logits[0], -1)
    for i, site in enumerate(lens.sites):
        with torch.no_grad():
            logp = torch.log_softmax(lm.unembed(lm.final(run[site][0])), -1)
        p = logp.exp()
        np.testing.assert_array_equal(lens.top_ids[i], logp.topk(4, -1).indices)
        np.testing.assert_allclose(lens.top_probabilities[i], p.topk(4, -1).values, rtol=1e-4)
        np.testing.assert_allclose(lens.probability[i], p[:, 40], rtol=1e-4)
        np.testing.assert_array_equal(lens.rank[i], 1 + (p > p[:, 40:41]).sum(-1))
        np.testing.assert_allclose(lens.entropy[i], -(p * logp).sum(-1), rtol=1e-4)
        np.testing.assert_allclose(lens.kl[i], (own.exp() * (own - logp)).sum(-1), atol=1e-5)


def test_layers_times_positions_times_vocabulary_is_never_held(lm, monkeypatch):
    """Beyond the model's own logits there are those of a block, whatever the number of layers."""
    monkeypatch.setattr(module, "AT_ONCE", 2 * lm.anatomy.vocab)
    sites = ["embed", "L*.resid_pre", "L*.resid_mid", "L*.resid_post"]
    text = words(*range(5, 55))
    with Largest() as seen:
        logit_lens(lm, text, sites=sites)
    assert seen.entries <= 50 * lm.anatomy.vocab
    assert logit_lens(lm, text, sites=sites).rank.size == 7 * 50


def test_padding_makes_no_column_and_a_batch_is_refused(lm):
    prompts = lm.prompts([TEXT, words(8, 9)])
    alone = logit_lens(lm, prompts.rows([1]))
    assert alone.tokens == ("w8", "w9")
    np.testing.assert_allclose(alone.entropy, logit_lens(lm, words(8, 9)).entropy, rtol=1e-4)
    with pytest.raises(PromptError, match=r"one prompt, got 2: give one text, or prompts.rows\(\[0\]\)"):
        logit_lens(lm, prompts)


def test_edits_show_where_they_act_and_are_told(lm):
    plain, edited = logit_lens(lm, TEXT), logit_lens(lm, TEXT, edit="L1.mlp_out@-1 scale 0")
    np.testing.assert_array_equal(plain.entropy[0], edited.entropy[0])
    np.testing.assert_allclose(plain.entropy[1, :-1], edited.entropy[1, :-1], rtol=1e-5)
    assert plain.entropy[1, -1] != edited.entropy[1, -1]
    assert edited.edits == ("L1.mlp_out@-1 scale 0",)
    assert edited.kl[1].max() < 1e-6  # the output that rows are compared with is the edited one


def test_provenance_names_model_data_and_call(lm):
    p = logit_lens(lm, TEXT, top=2, answer=7).provenance
    assert (p.model, p.model_hash, p.data_hash) == (lm.name, lm.hash, lm.prompts(TEXT).digest)
    assert (p.method, p.options["top"], p.options["answer"], p.dtype) == ("logit_lens", 2, 7, "float32")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"answer": "w5 w6"}, PromptError, "must be one token and is 2"),
        ({"answer": 97}, PromptError, "token id 97 is out of range: the vocabulary has ids 0 to 96"),
        ({"top": 0}, TrimtabError, "from 1 to the vocabulary's 97, got 0"),
        ({"sites": "L*.attn_out"}, SiteError, "L0.attn_out: a lens reads whole residual streams: embed, resid_pre"),
        ({"sites": "L1.resid_post@-1"}, SiteError, "whole residual streams"),
        ({"sites": "L2.resid_post"}, SiteError, "out of range"),
    ],
)
def test_bad_input(lm, options, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        logit_lens(lm, TEXT, **options)


def test_paris(bundled):
    lens = logit_lens(bundled, "The capital of France is", sites=["L0.resid_post", "L29.resid_post"])
    assert lens.top(-1)[0].token == " Paris"
    assert lens.rank[0, -1] > 100
    assert lens.first_at() == "L29.resid_post"
