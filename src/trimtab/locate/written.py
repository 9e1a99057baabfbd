"""What single neurons and heads write to the residual stream at one position: value vectors.

A neuron's value vector is its activation times its column of the down projection, an attention neuron's its activation
times its column of the output projection, a head's the sum of its attention neurons'; a post-norm on the way is frozen
at what it was. Nothing here knows of tasks or scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.locate.frozen import FrozenNorm
from trimtab.model.anatomy import Block, apply_linear, in_features
from trimtab.values.scope import Scope

if TYPE_CHECKING:
    from trimtab.model.lm import LM

LAST = (Scope.parse("last"), Scope.parse("end"))
"""What the last position of a prompt is called."""


class Written:
    """The value vectors of one layer's neurons or attention neurons (coefficients (row neuron)) or heads (row head
    d_head).

    `raw` (row d_model) is the output of the layer's down or output projection, before any post-norm.
    """

    def __init__(self, lm: LM, layer: int, name: str, coefficients: Tensor, raw: Tensor) -> None:
        block = lm.anatomy.blocks[layer]
        linear, post = (block.down, block.mlp_post) if name == "neuron" else (block.o, block.attn_post)
        assert linear is not None
        with torch.no_grad():
            like = coefficients if coefficients.is_floating_point() else raw
            weight, _ = apply_linear(lambda x: linear(x[None])[0], in_features(linear), like)
            self.post = FrozenNorm(post, raw)
        self.coefficients = coefficients
        self.weight = weight.view(*coefficients.shape[1:], -1)

    def onto(self, direction: Float[Tensor, "row d_model"]) -> Float[Tensor, "row unit"]:
        """The inner product of each unit's vector with a direction of the stream, in double precision on the CPU."""
        toward = self.post.back(direction)
        if self.weight.ndim == 2:
            return self.coefficients.cpu().double() * (toward @ self.weight.cpu().double().T)
        back = torch.einsum("rd,hed->rhe", toward, self.weight.cpu().double())
        return (self.coefficients.cpu().double() * back).sum(-1)

    def vectors(self, row: int, units: Tensor) -> Float[Tensor, "n d_model"]:
        """The vectors of some units of one row."""
        a, w = self.coefficients[row, units], self.weight[units]
        v = a[:, None] * w if w.ndim == 2 else torch.einsum("ne,ned->nd", a, w)
        if self.post.module is None:
            return v
        moved = v.cpu().double()
        moved = moved - moved.mean(-1, keepdim=True) if self.post.centred else moved
        return (moved * self.post.weight * self.post.scale[row]).to(v.device, v.dtype)


def stream_before(lm: LM, layer: int, name: str) -> str:
    """The stream that a layer's neurons or heads add to: `resid_mid` for neurons, where there is such a thing."""
    mid = name == "neuron" and not lm.anatomy.family.parallel
    return f"L{layer}.resid_mid" if mid else f"L{layer}.resid_pre"


def raw_of(name: str) -> str:
    """The output of the projection that neurons or heads write through."""
    return "mlp_raw" if name == "neuron" else "attn_raw"


def refuse_normed_stream(lm: LM, what: str) -> None:
    """ModelError for models in which what is written to the stream is normed away from there (OPT-350m)."""
    if any(block.stream_norm is not None for block in lm.anatomy.blocks):
        raise ModelError(
            f"{lm.name} ({lm.anatomy.family.name}) norms the residual stream itself after every sublayer, so its "
            f"stream is no sum that {what} could be a part of; measure effects by ablation or patching instead"
        )


def norm_before(block: Block, stream: Tensor, read: Tensor) -> nn.Module | None:
    """The norm between the stream (row d_model) and what the MLP or attention reads of it; None where there is none.

    It is found by what it gives: parallel blocks have one for both sublayers, or one for each.
    """
    if _same(stream, read):
        return None
    named = [block.mlp_norm] if block.mlp_norm is not None else []
    width = stream.shape[-1]
    norms = [m for m in block.module.modules() if getattr(getattr(m, "weight", None), "shape", None) == (width,)]
    with torch.no_grad():
        for module in (*named, *norms):
            if _same(module(stream), read):
                return module
    raise ModelError("none of the block's norms gives what its sublayer reads, so that does not split into parts")


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4 if x.dtype.itemsize >= 4 else 3e-2, atol=1e-6)
