"""The tuned lens: the identity is the logit lens, training comes nearer, and a known affine map is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.tinies import exact, fresh, lm_of, untouched
from tests.tiny import words
from trimtab.errors import FileError, ModelError, SiteError, TrimtabError
from trimtab.locate import lens_training, tuned_lens
from trimtab.locate.lens import logit_lens
from trimtab.locate.lens_training import Positions
from trimtab.locate.plans import cost
from trimtab.locate.tuned_lens import gradients, train_tuned_lens
from trimtab.values.tuned_lens import TunedLens

RNG = np.random.default_rng(0)
TEXTS = [words(*RNG.integers(3, 97, 14).tolist()) for _ in range(40)]
QUICK = {"steps": 60, "tokens": 60 * 32, "check": 200}
TEXT = TEXTS[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt-350m", "falcon", "mixtral"])
def test_identity_initialised_it_is_the_logit_lens(family):
    lm = lm_of(family)
    lens = TunedLens.identity(["L0.resid_post", "L1.resid_post"], 32, model_hash=lm.hash)
    plain, tuned = logit_lens(lm, TEXT), logit_lens(lm, TEXT, lens=lens)
    for name in ("top_ids", "top_probabilities", "rank", "entropy", "kl"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(tuned, name))
    assert (plain.method, tuned.method) == ("logit lens", "tuned lens")
    assert tuned.provenance.options["lens"] == lens.digest


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt-350m"])
def test_its_gradients_are_those_of_the_divergence(family):
    """Against automatic differentiation through translator, norm and unembedding, also in groups of sites."""
    lm = exact(family, padded=True)
    sites = lm.sites(["embed", "L0.resid_post", "L1.resid_post"])
    batch = next(Positions(lm, lm.prompts(TEXTS[:4]), sites, 6, 4, 0).once(6))
    torch.manual_seed(0)
    wide = batch.streams.dtype
    weight = (0.1 * torch.randn(2, 32, 32)).to(wide).requires_grad_()
    bias = (0.1 * torch.randn(2, 32)).to(wide).requires_grad_()
    own = torch.log_softmax(lm.unembed(lm.final(batch.streams[-1].to(lm.dtype))), -1).detach()
    moved = batch.streams[:2] + batch.streams[:2] @ weight.mT + bias[:, None]
    logp = torch.log_softmax(lm.unembed(lm.final(moved.to(lm.dtype))), -1)
    kl = (own.exp() * (own - logp)).sum(-1).mean(1)
    expected = torch.autograd.grad(kl.sum(), (weight, bias))
    for some, slopes, found in gradients(lm, batch, weight.detach(), bias.detach()):
        np.testing.assert_allclose(found, kl.detach()[some], rtol=1e-5)
        for ours, theirs in zip(slopes, expected, strict=True):
            torch.testing.assert_close(ours, theirs[some], rtol=1e-4, atol=1e-6)


def test_training_lowers_the_held_out_divergence_and_says_on_what():
    lm = lm_of("llama")
    calls = []
    with untouched(lm):
        lens = train_tuned_lens(lm, TEXTS, progress=lambda done, total: calls.append((done, total)), **QUICK)
    assert lens.sites == ("L0.resid_post", "L1.resid_post")
    assert lens.after[0] < 0.75 * lens.before[0]
    assert lens.before[1] == lens.after[1] == 0
    assert not lens.weight[1].any()
    assert lens.held_out == 8 * 13  # a fifth of the texts, without first positions
    assert lens.trained == {"positions": 1920, "different": 32 * 13, "rows": 32, "per_step": 32, "steps": 60}
    assert lens.model_hash == lm.hash
    assert lens.losses[-5:, 0].mean() < 0.75 * lens.losses[:2, 0].mean()
    assert calls[-1] == (60, 60)
    shown = logit_lens(lm, TEXT, lens=lens)
    np.testing.assert_array_equal(shown.entropy[1], logit_lens(lm, TEXT).entropy[1])
    assert shown.kl[0].mean() < logit_lens(lm, TEXT).kl[0].mean()


def test_held_out_divergence_is_that_of_the_lens_shown():
    lm = lm_of("gpt2", torch.float64)
    apart = [words(5, 6, 7, 8), words(9, 10, 11)]
    lens = train_tuned_lens(lm, TEXTS, held_out=apart, steps=5, tokens=100)
    for given, expected in ((None, lens.before), (lens, lens.after)):
        cells = np.concatenate([logit_lens(lm, text, lens=given).kl[:, 1:] for text in apart], axis=1)
        np.testing.assert_allclose(cells.mean(1)[0], expected[0], rtol=1e-5)


def test_it_does_not_depend_on_the_sites_trained_with_it(monkeypatch):
    monkeypatch.setattr(lens_training, "POOL", 64 * 40)  # a few rows at a time, so that the order tells
    lm = lm_of("llama")
    both = train_tuned_lens(lm, TEXTS, sites=["embed", "L0.resid_pre", "L0.resid_post"], steps=6, tokens=60)
    one = train_tuned_lens(lm, TEXTS, sites="L0.resid_post", steps=6, tokens=60)
    np.testing.assert_allclose(one.weight[0], both.weight[both.row("L0.resid_post")], atol=1e-6)
    monkeypatch.setattr(tuned_lens, "AT_ONCE", 1)
    alone = train_tuned_lens(lm, TEXTS, sites=["embed", "L0.resid_post"], steps=6, tokens=60)
    np.testing.assert_allclose(alone.weight, both.weight[[both.row(site) for site in alone.sites]], atol=1e-6)


def test_an_exactly_affine_last_layer_is_recovered():
    """The last block adds one constant vector: the best translator is x + b with that b, and nothing is left."""
    lm = fresh("gpt2", torch.float64)
    torch.manual_seed(5)
    block = lm.hf.transformer.h[1]
    with torch.no_grad():
        block.attn.c_proj.weight.zero_()
        block.mlp.c_proj.weight.zero_()
        block.attn.c_proj.bias.copy_(torch.randn(32))
        block.mlp.c_proj.bias.zero_()
    wanted = block.attn.c_proj.bias.detach().numpy()
    wanted = wanted - wanted.mean()  # the norm takes the mean away, so nothing is to be learned of it
    lens = train_tuned_lens(lm, TEXTS, sites="L0.resid_post", steps=400, tokens=400 * 64, weight_decay=0.0)
    assert lens.before[0] > 1
    assert lens.after[0] < 0.02 * lens.before[0]
    perfect = lens.with_(weight=np.zeros_like(lens.weight), bias=wanted[None])
    assert logit_lens(lm, TEXT, sites="L0.resid_post", lens=perfect).kl.max() < 1e-9
    stream = torch.cat([lm.run(text, "L0.resid_post")["L0.resid_post"][0, 1:] for text in TEXTS]).numpy()
    added = (stream @ lens.weight[0].T + lens.bias[0]).mean(0)
    assert np.corrcoef(added - added.mean(), wanted)[0, 1] > 0.95


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    lm, path = lm_of("llama"), tmp_path / "half.safetensors"
    monkeypatch.setattr(tuned_lens, "SAVE_EVERY", 4)
    whole = train_tuned_lens(lm, TEXTS, steps=10, tokens=100)

    class Enough(Exception):
        pass

    def stop(done, total):
        if done == 6:
            raise Enough

    with pytest.raises(Enough):
        train_tuned_lens(lm, TEXTS, steps=10, tokens=100, checkpoint=path, progress=stop)
    with pytest.raises(FileError, match="another training"):
        train_tuned_lens(lm, TEXTS, steps=10, tokens=100, lr=0.2, checkpoint=path)
    done = []
    again = train_tuned_lens(
        lm, TEXTS, steps=10, tokens=100, checkpoint=path, progress=lambda now, total: done.append(now)
    )
    assert done[0] == 5
    np.testing.assert_array_equal(again.weight, whole.weight)
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert not path.exists()


def test_bfloat16_training_is_nearly_the_same():
    lm = lm_of("llama")
    plain, rounded = (train_tuned_lens(lm, TEXTS, precision=p, **QUICK) for p in ("float32", "bfloat16"))
    assert not np.array_equal(plain.weight, rounded.weight)
    np.testing.assert_allclose(rounded.after, plain.after, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": "L*.attn_out"}, SiteError, "as wide as the residual stream"),
        ({"sites": "L0.resid_post@-1"}, SiteError, "write L0.resid_post"),
        ({"steps": 0}, TrimtabError, "steps of a training must be above zero, got 0"),
        ({"texts": [TEXT]}, TrimtabError, "give two texts or more"),
    ],
)
def test_bad_input(options, error, message):
    given = {"texts": TEXTS, "steps": 2, "tokens": 8} | options
    with pytest.raises(error, match=message):
        train_tuned_lens(lm_of("llama"), **given)
    with pytest.raises(error, match=message):
        cost(train_tuned_lens, lm_of("llama"), given.pop("texts"), given)


def test_a_lens_of_another_model_is_refused():
    lens = TunedLens.identity(["L0.resid_post"], 32, model="m", model_hash="other")
    with pytest.raises(ModelError, match=r"lens.with_\(model_hash=lm.hash\)"):
        logit_lens(lm_of("llama"), TEXT, sites="L0.resid_post", lens=lens)


def test_text_without_a_position_to_train_on():
    lm = lm_of("llama")
    source = Positions(lm, lm.prompts([[5], [6]]), lm.sites("L0.resid_post"), 1, 1, 0)
    with pytest.raises(TrimtabError, match="no position to train on"):
        next(source.forever())
