"""The divergence of a distribution and its slope, against automatic differentiation, in every family."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import close, lm_of, off
from tests.tiny import DENSE
from trimtab.errors import ModelError
from trimtab.model.divergence import kl_and_gradient, way_back


def given(lm, rows=6, seed=3):
    generator = torch.Generator().manual_seed(seed)
    width = lm.shape(lm.sites("final")[0])[0]
    final = torch.randn(2, rows, width, generator=generator, dtype=lm.dtype)
    own = torch.log_softmax(3 * torch.randn(rows, lm.anatomy.vocab, generator=generator, dtype=lm.dtype), -1)
    return final, own


@pytest.mark.parametrize("family", DENSE)
def test_it_is_the_gradient(family):
    lm = lm_of(family, torch.float64)
    final, own = given(lm)
    kl, slope = kl_and_gradient(lm, final, own)
    expected, naive = kl_and_gradient(lm, final, own, exact="naive")
    close(lm, kl, expected, "divergence")
    close(lm, slope, naive, "gradient")
    logp = torch.log_softmax(lm.unembed(final), -1).detach()
    close(lm, kl, (own.exp() * (own - logp)).sum(-1), "by its definition")


def test_of_the_same_distribution_both_are_zero():
    lm = lm_of("gemma2", torch.float64)
    final, _ = given(lm)
    own = torch.log_softmax(lm.unembed(final[0]), -1).detach()
    kl, slope = kl_and_gradient(lm, final[:1], own)
    assert kl.max() < 1e-12
    assert slope.abs().max() < 1e-12


def test_tokens_that_are_impossible_add_nothing():
    lm = lm_of("llama", torch.float64)
    final, own = given(lm)
    own = torch.log_softmax(own.masked_fill(torch.arange(own.shape[1]) % 3 == 0, -torch.inf), -1)
    for found, naive in zip(*(kl_and_gradient(lm, final, own, exact=how) for how in ("fast", "naive")), strict=True):
        close(lm, found, naive)


def test_bfloat16_moves_the_gradient_little_and_the_divergence_not():
    lm = lm_of("llama")
    final, own = given(lm)
    exact, rounded = (kl_and_gradient(lm, final, own, way_back(lm, precision)) for precision in ("float32", "bfloat16"))
    assert torch.equal(exact[0], rounded[0])
    assert 1e-6 < off(rounded[1], exact[1]) < 0.02
    with pytest.raises(ModelError, match='precision is "float32" or "bfloat16", got \'int8\''):
        way_back(lm, "int8")
