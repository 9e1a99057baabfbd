"""Attention neurons in attribution: their sums are the heads', and single ones what is computed by hand."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from tests.locate.deeper import deeper
from tests.locate.tinytasks import twins
from tests.model.tinies import lm_of
from tests.tiny import DENSE, words
from trimtab import evaluate, locate
from trimtab.errors import SiteError
from trimtab.model import lm as models
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.site import Edge

LM = lm_of("llama", torch.float64)
TASK = twins(3)
SUMS = [family for family in DENSE if family != "opt-350m"]


def by_head(lm, array):
    """(example layer head) the sum over each head's channels of numbers (example layer neuron span)."""
    return array[..., 0].reshape(*array.shape[:2], lm.anatomy.n_heads, lm.anatomy.d_head).sum(-1)


@pytest.mark.parametrize("family", SUMS)
def test_estimates_of_a_heads_channels_sum_to_the_heads(family):
    lm = lm_of(family, torch.float32)
    heads = locate.log_probability_increase(lm, TASK, "L*.head", estimate=True).array[..., 0]
    neurons = locate.log_probability_increase(lm, TASK, "L*.attn_neuron", estimate=True)
    assert neurons.dims == ("example", "layer", "neuron", "span")
    assert str(neurons.site_at(layer=1, neuron=9, span="last")) == "L1.attn_neuron[9]@-1"
    assert np.abs(heads).max() > 1e-3
    np.testing.assert_allclose(by_head(lm, neurons.array), heads, atol=1e-5 * np.abs(heads).max())


def test_all_channels_of_a_head_together_are_the_head():
    d = LM.anatomy.d_head
    channels = ",".join(map(str, range(2 * d, 3 * d)))
    together = locate.log_probability_increase(LM, TASK, [f"L1.attn_neuron[{channels}]"]).array[:, 0]
    head = locate.log_probability_increase(LM, TASK, ["L1.head[2]"]).array[:, 0]
    np.testing.assert_allclose(together, head, atol=1e-12)


def test_the_best_are_exact_and_a_neuron_is_compared_without_a_head():
    every = locate.log_probability_increase(LM, TASK, "L*.attn_neuron").array
    few = locate.log_probability_increase(LM, TASK, "L*.attn_neuron", top=6).array
    there = ~np.isnan(few)
    assert there.sum() == 6 * len(TASK)
    np.testing.assert_allclose(few[there], every[there], atol=1e-12)
    changed = locate.comparative_neurons(LM, TASK, "L0.head[1]", "L*.attn_neuron").array[..., 0]
    others = np.delete(changed[:, 0], np.arange(LM.anatomy.d_head) + LM.anatomy.d_head, axis=1)
    assert not others.any(), "no other head of its own layer reads it"
    assert np.abs(changed[:, 1]).max() > 1e-4


def test_channels_are_split_by_where_they_were_read():
    """Attention to a span's tokens times their values in one channel, through its column: by hand, and summed."""
    keys = ["0", "1:-1", "end"]
    parts = locate.log_probability_increase(LM, TASK, "L*.attn_neuron", keys=keys, estimate=True)
    whole = locate.log_probability_increase(LM, TASK, "L*.attn_neuron", estimate=True).array[..., 0]
    np.testing.assert_allclose(parts.array.sum(-1), whole, atol=1e-10)
    site = parts.site_at(layer=1, neuron=11, span="end")
    assert str(site) == str(Edge.parse("L1.v@end->L1.attn_neuron[11]@-1"))

    row, layer, unit = 1, 1, 27
    one = measure(LM, TASK, on="clean").prompts.rows([row], trim=True)
    run = LM.run(one, ["L1.pattern", "L1.v", "L1.resid_pre"])
    head, channel = divmod(unit, LM.anatomy.d_head)
    kv = head * LM.anatomy.n_kv // LM.anatomy.n_heads
    read = sum(run["L1.pattern"][0, head, -1, p] * run["L1.v"][0, p, kv, channel] for p in one.positions("subject")[0])
    vector = read * LM.anatomy.blocks[layer].o.weight[:, unit].detach()
    stream, token = run["L1.resid_pre"][0, -1], int(TASK.examples[row].answers[0][1:])
    log_p = [torch.log_softmax(LM.unembed(LM.final(x[None, None])), -1)[0, 0, token] for x in (stream + vector, stream)]
    found = locate.log_probability_increase(LM, TASK, "L*.attn_neuron", keys="subject").array
    np.testing.assert_allclose(found[row, layer, unit, 0], (log_p[0] - log_p[1]).item(), atol=1e-10)
    assert abs((log_p[0] - log_p[1]).item()) > 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_direct_attributions_of_channels_sum_to_the_heads(family):
    lm = lm_of(family, torch.float32)
    heads = locate.direct_logit_attribution(lm, TASK, "L*.head").array[..., 0]
    neurons = locate.direct_logit_attribution(lm, TASK, "L*.attn_neuron").array
    np.testing.assert_allclose(by_head(lm, neurons), heads, atol=1e-5 * np.abs(heads).max())


def test_what_a_channel_can_write_is_its_size_times_its_column():
    prompts = sides(LM, TASK).positive
    columns = LM.anatomy.blocks[1].o.weight.detach().norm(dim=0).numpy()
    run = LM.run(prompts, "L1.attn_neuron")
    sizes = run["L1.attn_neuron"].abs()[torch.arange(len(prompts)), -1].numpy()
    written = locate.activation_magnitude(LM, TASK, "L1.attn_neuron", spans="last", statistic="written").array
    weight = locate.activation_magnitude(LM, TASK, "L1.attn_neuron", spans="last", statistic="weight").array
    np.testing.assert_allclose(written[:, 0, :, 0], sizes * columns, rtol=1e-9)
    np.testing.assert_allclose(weight[:, 0, :, 0], np.tile(columns, (len(prompts), 1)), rtol=1e-9)


def test_they_are_ablated_patched_and_verified_like_any_neuron():
    d = LM.anatomy.d_head
    fast, naive = (
        locate.ablation(LM, TASK, "L*.attn_neuron", spans="last", kind="zero", exact=way) for way in ("fast", "naive")
    )
    assert fast.array.shape == (3, 2, 4 * d, 1)
    np.testing.assert_allclose(fast.array, naive.array, atol=1e-9)
    channels = ",".join(map(str, range(d)))
    together = locate.ablation(LM, TASK, [f"L0.attn_neuron[{channels}]", "L0.head[0]"], kind="zero").array
    np.testing.assert_allclose(together[:, 0], together[:, 1], atol=1e-9)
    patched = locate.patching(LM, TASK, [f"L0.attn_neuron[{channels}]@end", "L0.head[0]@end"]).array
    np.testing.assert_allclose(patched[:, 0], patched[:, 1], atol=1e-9)
    tested = evaluate.verify(LM, TASK, fast, k=2, method="ablation").checks
    assert [check.candidate.site for check in tested] == [str(site) for site in fast.top(2)]
    assert all(check.control.mean for check in tested), "random attention neurons stand beside them"


# Query neurons
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", ["L1.neuron[6]", "L1.attn_neuron[19]"])
def test_what_channels_add_to_a_neuron_sums_to_what_their_heads_add(neuron):
    heads = locate.query_neurons(LM, TASK, neuron, "L*.head").array[..., 0]
    neurons = locate.query_neurons(LM, TASK, neuron, "L*.attn_neuron").array
    assert np.abs(heads).max() > 1e-4
    np.testing.assert_allclose(by_head(LM, neurons), heads, atol=1e-12)
    one = locate.query_neurons(LM, TASK, neuron, ["L0.attn_neuron[3,5]"]).array[:, 0]
    np.testing.assert_allclose(one, neurons[:, 0, [3, 5], 0].sum(1), atol=1e-12)


@pytest.mark.parametrize("family", SUMS)
def test_the_parts_of_an_attention_neuron_sum_to_it(family):
    """All that MLP neurons and heads wrote below it at every token it reads, through the frozen norm and attention."""
    lm, row = lm_of(family, torch.float32), 1
    unit = 2 * lm.anatomy.d_head + 3
    one = measure(lm, TASK, on="clean").prompts.rows([row], trim=True)
    found = [
        locate.query_neurons(lm, TASK, f"L1.attn_neuron[{unit}]", f"L*.{name}").array[row]
        for name in ("neuron", "head")
    ]
    assert not any(part[1].any() for part in found), "nothing of its own layer is in the stream that it reads"
    adds = ["L0.attn_out", "L0.mlp_out"]
    run = lm.run(one, ["L1.resid_pre", "L1.pattern", *adds])
    edits = ["L0.head set 0", "L0.neuron set 0"]
    full, block = run["L1.resid_pre"], lm.anatomy.blocks[0]
    # with post-norms, whose scale is frozen here and not in that run, there are no biases and so all of it is written
    posts = block.attn_post is not None or block.mlp_post is not None
    bare = full - sum(run[name] for name in adds) if posts else lm.run(one, "L1.resid_pre", edits)["L1.resid_pre"]
    pattern = run["L1.pattern"][0, 2, -1]  # of head 2, whose fourth channel it is
    values = [_frozen_values(lm, one, x)[0, :, 2 * lm.anatomy.n_kv // lm.anatomy.n_heads, 3] for x in (full, bare)]
    expected = float(pattern.double() @ (values[0] - values[1]).double())
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(sum(part.sum() for part in found), expected, atol=5e-5)


def _frozen_values(lm, one, stream):
    """The values of layer 1 from a stream (1 pos d), with the norm in front at the mean and scale that it had."""
    run = lm.run(one, ["L1.resid_pre", "L1.attn_in"])
    x, y = run["L1.resid_pre"], run["L1.attn_in"]
    if not torch.allclose(x, y, atol=1e-6):
        norms = [m for m in lm.anatomy.blocks[1].module.modules() if getattr(m, "weight", torch.ones(1)).shape == (32,)]
        norm = next(m for m in norms if torch.allclose(m(x), y, atol=1e-5))
        zero, centred = norm(torch.zeros_like(x)), torch.allclose(norm(x + 3), norm(x), atol=1e-4)
        own, mine = (t.mean(-1, keepdim=True) if centred else 0.0 for t in (x, stream))
        stream = (stream - mine) * (y - zero) / (x - own) + zero
    tap = lm.anatomy.tap(lm.sites("L1.v")[0])
    return tap.layout.read(tap.module(stream), 1, stream.shape[1]).detach()


@pytest.mark.parametrize("at", ["all", "subject", "1:"])
def test_a_query_of_an_attention_neuron_by_hand(at):
    row, m, unit = 2, 9, 2 * LM.anatomy.d_head + 3
    scores = locate.query_neurons(LM, TASK, f"L1.attn_neuron[{unit}]", f"L*.neuron@{at}")
    assert (scores.options["neuron"], scores.coords["span"]) == (f"L1.attn_neuron[{unit}]", (at,))
    one = measure(LM, TASK, on="clean").prompts.rows([row], trim=True)
    run = LM.run(one, ["L0.neuron", "L1.resid_pre", "L1.pattern"])
    block = LM.anatomy.blocks[1]
    kv = 2 * LM.anatomy.n_kv // LM.anatomy.n_heads
    key = block.v.weight[kv * LM.anatomy.d_head + 3] * block.module.input_layernorm.weight
    total = 0.0
    for p in one.positions(at)[0]:
        x = run["L1.resid_pre"][0, p]
        scale = torch.rsqrt(x.pow(2).mean() + block.module.input_layernorm.variance_epsilon)
        vector = run["L0.neuron"][0, p, m] * LM.anatomy.blocks[0].down.weight[:, m]
        total += (run["L1.pattern"][0, 2, -1, p] * (vector @ key) * scale).item()
    assert abs(total) > 1e-6
    np.testing.assert_allclose(scores.array[row, 0, m, 0], total, atol=1e-7)


def test_batches_and_padding_make_no_difference_to_a_query():
    grid = locate.query_neurons(LM, TASK, "L1.attn_neuron[19]").array
    np.testing.assert_allclose(
        locate.query_neurons(LM, TASK, "L1.attn_neuron[19]", batch_size=1).array, grid, atol=1e-10
    )


def long(n=3, length=40):
    """Prompts of as many tokens, in which attention has many more numbers than a token has."""
    rows = [np.random.default_rng(i).integers(40, 97, length).tolist() for i in range(n)]
    texts = [[words(*row[:-1], token) for token in (10 + i, 20 + i)] for i, row in enumerate(rows)]
    return Task("long", tuple(Counterfactual(*t, ("w3",), ("w9",), group=f"g{i}") for i, t in enumerate(texts)))


@pytest.mark.parametrize("method", ["queries", "keys"])
def test_what_is_held_is_what_batches_are_told(method, monkeypatch):
    """Of attention the last token's, so that the numbers of a token do not grow with the prompt."""
    lm, told, held = deeper("llama", 24), [], []

    def told_batches(prompts, entries, batch_size):
        told.append(entries)
        return batches(prompts, entries, batch_size)

    def run(self, prompts, *args, **options):
        made = plain(self, prompts, *args, **options)
        held.append(sum(x.numel() for x in made.activations.values()) / prompts.ids.numel())
        return made

    plain = models.LM.run
    monkeypatch.setattr(models.LM, "run", run)
    module = {"queries": "query_neurons", "keys": "increases"}[method]
    monkeypatch.setattr(import_module(f"trimtab.locate.{module}"), "batches", told_batches)
    if method == "queries":
        locate.query_neurons(lm, long(), "L1.attn_neuron[19]", ["L0.head[2]"])
    else:
        locate.log_probability_increase(lm, long(), "L*.head", keys=["0", "1:"], estimate=True)
    assert len(told) == len(held) == 1
    assert held[0] <= told[0]


def test_what_does_not_fit_is_refused():
    for target in ("L1.neuron.feature@d[3]", "L1.neuron.error@d[3]", "L1.attn_neuron.feature@d[3]"):
        with pytest.raises(SiteError, match="is not one neuron"):
            locate.query_neurons(LM, TASK, target)
    for target in ("L1.neuron[3]@0", "L1.attn_neuron[3]@subject"):
        with pytest.raises(SiteError, match="asked at the last position; leave @"):
            locate.query_neurons(LM, TASK, target)
    plain = locate.query_neurons(LM, TASK, "L1.neuron[3]", "L*.head")
    for target in ("L1.neuron[3]@end", "L1.neuron[3]@last", "L1.neuron[3]@-1"):
        np.testing.assert_array_equal(locate.query_neurons(LM, TASK, target, "L*.head").array, plain.array)
    with pytest.raises(SiteError, match="last position alone"):
        locate.query_neurons(LM, TASK, "L1.neuron[3]", "L*.attn_neuron@subject")
    with pytest.raises(SiteError, match=r"takes L\*.neuron or L\*.head or L\*.attn_neuron"):
        locate.query_neurons(LM, TASK, "L1.attn_neuron[3]", "L*.mlp_out")
    with pytest.raises(SiteError, match="is not one neuron"):
        locate.query_neurons(LM, TASK, "L1.attn_neuron[3,4]")
    with pytest.raises(SiteError, match="keys split a map of heads or attention neurons"):
        locate.log_probability_increase(LM, TASK, ["L1.attn_neuron[3]"], keys="subject")
