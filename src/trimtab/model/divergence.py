"""How far the next-token distribution of a vector is from a given one, and the exact slope of that distance.

KL(p ‖ q) with q = softmax(z) has the gradient q − p at the logits z, so what goes back to the vector that the
unembedding read is one matrix product with the unembedding's own weight, and nothing is recorded for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Target:
    """A distribution to be compared with many times: its log-probabilities and what every comparison needs of it.

    `own` and `p` (row vocab), `negative_entropy` (row), `pull` (row d) the mean of the unembedding's rows under p, and
    `offset` (row) the mean of its bias: Σ p z is `final · pull + offset`, so no logit has to be looked at for it.
    """

    own: Tensor
    p: Tensor
    negative_entropy: Tensor
    pull: Tensor | None
    offset: Tensor | None

    @classmethod
    def of(cls, lm: LM, own: Float[Tensor, "row vocab"]) -> Target:
        """From log-probabilities; impossible tokens (−∞) add nothing."""
        p, unembed = own.exp(), lm.anatomy.unembed
        terms = torch.where(p > 0, p * own, 0.0).sum(-1)
        if not _plain(unembed) or lm.anatomy.logit_cap is not None:
            return cls(own, p, terms, None, None)
        weight, bias = unembed.weight.detach(), unembed.bias
        offset = None if bias is None else p.to(bias.dtype) @ bias.detach()
        return cls(own, p, terms, p.to(weight.dtype) @ weight, offset)


def kl_and_gradient(
    lm: LM,
    final: Float[Tensor, "*site row d"],
    own: Float[Tensor, "row vocab"] | Target,
    back: Tensor | None = None,
    *,
    exact: Literal["fast", "naive"] = "fast",
) -> tuple[Float[Tensor, "*site row"], Float[Tensor, "*site row d"]]:
    """KL(own ‖ softmax(unembed(final))) of each row, in nats, and its gradient with respect to `final`.

    Args:
        final: what the unembedding reads.
        own: log-probabilities to be compared with, or a `Target` made of them once for several calls.
        back: the unembedding's weight for the product that leads back to `final`, from `way_back`; by default as it is.
        exact: "naive" differentiates through `lm.unembed`, also where the unembedding is no plain linear layer.

    >>> kl, slope = kl_and_gradient(lm, lm.final(x), own)  # doctest: +SKIP
    """
    unembed = lm.anatomy.unembed
    if exact == "naive" or not _plain(unembed):
        return _differentiated(lm, final, own.own if isinstance(own, Target) else own)
    with torch.no_grad():
        target = own if isinstance(own, Target) else Target.of(lm, own)
        weight, cap = unembed.weight, lm.anatomy.logit_cap
        z = _wide(lm.unembed(final.to(weight.dtype)))
        top, likeliest = z.max(-1, keepdim=True)
        q = torch.softmax(z, -1)
        norm = (top - q.gather(-1, likeliest).log())[..., 0]  # log Σ exp z, from the likeliest token
        if target.pull is None:
            said = torch.where(target.p > 0, target.p * z, 0.0).sum(-1)
        else:
            said = (_wide(final) * _wide(target.pull)).sum(-1)
            said = said if target.offset is None else said + target.offset
        kl = (target.negative_entropy - said + norm).clamp(min=0)
        if back is None and target.pull is not None and weight.dtype == z.dtype:
            slope = (q.flatten(0, -2) @ weight).view_as(final) - target.pull  # (q − p) W without a pass over q − p
            return kl, slope.to(final.dtype)
        slope = q.sub_(target.p)
        if cap is not None:
            slope *= 1 - (z / cap).square()
        back = weight if back is None else back
        slope = slope.to(back.dtype).flatten(0, -2) @ back
        return kl, slope.to(final.dtype).view_as(final)


def _plain(unembed: nn.Module) -> TypeGuard[nn.Linear]:
    return type(unembed) is nn.Linear and unembed.weight.is_floating_point()


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
