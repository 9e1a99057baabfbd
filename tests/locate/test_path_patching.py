"""Path patching: the long way in every cell, and paths worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.deeper import deeper
from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import EAGER, untouched
from tests.tiny import FAMILIES
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.patching import patching
from trimtab.locate.path_patching import path_patching
from trimtab.tasks.measure import sides
from trimtab.values.edit import Edit
from trimtab.values.scores import Scores
from trimtab.values.site import Edge

TASK = twins(3)
LM = deeper("llama", 4)
"""Four heads, two of which share a key-value head each."""


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_is_naive(family):
    lm = deeper(family)
    senders = ["L0.head[1]", "L1.head[2]@subject"]
    frozen = {"mlps": "freeze", "direction": "denoise"}
    for receivers, options in (["L1.head[3].v", "L2.head[2].q"], {}), (["L2.head[0,1].k", "logits"], frozen):
        fast = path_patching(lm, TASK, senders, receivers, **options)
        naive = path_patching(lm, TASK, senders, receivers, exact="naive", batch_size=2, **options)
        off = np.nanmax(np.abs(fast.array - naive.array)) / np.nanmax(np.abs(naive.array))
        assert off < (1e-4 if family in EAGER else 1e-9)
        np.testing.assert_array_equal(np.isnan(fast.array), np.isnan(naive.array))


def test_a_map_is_every_head_to_every_later_one():
    with untouched(LM):
        every = path_patching(LM, TASK, "L*.head", ["L*.head", "logits"], spans=("subject", "end"))
    assert every.array.shape == (3, 4, 4, 2, 4 * 4 * 3 + 1)
    assert every.dims == ("example", "layer", "head", "span", "receiver")
    few = path_patching(LM, TASK, ["L0.head[2]@end", "L2.head[1]@subject"], ["L3.head[1].k", "logits"])
    at = [every.coords["receiver"].index(name) for name in ("L3.head[1].k", "logits")]
    np.testing.assert_allclose(few.array[:, 0], every.array[:, 0, 2, 1, at], atol=1e-10)
    np.testing.assert_allclose(few.array[:, 1], every.array[:, 2, 1, 0, at], atol=1e-10)
    after = np.array([[int(name[1]) > layer for name in every.coords["receiver"][:-1]] for layer in range(4)])
    np.testing.assert_array_equal(np.isnan(every.array[0, :, 0, 0, :-1]), ~after)
    assert every.options["no_path"] == 4 * 2 * int((~after).sum())
    assert np.isfinite(every.array[..., -1]).all()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_last_layers_way_to_the_logits_is_patching(direction):
    paths = path_patching(LM, TASK, "L3.head", "logits", direction=direction)
    patched = patching(LM, TASK, "L3.head", spans="all", direction=direction)
    np.testing.assert_allclose(paths.array[..., 0], patched.array, atol=1e-9)


def _by_hand(change):
    """The effect of `change(base run, twin run)`, which gives a row's logits at the end, in the clean run."""
    both = sides(LM, TASK)
    effects = []
    for row in range(len(TASK)):
        clean, corrupt = (LM.run(side.rows([row], trim=True), SITES) for side in both)
        ids = [
            LM.tokenizer.convert_tokens_to_ids(w[0])
            for w in (TASK.examples[row].answers, TASK.examples[row].distractors)
        ]
        gaps = [float(z[ids[0]] - z[ids[1]]) for z in (clean.logits[0, -1], change(clean, corrupt))]
        effects.append(gaps[0] - gaps[1])
    return np.array(effects)


SITES = [f"L{layer}.{name}" for layer in range(4) for name in ("head", "resid_pre", "resid_post", "q", "k", "v")]


def _sent(clean, corrupt, layer, head):
    """(1 pos d_model) what head `head` adds to the stream in the corrupt run rather than in the clean one."""
    delta = torch.zeros_like(clean[f"L{layer}.head"])
    delta[:, :, head] = (corrupt[f"L{layer}.head"] - clean[f"L{layer}.head"])[:, :, head]
    return LM.hf.model.layers[layer].self_attn.o_proj(delta.flatten(2))


@torch.no_grad()
def test_the_direct_path_by_hand():
    def change(clean, corrupt):
        stream = clean["L3.resid_post"] + _sent(clean, corrupt, 1, 2)
        return LM.unembed(LM.final(stream))[0, -1]

    scores = path_patching(LM, TASK, ["L1.head[2]"], mlps="freeze")
    np.testing.assert_allclose(scores.array[:, 0, 0], _by_hand(change), atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("mlps", ["freeze", "recompute"])
def test_a_query_by_hand(mlps):
    """Where the only MLPs between sender and receiver are those of layers 1 and 2."""

    def change(clean, corrupt):
        stream = clean["L1.resid_post"] + _sent(clean, corrupt, 1, 2)
        if mlps == "recompute":
            block = LM.hf.model.layers[1]
            middle = clean["L1.resid_pre"] + block.self_attn.o_proj(clean["L1.head"].flatten(2))
            middle = middle + _sent(clean, corrupt, 1, 2)
            stream = middle + block.mlp(block.post_attention_layernorm(middle))
            block = LM.hf.model.layers[2]
            middle = stream + block.self_attn.o_proj(clean["L2.head"].flatten(2))
            stream = middle + block.mlp(block.post_attention_layernorm(middle))
        else:
            stream = stream + clean["L2.resid_post"] - clean["L2.resid_pre"]
        block = LM.hf.model.layers[3]
        q = block.self_attn.q_proj(block.input_layernorm(stream)).view_as(clean["L3.q"])
        return LM.run(clean.prompts, edit=Edit("L3.q[3]", "set", q[:, :, 3:].numpy())).logits[0, -1]

    scores = path_patching(LM, TASK, ["L1.head[2]"], "L3.head[3].q", mlps=mlps)
    effects = _by_hand(change)
    np.testing.assert_allclose(scores.array[:, 0, 0], effects, atol=1e-9)
    assert np.abs(effects).max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_key_that_heads_share_is_each_heads_own(name):
    def change(clean, corrupt):
        stream = clean["L2.resid_post"] + _sent(clean, corrupt, 2, 0)
        block = LM.hf.model.layers[3]
        projection = getattr(block.self_attn, f"{name}_proj")
        values = projection(block.input_layernorm(stream)).view_as(clean[f"L3.{name}"])
        return LM.run(clean.prompts, edit=Edit(f"L3.{name}[1]", "set", values[:, :, 1:].numpy())).logits[0, -1]

    receivers = [f"L3.head[2,3].{name}", f"L3.head[2].{name}", f"L3.head[3].{name}"]
    together, one, other = path_patching(LM, TASK, ["L2.head[0]"], receivers, mlps="freeze").array[:, 0].T
    np.testing.assert_allclose(together, _by_hand(change), atol=1e-9)  # both heads of the group: the shared key itself
    assert np.abs(together - one).max() > 1e-6
    assert np.abs(together - other).max() > 1e-6


def test_before_the_prompts_differ_nothing_is_sent():
    scores = path_patching(LM, TASK, ["L0.head[1]@0", "L1.head[0]@0"], ["L3.head", "logits"])
    assert (scores.array[np.isfinite(scores.array)] == 0).all()


def test_batches_and_memory_make_no_difference(monkeypatch):
    whole = path_patching(LM, TASK, "L*.head", "L*.head.q")
    monkeypatch.setattr("trimtab.model.paths.AT_ONCE", 20)
    monkeypatch.setattr("trimtab.model.paths.budget", lambda lm, memory: 3e4)
    parts = path_patching(LM, TASK, "L*.head", "L*.head.q", batch_size=1)
    np.testing.assert_allclose(parts.array, whole.array, atol=1e-10)


@pytest.mark.parametrize("exact", ["fast", "naive"])
def test_progress_reaches_the_end(exact):
    told = []
    ends = ["L1.head[0]", "L3.head[0]"], ["L2.head[1]", "logits"]
    path_patching(LM, TASK, *ends, exact=exact, progress=lambda *now: told.append(now))
    assert told[-1] == (15, 15)


def test_inside_an_edited_model_every_path_is_run_whole():
    with LM.edited("L0.mlp_out scale 0"):
        scores = path_patching(LM, TASK, ["L1.head[0]"], "logits")
        naive = path_patching(LM, TASK, ["L1.head[0]"], "logits", exact="naive")
    assert "whole forward passes" in str(scores.options["note"])
    np.testing.assert_array_equal(scores.array, naive.array)


def test_the_strongest_paths_are_edges_that_survive_a_file(tmp_path):
    scores = path_patching(LM, TASK, "L*.head", ["L3.head.q", "logits"])
    best = scores.top(2)
    assert all(isinstance(edge, Edge) for edge in best)
    scores.save(tmp_path / "paths")
    again = Scores.load(tmp_path / "paths")
    np.testing.assert_array_equal(again.array, scores.array)
    assert again.top(2) == best
    assert again.provenance.method == "path_patching"


def test_errors():
    with pytest.raises(TaskError, match="contrast"):
        path_patching(LM, pairs())
    with pytest.raises(SiteError, match="paths start at heads"):
        path_patching(LM, TASK, "L*.mlp_out")
    for wrong in ("L3.mlp_out", "L3.head[1].q@end", "L3.q"):
        with pytest.raises(SiteError, match="receivers are a head's query"):
            path_patching(LM, TASK, receivers=wrong)
    with pytest.raises(SiteError, match="head 9 is out of range"):
        path_patching(LM, TASK, receivers="L3.head[9].q")
    with pytest.raises(SiteError, match="layer 7"):
        path_patching(LM, TASK, receivers="L7.head.q")
    with pytest.raises(TrimtabError, match='did you mean "freeze"'):
        path_patching(LM, TASK, mlps="freez")
    with pytest.raises(TrimtabError, match='did you mean "noise"'):
        path_patching(LM, TASK, direction="nois")
