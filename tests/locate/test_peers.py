"""The same numbers as transformer-lens and nnsight, where they are installed (`benchmarks/peers.txt`).

Patching, lens, direct attribution and attention patterns of the bundled model, to 1e-3.
"""

from __future__ import annotations

import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch

from trimtab.locate.attribution import logit_attribution
from trimtab.locate.lens import logit_lens
from trimtab.locate.patching import patching
from trimtab.model.bundled import pull
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
LAYERS = (0, 7, 15, 29)
CLOSE = {"atol": 1e-3, "rtol": 1e-3}


@pytest.fixture(scope="module")
def task():
    return Task("one", (Counterfactual(CLEAN, CORRUPT, (" Mary",), (" John",), "ioi"),), metric="logit_diff")


@pytest.fixture(scope="module")
def lens(bundled):
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers(str(pull(bundled.name)), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def cache(lens, bundled):
    with torch.no_grad():
        return {
            name: lens.run_with_cache(bundled.prompts([text]).ids)[1]
            for name, text in (("clean", CLEAN), ("corrupt", CORRUPT))
        }


def difference(bundled, logits):
    return float(logits[0, -1, bundled.token(" Mary")] - logits[0, -1, bundled.token(" John")])


def test_attention_patterns_are_those_of_transformer_lens(bundled, cache):
    run = bundled.run([CLEAN], [f"L{layer}.pattern" for layer in LAYERS])
    for layer in LAYERS:
        theirs = cache["clean"][f"blocks.{layer}.attn.hook_pattern"]
        np.testing.assert_allclose(run[f"L{layer}.pattern"].numpy(), theirs.numpy(), **CLOSE)


@pytest.mark.parametrize(("ours", "theirs"), [("resid_pre", "hook_resid_pre"), ("mlp_out", "hook_mlp_out")])
def test_patching_is_that_of_transformer_lens(bundled, lens, cache, task, ours, theirs):
    spans = ("4", "-3", "-1")
    scores = patching(bundled, task, f"L*.{ours}", spans=spans)
    ids = bundled.prompts([CORRUPT]).ids
    base = difference(bundled, bundled.run([CORRUPT]).logits)
    for layer in LAYERS:
        for column, position in enumerate((4, -3, -1)):
            name = f"blocks.{layer}.{theirs}"

            def put(value, hook, name=name, position=position):
                value[:, position] = cache["clean"][name][:, position]
                return value

            with torch.no_grad():
                patched = difference(bundled, lens.run_with_hooks(ids, fwd_hooks=[(name, put)]))
            found = scores.array[0, scores.coords["layer"].index(layer), column]
            np.testing.assert_allclose(found, patched - base, **CLOSE)


def test_the_lens_is_that_of_transformer_lens(bundled, lens, cache):
    found = logit_lens(bundled, CLEAN, top=3)
    for row, layer in enumerate(range(30)):
        if layer in LAYERS:
            with torch.no_grad():
                stream = cache["clean"][f"blocks.{layer}.hook_resid_post"]
                theirs = lens.unembed(lens.ln_final(stream))[0].softmax(-1).topk(3)
            np.testing.assert_array_equal(found.top_ids[row, -1], theirs.indices[-1].numpy())
            np.testing.assert_allclose(found.top_probabilities[row], theirs.values.numpy(), **CLOSE)


def test_direct_attribution_is_that_of_transformer_lens(bundled, lens, cache):
    """Each sublayer's output divided by the final norm's scale, along the difference of the two unembeddings."""
    found = logit_attribution(bundled, CLEAN, " Mary", distractors=" John", parts="sublayer")
    unembed = bundled.hf.lm_head.weight
    direction = (unembed[bundled.token(" Mary")] - unembed[bundled.token(" John")]) * bundled.hf.model.norm.weight
    stream = cache["clean"]["blocks.29.hook_resid_post"][0, -1]
    scale = (stream.pow(2).mean() + bundled.hf.config.rms_norm_eps).sqrt()
    for layer in LAYERS:
        for ours, theirs in (("attn_out", "hook_attn_out"), ("mlp_out", "hook_mlp_out")):
            hand = cache["clean"][f"blocks.{layer}.{theirs}"][0, -1] / scale @ direction
            np.testing.assert_allclose(found[f"L{layer}.{ours}"][0], float(hand.detach()), **CLOSE)


def test_patching_and_the_lens_are_those_of_nnsight(bundled, task):
    library = pytest.importorskip("nnsight")
    kind = getattr(library, "TransformersModel", None)
    options = {"dispatch": True, "dtype": torch.float32}
    folder = str(pull(bundled.name))
    model = kind(folder, task="text-generation", **options) if kind else library.LanguageModel(folder, **options)
    clean, corrupt = (bundled.prompts([text]).ids for text in (CLEAN, CORRUPT))
    layers = model.model.layers
    with torch.no_grad(), model.trace(clean):
        streams = library.save([layers[layer].input for layer in LAYERS])
    scores = patching(bundled, task, "L*.resid_pre", spans="-1")
    base = difference(bundled, bundled.run([CORRUPT]).logits)
    read = logit_lens(bundled, CLEAN, top=3, sites="L*.resid_pre")
    for stream, layer in zip(streams, LAYERS, strict=True):
        with torch.no_grad(), model.trace(corrupt):
            layers[layer].input[:, -1] = stream[:, -1]
            logits = library.save(model.lm_head.output)
        found = scores.array[0, scores.coords["layer"].index(layer), 0]
        np.testing.assert_allclose(found, difference(bundled, logits) - base, **CLOSE)
        with torch.no_grad():
            hand = bundled.hf.lm_head(bundled.hf.model.norm(stream.to(torch.float32)))[0, -1].softmax(-1).topk(3)
        np.testing.assert_allclose(read.top_probabilities[layer, -1], hand.values.numpy(), **CLOSE)
