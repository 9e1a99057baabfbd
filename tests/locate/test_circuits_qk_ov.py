"""Circuits against what the model itself computes, against vocabulary-sized matrices, and on heads set by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.wired import wired
from tests.model.tinies import lm_of
from tests.tiny import FAMILIES
from trimtab.errors import ModelError, SiteError, TrimtabError
from trimtab.locate.circuits_qk_ov import Circuits, composition, ov_circuit, qk_circuit
from trimtab.tasks.repeated import vocabulary
from trimtab.values.edit import Edit
from trimtab.values.lowrank import LowRank

LINEAR = [name for name in FAMILIES if name != "opt-350m"]
IDS = [[5, 17, 40, 8, 60]]


def along(x, y):
    """The cosine between rows of x and y (… d)."""
    return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)


@pytest.mark.parametrize("family", [name for name in LINEAR if name != "olmoe"])  # its projections are clipped
def test_folded_projections_point_where_the_model_does(family):
    lm = lm_of(family)
    circuits, prompts = Circuits(lm), lm.prompts(IDS)
    group = lm.anatomy.n_heads // lm.anatomy.n_kv
    x = lm.run(prompts, "L1.resid_pre", logits=False)["L1.resid_pre"][0]
    names = ["L1.q", "L1.k", "L1.v"]
    run = lm.run(prompts, names, logits=False)
    bias = lm.run(prompts, names, Edit("L1.attn_in", "set", 0.0), logits=False)
    if family in (
        "gpt2",
        "gpt_neox",
        "gpt_neox-sequential",
        "opt",
        "gptj",
        "bloom",
        "falcon",
        "falcon-40b",
        "falcon-rw",
    ):
        zeros = torch.zeros_like(x)  # the bias of a LayerNorm before attention counts as the projections' own
        edit = Edit("L1.resid_pre", "set", zeros[0])
        bias = lm.run(prompts, names, edit, logits=False)
    w = circuits.layer(1)
    for name, folded in zip(names, (w.q, w.k, w.v), strict=True):
        mine = torch.einsum("pm,hmd->phd", x.to(folded), folded)
        theirs = (run[name] - bias[name])[0]
        theirs = theirs if name == "L1.q" else theirs.repeat_interleave(group, dim=1)
        assert float(along(mine, theirs).min()) > 0.9999, name


@pytest.mark.parametrize("family", LINEAR)
def test_folded_outputs_point_where_the_model_does(family):
    lm = lm_of(family)
    circuits, prompts = Circuits(lm), lm.prompts(IDS)
    nothing = Edit("L1.head", "set", 0.0)
    z = torch.randn(lm.anatomy.d_head, generator=torch.Generator().manual_seed(0))
    one = [nothing, Edit("L1.head[2]", "set", z[None])]
    with_, without = (
        lm.run(prompts, "L1.attn_out", edit, logits=False)["L1.attn_out"][0, 0] for edit in (one, nothing)
    )
    mine = z.to(circuits.layer(1).o) @ circuits.layer(1).o[2]
    assert float(along(with_ - without, mine)) > 0.9999
    if lm.anatomy.logit_cap is None:
        x = torch.randn(lm.anatomy.d_model, generator=torch.Generator().manual_seed(1))[None]
        with torch.no_grad():
            logits = (a := lm.unembed(lm.final(x))) - lm.unembed(lm.final(torch.zeros_like(a[:, :1]).expand_as(x)))
        assert float(along(logits, x @ circuits.unembedding.T).min()) > 0.9999


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom", "phi3"])
def test_eigenvalues_are_those_of_the_vocabulary_sized_matrix(family):
    lm = lm_of(family, torch.float64) if family != "bloom" else lm_of(family)
    circuits = Circuits(lm)
    tokens = torch.as_tensor(vocabulary(lm))
    e = torch.cat([lm.run([[int(t)]], "embed", logits=False)["embed"][0] for t in tokens]).double()
    u = circuits.unembedding[tokens].double()
    w = circuits.layer(1)
    for head in (0, 3):
        whole = (e - e.mean(0)) @ w.v[head].double() @ w.o[head].double() @ (u - u.mean(0)).T
        values = np.linalg.eigvals(whole.numpy())
        expected = values.real.sum() / np.abs(values).sum()
        np.testing.assert_allclose(circuits.copying(1)[head], expected, atol=1e-4)


def test_circuits_are_products_of_the_projections():
    lm = lm_of("llama", torch.float64)
    a = lm.hf.model.layers[1]
    norm = a.input_layernorm.weight[:, None]
    q, k, v, o = (getattr(a.self_attn, f"{n}_proj").weight.detach().T for n in "qkvo")
    head, kv = 3, 1
    at, shared = slice(24, 32), slice(8, 16)
    assert kv == head // 2
    ov, qk = ov_circuit(lm, "L1.head[3]"), qk_circuit(lm, "L1.head[3]")
    np.testing.assert_allclose(ov.matrix, ((norm * v)[:, shared] @ o[at]).detach(), atol=1e-4)
    np.testing.assert_allclose(qk.matrix, ((norm * q)[:, at] @ (norm * k)[:, shared].T).detach(), atol=1e-4)
    assert ov.shape == (32, 32)


def test_low_rank_numbers_are_those_of_the_whole_matrix(tmp_path):
    rng = np.random.default_rng(0)
    one = LowRank(rng.standard_normal((9, 3)), rng.standard_normal((3, 9)), "one")
    np.testing.assert_allclose(one.singular_values, np.linalg.svd(one.matrix, compute_uv=False)[:3], rtol=1e-9)
    whole = np.linalg.eigvals(one.matrix)
    whole = whole[np.argsort(-np.abs(whole))][:3]
    np.testing.assert_allclose(np.sort_complex(one.eigenvalues), np.sort_complex(whole), atol=1e-9)
    np.testing.assert_allclose(one.frobenius, np.linalg.norm(one.matrix))
    one.save(tmp_path / "one")
    assert LowRank.load(tmp_path / "one") == one
    with pytest.raises(TrimtabError, match="square"):
        _ = LowRank(np.ones((3, 1)), np.ones((1, 2))).eigenvalues
    with pytest.raises(TrimtabError, match="rank"):
        LowRank(np.ones((3, 1)), np.ones((2, 3)))


@pytest.mark.parametrize("kind", ["q", "k", "v"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_composition_is_that_of_the_matrices_written_out(family, kind):
    lm = lm_of(family)
    scores = composition(lm, kind=kind)
    norm = np.linalg.norm
    for sender in (0, 2):
        for receiver in (1, 3):
            ov = ov_circuit(lm, f"L0.head[{sender}]").matrix
            qk = qk_circuit(lm, f"L1.head[{receiver}]").matrix
            reads = {"k": qk.T, "q": qk, "v": ov_circuit(lm, f"L1.head[{receiver}]").matrix}[kind]
            expected = norm(ov @ reads) / norm(ov) / norm(reads)
            at = scores.coords["receiver"].index(f"L1.head[{receiver}].{kind}")
            np.testing.assert_allclose(scores.array[0, 0, sender, at], expected, rtol=1e-4)
    assert np.isnan(scores.array[0, 1]).all(), "no head reads one of its own layer"
    assert str(scores.top(1)[0]).startswith("L0.head")


def test_the_baseline_is_that_of_random_rotations():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 12)), rng.standard_normal((12, 2))
    turned = [np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(4000)]
    squares = [np.linalg.norm(a @ r @ b) ** 2 for r in turned]
    expected = np.linalg.norm(a) ** 2 * np.linalg.norm(b) ** 2 / 12
    np.testing.assert_allclose(np.mean(squares), expected, rtol=0.03)
    assert composition(lm_of("llama")).options["baseline"] == 32**-0.5


def test_heads_set_by_hand_compose_as_they_were_set():
    lm = wired()
    keys = composition(lm, kind="k", receivers=["L1.head[0]"])
    assert str(keys.top(1)[0]) == "L0.head[0]->L1.head[0].k"
    assert keys.array[0, 0, 0, 0] > 1.4 * keys.options["baseline"]
    queries = composition(lm, kind="q", receivers=["L1.head[0]"])
    assert queries.array[0, 0, 0, 0] < 0.5 * queries.options["baseline"]
    copying = Circuits(lm).copying(1)
    np.testing.assert_allclose(copying, [1, -1], atol=1e-6)


def test_matrices_are_read_when_asked_for_and_kept_once_for_each_key_value_head(monkeypatch):
    lm, made = lm_of("llama"), []
    plain = Circuits._apply
    monkeypatch.setattr(
        Circuits, "_apply", lambda self, linear, width: made.append(linear) or plain(self, linear, width)
    )
    circuits, block = Circuits(lm), lm.anatomy.blocks[1]
    assert circuits.layer(1).o.shape == (4, 8, 32)
    assert made == [block.o]
    w = circuits.layer(1)
    assert (w.k.shape, w.keys.shape) == ((4, 32, 8), (lm.anatomy.n_kv, 32, 8))
    assert lm.anatomy.n_kv < 4
    assert w.k.shape == w.v.shape
    assert len(made) == 3, "each read once"


def test_refusals():
    with pytest.raises(ModelError, match="norms the residual stream"):
        ov_circuit(lm_of("opt-350m"), "L0.head[0]")
    with pytest.raises(SiteError, match="one head"):
        qk_circuit(lm_of("llama"), "L0.head")
    with pytest.raises(SiteError, match="heads are needed"):
        ov_circuit(lm_of("llama"), "L0.mlp_out")
    with pytest.raises(TrimtabError, match="kind"):
        composition(lm_of("llama"), kind="x")
