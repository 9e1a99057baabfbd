"""How far the next-token distribution of a vector is from a given one, and the exact slope of that distance.

KL(p ‖ q) with q = softmax(z) has the gradient q − p at the logits z, so what goes back to the vector that the
unembedding read is one matrix product with the unembedding's own weight, and nothing is recorded for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Precision = Literal["float32", "bfloat16"]


def kl_and_gradient(
    lm: LM,
    final: Float[Tensor, "*site row d"],
    own: Float[Tensor, "row vocab"],
    back: Tensor | None = None,
    *,
    exact: Literal["fast", "naive"] = "fast",
) -> tuple[Float[Tensor, "*site row"], Float[Tensor, "*site row d"]]:
    """KL(own ‖ softmax(unembed(final))) of each row, in nats, and its gradient with respect to `final`.

    Args:
        final: what the unembedding reads.
        own: log-probabilities to be compared with.
        back: the unembedding's weight for the product that leads back to `final`, from `way_back`; by default as it is.
        exact: "naive" differentiates through `lm.unembed`, also where the unembedding is no plain linear layer.

    >>> kl, slope = kl_and_gradient(lm, lm.final(x), own)  # doctest: +SKIP
    """
    unembed = lm.anatomy.unembed
    if exact == "naive" or type(unembed) is not nn.Linear or not unembed.weight.is_floating_point():
        return _differentiated(lm, final, own)
    with torch.no_grad():
        weight, cap = unembed.weight, lm.anatomy.logit_cap
        back = weight if back is None else back
        z = _wide(lm.unembed(final.to(weight.dtype)))
        p = own.exp()
        top = z.amax(-1)
        q = torch.softmax(z, -1)
        norm = top - q.amax(-1).log()  # log Σ exp z, from the likeliest token
        impossible = own == -torch.inf
        terms = (p * own).masked_fill_(impossible, 0.0).sum(-1) if bool(impossible.any()) else (p * own).sum(-1)
        kl = terms - (p * z).sum(-1) + norm
        slope = q.sub_(p)
        if cap is not None:
            slope *= 1 - (z / cap).square()
        slope = slope.to(back.dtype).flatten(0, -2) @ back
        return kl.clamp(min=0), slope.to(final.dtype).view_as(final)


def way_back(lm: LM, precision: Precision) -> Tensor | None:
    """The unembedding's weight (vocab d) in the precision of the way back; None for the weight as it is.

    In "bfloat16" gradients move by about 2⁻⁸ of their size, and their product is faster where the processor has
    instructions for it. Divergences do not change.
    """
    if precision not in ("float32", "bfloat16"):
        raise ModelError(f'precision is "float32" or "bfloat16", got {precision!r}')
    unembed = lm.anatomy.unembed
    if precision == "float32" or type(unembed) is not nn.Linear or not unembed.weight.is_floating_point():
        return None
    return unembed.weight.detach().bfloat16()


def _differentiated(lm: LM, final: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = final.detach().requires_grad_()
        logp = torch.log_softmax(_wide(lm.unembed(leaf.to(lm.dtype))), -1)
        p = own.exp()
        kl = torch.where(p > 0, p * (own - logp), 0.0).sum(-1)
        (slope,) = torch.autograd.grad(kl.sum(), leaf)
    return kl.detach().clamp(min=0), slope


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
