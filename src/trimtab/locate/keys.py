"""What patching some keys does to a head's output, in closed form: the part of AtP* for keys.

Kramár et al. 2024, arXiv 2403.00745, section 3.1. Tensors in, tensors out; it knows nothing of models.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MASKED = -3e4
"""Below this an attention logit is a mask."""


def key_changes(
    scores: Float[Tensor, "batch head query key"],
    patched: Float[Tensor, "batch head query key"],
    v: Float[Tensor, "batch key kv d_head"],
    spans: list[Tensor],
    exact: torch.dtype = torch.float64,
) -> list[Float[Tensor, "batch query head d_head"]]:
    """Change of each head's output when the keys of a span are patched and the others are not, span by span.

    `scores` and `patched` are attention logits with none and with all of the keys patched: an entry depends on its own
    key alone, so those of any span can be picked. z is the heads' output without. `spans`: booleans (batch key).

    Σ_{t∈S} w_qt·(v_t − z_q) with w_qt = a_qt·expm1(δ_qt) / (1 + Σ_{s∈S} a_qs·expm1(δ_qs)); only the columns of the
    span are looked at. In double precision where there is one: where a key with all of the attention loses it, w is
    large and v − z small. A δ at which exp would overflow is as good as infinite, and is cut to one at which it does
    not.
    """
    exact = torch.float32 if scores.device.type == "mps" else exact
    most = math.log(torch.finfo(exact).max) - 10  # a sum over e^10 keys stays finite
    s, v = scores.to(exact), v.to(exact).repeat_interleave(scores.shape[1] // v.shape[2], dim=2)
    pattern = torch.softmax(s, dim=-1)
    z = torch.einsum("bhqt,bthd->bqhd", pattern, v)
    out = []
    for span in spans:
        span = span.to(s.device)
        columns = span.any(0).nonzero()[:, 0]
        old = s[..., columns]
        hidden = ~span[:, None, None, columns] | (old < MASKED)
        moved = (patched[..., columns].to(exact) - old).masked_fill(hidden, 0.0).clamp(max=most)
        grown = pattern[..., columns] * torch.expm1(moved)
        weights = grown / (1 + grown.sum(-1, keepdim=True))
        change = torch.einsum("bhqt,bthd->bqhd", weights, v[:, columns])
        out.append((change - weights.sum(-1).transpose(1, 2)[..., None] * z).to(scores.dtype))
    return out
