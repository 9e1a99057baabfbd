"""Log probability increases against vectors added to the stream by hand, their sums, and a norm that is frozen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import twins
from tests.model.tinies import lm_of
from tests.tiny import DENSE
from trimtab.errors import ModelError, SiteError, TrimtabError
from trimtab.evaluate.verify import verify
from trimtab.locate.neuron_attribution import comparative_neurons, log_probability_increase
from trimtab.locate.query_neurons import query_neurons
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit
from trimtab.values.site import Edge

LM = lm_of("llama", torch.float64)
TASK = twins(3)
SUMS = [family for family in DENSE if family != "opt-350m"]


def answer_tokens(task):
    return [int(example.answers[0][1:]) for example in task.examples]


def log_p(lm, stream, token):
    return torch.log_softmax(lm.unembed(lm.final(stream[None, None])), -1)[0, 0, token].item()


def before(lm, layer, name, row_run):
    site = "resid_pre" if name != "neuron" or lm.anatomy.family.parallel else "resid_mid"
    return row_run[f"L{layer}.{site}"][0, -1]


@pytest.mark.parametrize("family", SUMS)
@pytest.mark.parametrize("name", ["neuron", "attn_neuron", "head"])
def test_increases_are_those_of_a_loop_that_adds_each_vector(family, name):
    lm = lm_of(family, torch.float32)
    scores = log_probability_increase(lm, TASK, f"L*.{name}")
    assert scores.unit == "nat"
    prompts, row = measure(lm, TASK, on="clean").prompts, 1
    one, part = prompts.rows([row], trim=True), "mlp" if name == "neuron" else "attn"
    token = answer_tokens(TASK)[row]
    post = lm.anatomy.blocks[1].mlp_post if name == "neuron" else lm.anatomy.blocks[1].attn_post
    for layer in range(2):
        run = lm.run(one, [f"L{layer}.{s}" for s in lm.anatomy.present(layer) if s not in ("scores", "pattern")])
        stream = before(lm, layer, name, run)
        for unit in (0, 3):
            alone = [
                Edit(f"L{layer}.{name}@-1", "set", 0.0),
                Edit(f"L{layer}.{name}[{unit}]@-1", "add", _own(run, layer, name, unit)),
            ]
            none = [Edit(f"L{layer}.{name}@-1", "set", 0.0)]
            raw = f"L{layer}.{part}_raw"  # in front of a post-norm, whose scale is that of the whole run
            written = [lm.run(one, raw, edit)[raw][0, -1] for edit in (alone, none)]
            scale = 1.0 if post is None else (run[f"L{layer}.{part}_out"] / run[raw])[0, -1]
            increase = log_p(lm, stream + (written[0] - written[1]) * scale, token) - log_p(lm, stream, token)
            np.testing.assert_allclose(scores.array[row, layer, unit, 0], increase, atol=2e-4)


def _own(run, layer, name, unit):
    values = run[f"L{layer}.{name}"][0, -1, unit]
    return values.numpy()[None] if name == "head" else float(values)


@pytest.mark.parametrize("family", SUMS)
@pytest.mark.parametrize("name", ["neuron", "attn_neuron", "head"])
def test_estimates_of_a_layer_sum_to_that_of_what_it_writes(family, name):
    """With the norms frozen and the slope fixed, increments add up: those of the units to that of the sublayer."""
    lm = lm_of(family, torch.float32)
    estimates = log_probability_increase(lm, TASK, f"L*.{name}", estimate=True).array
    prompts, row, layer = measure(lm, TASK, on="clean").prompts, 2, 1
    one, token = prompts.rows([row], trim=True), answer_tokens(TASK)[row]
    out = "mlp_out" if name == "neuron" else "attn_out"
    run = lm.run(one, [f"L1.{s}" for s in lm.anatomy.present(1) if s not in ("scores", "pattern")])
    stream = before(lm, layer, name, run).detach().requires_grad_()
    logp = torch.log_softmax(lm.unembed(lm.final(stream[None, None])), -1)[0, 0, token]
    (slope,) = torch.autograd.grad(logp, stream)
    block = lm.anatomy.blocks[layer]
    linear, post = (block.down, block.mlp_post) if name == "neuron" else (block.o, block.attn_post)
    with torch.no_grad():
        bias = linear(torch.zeros_like(run[f"L1.{name}"].flatten(2)))[0, -1]
        if post is None:
            constant = bias
        else:  # the norm of the bias with the frozen scale, and its own bias
            raw = run["L1.mlp_raw" if name == "neuron" else "L1.attn_raw"][0, -1]
            assert not bias.any()
            constant = post(torch.zeros_like(raw))
        whole = float((run[f"L1.{out}"][0, -1] - constant) @ slope)
    np.testing.assert_allclose(estimates[row, layer].sum(), whole, atol=2e-4 * max(1.0, abs(whole)))


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_post_norm_keeps_its_scale(family):
    lm, row, layer, unit = lm_of(family, torch.float32), 0, 1, 5
    one = measure(lm, TASK, on="clean").prompts.rows([row], trim=True)
    run = lm.run(one, ["L1.neuron", "L1.mlp_raw", "L1.mlp_out", "L1.resid_mid"])
    raw, out = run["L1.mlp_raw"][0, -1], run["L1.mlp_out"][0, -1]
    column = lm.anatomy.blocks[layer].down.weight[:, unit].detach()
    vector = run["L1.neuron"][0, -1, unit] * column * (out / raw)
    stream, token = run["L1.resid_mid"][0, -1], answer_tokens(TASK)[row]
    increase = log_p(lm, stream + vector, token) - log_p(lm, stream, token)
    scores = log_probability_increase(lm, TASK, ["L1.neuron[5]"])
    np.testing.assert_allclose(scores.array[row, 0], increase, atol=2e-4)


def test_a_head_is_the_sum_of_what_it_reads_at_each_span():
    lm = lm_of("llama", torch.float64)
    whole = log_probability_increase(lm, TASK, "L*.head")
    everywhere = log_probability_increase(lm, TASK, "L*.head", keys=["all", "subject", "end"])
    np.testing.assert_allclose(everywhere.array[..., 0], whole.array[..., 0], atol=1e-10)
    assert everywhere.coords["span"] == ("all", "subject", "end")
    for keys in (["0", "1:"], ["0", "1:-1", "end"], ["0:-1", "-1"]):
        parts = log_probability_increase(lm, TASK, "L*.head", keys=keys, estimate=True).array
        total = log_probability_increase(lm, TASK, "L*.head", estimate=True).array[..., 0]
        np.testing.assert_allclose(parts.sum(-1), total, atol=1e-10)


@pytest.mark.parametrize("key", ["subject", "end"])
def test_what_a_head_read_at_a_key_by_hand_and_its_address(key):
    """One exact increase of the pattern's column times the values there, and an address that says so."""
    scores = log_probability_increase(LM, TASK, "L*.head", keys=[key])
    row, layer, head = 1, 1, 3
    one = measure(LM, TASK, on="clean").prompts.rows([row], trim=True)
    run = LM.run(one, ["L1.pattern", "L1.v", "L1.resid_pre"])
    d, n_kv = LM.anatomy.d_head, LM.anatomy.n_kv
    vector = torch.zeros(LM.anatomy.n_heads, d, dtype=torch.float64)
    for column in one.positions(key)[0]:
        vector[head] += run["L1.pattern"][0, head, -1, column] * run["L1.v"][0, column, head * n_kv // len(vector)]
    stream, token = run["L1.resid_pre"][0, -1], answer_tokens(TASK)[row]
    added = LM.anatomy.blocks[layer].o(vector.flatten()).detach()
    hand = log_p(LM, stream + added, token) - log_p(LM, stream, token)
    assert float(added.abs().max()) > 1e-3
    np.testing.assert_allclose(scores.array[row, layer, head, 0], hand, atol=1e-10)
    assert str(scores.site_at(layer=1, head=3, span=key)) == str(Edge.parse(f"L1.v@{key}->L1.head[3]@-1"))
    with pytest.raises(TrimtabError, match="these scores are of edges"):
        verify(LM, TASK, scores)


def test_the_top_places_are_exact_and_the_others_are_not_there():
    every = log_probability_increase(LM, TASK, "L*.neuron").array
    few = log_probability_increase(LM, TASK, "L*.neuron", top=7).array
    there = ~np.isnan(few)
    assert there.sum() == 7 * len(TASK)
    np.testing.assert_allclose(few[there], every[there], atol=1e-12)
    estimates = np.abs(log_probability_increase(LM, TASK, "L*.neuron", estimate=True).array).mean(0).ravel()
    assert set(np.flatnonzero(there[0].ravel())) == set(np.argsort(-estimates)[:7])


def test_an_estimate_is_the_slope_along_the_vector():
    estimates = log_probability_increase(LM, TASK, "L0.neuron", estimate=True).array[..., 0]
    prompts, row, step = measure(LM, TASK, on="clean").prompts, 2, 1e-2  # transformers norms in float32
    run = LM.run(prompts.rows([row], trim=True), ["L0.neuron", "L0.resid_mid"])
    stream, token = run["L0.resid_mid"][0, -1], answer_tokens(TASK)[row]
    for unit in (0, 9, 39):
        vector = run["L0.neuron"][0, -1, unit] * LM.anatomy.blocks[0].down.weight[:, unit].detach()
        slope = (log_p(LM, stream + step * vector, token) - log_p(LM, stream - step * vector, token)) / (2 * step)
        np.testing.assert_allclose(estimates[row, 0, unit], slope, rtol=1e-2, atol=2e-4)


def test_batches_and_candidates():
    grid = log_probability_increase(LM, TASK, "L*.neuron")
    np.testing.assert_allclose(log_probability_increase(LM, TASK, batch_size=1).array, grid.array, atol=1e-10)
    some = log_probability_increase(LM, TASK, ["L0.neuron[3]", "L1.neuron[7]"])
    np.testing.assert_allclose(some.array, grid.array[:, [0, 1], [3, 7], 0], atol=1e-12)
    pair = log_probability_increase(LM, TASK, ["L1.neuron[7,9]"], estimate=True).array[:, 0]
    alone = log_probability_increase(LM, TASK, "L1.neuron", estimate=True).array[:, 0, [7, 9], 0]
    np.testing.assert_allclose(pair, alone.sum(1), atol=1e-12)


def test_chunks_of_logits_make_no_difference(monkeypatch):
    grid = log_probability_increase(LM, TASK, "L*.neuron").array
    monkeypatch.setattr("trimtab.locate.increases.LOGITS", 300)
    np.testing.assert_allclose(log_probability_increase(LM, TASK, "L*.neuron").array, grid, atol=1e-12)


def test_comparing_with_no_ablation_is_nothing_and_with_one_is_two_scores():
    assert not comparative_neurons(LM, TASK, "L0.head[1]", strength=0.0).array.any()
    found = comparative_neurons(LM, TASK, "L0.head[1]", "L1.neuron")
    assert np.abs(found.array).max() > 1e-3
    prompts, row, unit = measure(LM, TASK, on="clean").prompts, 1, 4
    one, token = prompts.rows([row], trim=True), answer_tokens(TASK)[row]
    scores = []
    for edit in ((), [Edit("L0.head[1]", "set", 0.0)]):
        run = LM.run(one, ["L1.neuron", "L1.resid_mid"], edit)
        vector = run["L1.neuron"][0, -1, unit] * LM.anatomy.blocks[1].down.weight[:, unit].detach()
        stream = run["L1.resid_mid"][0, -1]
        scores.append(log_p(LM, stream + vector, token) - log_p(LM, stream, token))
    np.testing.assert_allclose(found.array[row, 0, unit, 0], scores[0] - scores[1], atol=1e-10)
    assert found.options["heads"] == ["L0.head[1]"]


def test_neurons_below_the_head_do_not_change():
    assert not comparative_neurons(LM, TASK, "L1.head[0]", "L0.neuron").array.any()


def test_comparing_keeps_to_the_top():
    few = comparative_neurons(LM, TASK, "L0.head[1]", top=5).array
    every = comparative_neurons(LM, TASK, "L0.head[1]").array
    there = ~np.isnan(few)
    assert there[0].sum() == 5
    np.testing.assert_allclose(few[there], every[there], atol=1e-12)


@pytest.mark.parametrize("family", SUMS)
def test_the_parts_of_a_pre_activation_sum_to_it(family):
    """Embedding, neurons, heads and biases, each along the direction that the neuron reads."""
    lm, row, neuron = lm_of(family, torch.float32), 1, 6
    one = measure(lm, TASK, on="clean").prompts.rows([row], trim=True)
    arrays = {
        name: query_neurons(lm, TASK, f"L1.neuron[{neuron}]", f"L*.{name}").array[row, ..., 0]
        for name in ("neuron", "head")
    }
    stream = "L1.resid_pre" if lm.anatomy.family.parallel else "L1.resid_mid"
    adds = ["L0.attn_out", "L0.mlp_out"] + ([] if lm.anatomy.family.parallel else ["L1.attn_out"])
    run = lm.run(one, ["L1.gate_pre", "L1.mlp_in", stream, "embed", *adds, "L0.neuron", "L0.head", "L1.head"])
    assert not arrays["neuron"][1].any()
    if lm.anatomy.family.parallel:
        assert not arrays["head"][1].any()
    # what the parts leave is the embedding and the biases: the same in a run in which neurons and heads are zero,
    # with norms frozen, so by the slope of the pre-activation along the stream
    edits = [Edit(f"L0.{name}@-1", "set", 0.0) for name in ("neuron", "head")]
    edits += [] if lm.anatomy.family.parallel else [Edit("L1.head@-1", "set", 0.0)]
    full = run[stream][0, -1]
    block = lm.anatomy.blocks[0]
    if block.attn_post is None and block.mlp_post is None:
        bare = lm.run(one, stream, edits)[stream][0, -1]
    else:  # whose scale is frozen here and not in that run; without biases the units write all that a sublayer does
        assert block.o.bias is None
        assert block.down.bias is None
        bare = full - sum(run[name][0, -1] for name in adds)
    linear = _frozen_pre(lm, one, full, neuron)
    total = arrays["neuron"].sum() + arrays["head"].sum()
    np.testing.assert_allclose(total, linear(full) - linear(bare), atol=5e-4 * max(1.0, abs(linear(full))))
    assert abs(total) > 1e-3


def _frozen_pre(lm, one, stream, neuron):
    """The pre-activation as a function of the stream, with the norm's mean and scale as they were."""
    block, name = lm.anatomy.blocks[1], "L1.resid_pre" if lm.anatomy.family.parallel else "L1.resid_mid"
    run = lm.run(one, [name, "L1.mlp_in"])
    x, y = run[name][0, -1].double(), run["L1.mlp_in"][0, -1].double()
    up = lm.anatomy.tap(lm.sites("L1.gate_pre")[0])
    norm = None
    if not torch.allclose(x, y, atol=1e-5):
        norm = next(
            m
            for m in block.module.modules()
            if getattr(getattr(m, "weight", None), "shape", None) == x.shape
            and torch.allclose(m(x.float()).double(), y, atol=1e-4)
        )

    def pre(at):
        at = at.double()
        if norm is not None:
            zero = norm(torch.zeros_like(x.float())).double()
            mean = at.mean() if torch.allclose(norm(x.float() + 3), norm(x.float()), atol=1e-4) else 0.0
            own = x.mean() if isinstance(mean, torch.Tensor) else 0.0
            at = (at - mean) * (y - zero) / (x - own) + zero
        return float(up.layout.read(up.module(at.float()[None, None]), 1, 1)[0, 0, neuron].detach())

    return pre


def test_a_query_by_hand():
    scores = query_neurons(LM, TASK, "L1.neuron[6]")
    assert scores.options["neuron"] == "L1.neuron[6]"
    row, m = 2, 9
    one = measure(LM, TASK, on="clean").prompts.rows([row], trim=True)
    run = LM.run(one, ["L0.neuron", "L1.resid_mid"])
    block = LM.anatomy.blocks[1]
    x = run["L1.resid_mid"][0, -1]
    scale = torch.rsqrt(x.pow(2).mean() + block.mlp_norm.variance_epsilon)
    for key, module in (("gate_pre", block.gate), ("up", block.up)):
        direction = module.weight[6] * block.mlp_norm.weight * scale
        vector = run["L0.neuron"][0, -1, m] * LM.anatomy.blocks[0].down.weight[:, m]
        found = query_neurons(LM, TASK, "L1.neuron[6]", key=key).array[row, 0, m, 0]
        np.testing.assert_allclose(found, (vector @ direction).item(), atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="norms the residual stream"):
        log_probability_increase(lm_of("opt-350m"), TASK)
    with pytest.raises(ModelError, match="norms the residual stream"):
        query_neurons(lm_of("opt-350m"), TASK, "L1.neuron[0]")
    with pytest.raises(SiteError, match="mixture of experts"):
        log_probability_increase(lm_of("mixtral"), TASK)
    with pytest.raises(SiteError, match=r"takes L\*.neuron or L\*.head"):
        log_probability_increase(LM, TASK, "L*.mlp_out")
    with pytest.raises(SiteError, match="keys split a map of heads"):
        log_probability_increase(LM, TASK, "L*.neuron", keys="subject")
    with pytest.raises(TrimtabError, match="top is how many"):
        log_probability_increase(LM, TASK, top=0)
    with pytest.raises(SiteError, match="is no head"):
        comparative_neurons(LM, TASK, "L0.mlp_out")
    with pytest.raises(SiteError, match="not one neuron"):
        query_neurons(LM, TASK, "L1.neuron")
