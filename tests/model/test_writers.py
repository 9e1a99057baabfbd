"""Which parameters write to the residual stream: all of them, and no other."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import IDS, exact, fresh, off
from tests.tiny import FAMILIES
from trimtab.errors import ModelError
from trimtab.model.writers import writers

POST_NORM = ("gemma2", "gemma3", "olmo2", "opt-350m")
PRE_NORM = [family for family in FAMILIES if family not in POST_NORM]


@pytest.mark.parametrize("family", PRE_NORM)
def test_what_nobody_writes_is_not_in_the_stream(family):
    """With every writer silenced nothing is left; with the writers of one layer silenced, nothing is added there."""
    lm = fresh(family, torch.float64, check=False)
    found = writers(lm.anatomy)
    assert len({writer.parameter for writer in found}) == len(found)
    with torch.no_grad():
        for writer in found:
            assert writer.weight is lm.hf.get_parameter(writer.parameter)
            if writer.layer == 1:
                writer.weight.zero_()
        run = lm.run(IDS, ["L1.resid_pre", "L1.attn_out", "L1.mlp_out", "L0.mlp_out"])
        assert not run["L1.attn_out"].any()
        assert not run["L1.mlp_out"].any()
        assert run["L0.mlp_out"].any()
        for writer in found:
            writer.weight.zero_()
        stream = lm.run(IDS, "L1.resid_post", logits=False)["L1.resid_post"]
        assert not stream.any() or family == "bloom"  # whose embeddings are normed, with a bias


@pytest.mark.parametrize("family", PRE_NORM)
def test_only_writers_write(family):
    """Every other parameter leaves what is written along a direction at nothing where the writers write none."""
    lm = fresh(family, torch.float64, check=False)
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    direction /= direction.norm()
    with torch.no_grad():
        for writer in writers(lm.anatomy):
            along = writer.along(direction)
            if writer.axis == -2:
                writer.weight.sub_(direction.T @ along)
                assert along.shape[-2:] == (1, writer.weight.shape[-1])
            else:
                writer.weight.sub_(along @ direction if along.ndim > 1 else direction.T @ along)
                assert along.shape == (*writer.weight.shape[:-1], 1)
            assert writer.along(direction).abs().max() < 1e-12
    run = lm.run(IDS, ["embed", "L*.attn_out", "L*.mlp_out", "L1.resid_post"], logits=False)
    for site in run:
        if family != "bloom" or str(site) not in ("embed", "L1.resid_post"):
            assert off(run[site] @ direction[0] + run[site].norm(dim=-1), run[site].norm(dim=-1)) < 1e-12, site


def test_the_embedding_and_its_twin():
    for family, tied in (("llama", True), ("gpt2", True), ("mistral", False)):
        shared = [writer.parameter for writer in writers(exact(family).anatomy) if writer.shared]
        assert len(shared) == tied
        assert [w.layer for w in writers(exact(family).anatomy)].count(None) == (2 if family == "gpt2" else 1)


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_behind_the_weights_is_refused(family):
    with pytest.raises(ModelError, match=r"in layer 0 of this .* a norm stands between the output weights and the res"):
        writers(exact(family).anatomy)


def test_quantised_weights_are_refused():
    lm = fresh("llama", check=False)
    whole = torch.nn.Parameter(torch.ones(32, 40, dtype=torch.int8), requires_grad=False)
    lm.hf.model.layers[1].mlp.down_proj.weight = whole
    with pytest.raises(ModelError, match="an output projection is a Linear, whose weights are quantised or wrapped"):
        writers(lm.anatomy)
    lm = fresh("llama", check=False)
    lm.hf.is_quantized = True
    with pytest.raises(ModelError, match="are quantised and cannot hold a small change: load it in bfloat16"):
        writers(lm.anatomy)


def test_wrapped_weights_are_refused():
    lm = fresh("llama", check=False)

    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.in_features = inner, inner.in_features

        def forward(self, x):
            return self.inner(x)

    lm.hf.model.layers[0].self_attn.o_proj = Wrapped(lm.hf.model.layers[0].self_attn.o_proj)
    with pytest.raises(ModelError, match=r"an output projection is a Wrapped, .* merge adapters into it first"):
        writers(type(lm.anatomy)(lm.hf))
