"""A norm with its scale frozen is linear, and equals the norm where it was frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from trimtab.errors import ModelError
from trimtab.locate.frozen import FrozenNorm


def norms(d):
    torch.manual_seed(d)
    layer, rms, gemma = nn.LayerNorm(d, eps=1e-3), nn.RMSNorm(d, eps=1e-3), GemmaRMSNorm(d)
    for module in (layer, rms, gemma):
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return layer.double(), rms.double(), gemma.double()


@pytest.mark.parametrize("d", [6, 7])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_it_is_the_norm_at_the_point_and_its_transpose_is_exact(d, which):
    norm = norms(d)[which]
    x = torch.randn(3, d, dtype=torch.float64)
    frozen = FrozenNorm(norm, x)
    direction = torch.randn(3, d, dtype=torch.float64)
    with torch.no_grad():
        expected = (direction * (norm(x) - frozen.bias)).sum(-1)
    torch.testing.assert_close((frozen.back(direction) * x).sum(-1), expected, rtol=1e-6, atol=1e-6)
    assert frozen.centred == (which == 0)


def test_without_a_module_it_is_the_identity():
    x = torch.randn(2, 4)
    frozen = FrozenNorm(None, x)
    assert frozen(x) is x
    assert torch.equal(frozen.back(x), x.double())
    assert not frozen.bias.any()


def test_anything_else_is_refused():
    with pytest.raises(ModelError, match="Tanh is neither a LayerNorm nor an RMSNorm"):
        FrozenNorm(nn.Tanh(), torch.randn(3, 8))
