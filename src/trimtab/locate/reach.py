"""How far units can move the residual stream: the norm of what they write, and of the weights they write with.

An activation is large or small only next to what it is multiplied by on its way to the stream (activation times weight,
as in pruning: Sun et al. 2023, arXiv 2306.11695). Nothing here knows of a task's number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import SiteError
from trimtab.locate.sweep import Progress
from trimtab.locate.units import Places
from trimtab.model.anatomy import apply_linear, in_features
from trimtab.model.prompts import Prompts
from trimtab.tasks.means import batches
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

WIDE = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_raw", "attn_out", "mlp_raw", "mlp_out")


def written(
    lm: LM,
    where: Places,
    prompts: Prompts,
    *,
    batch_size: int,
    weight_only: bool = False,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """For each block of places (row unit) the norm of what a unit writes, averaged over the block's positions; a
    candidate of several units is the norm of each, summed.

    `weight_only`: the norm of the unit's output weights instead, the same for every row.
    """
    grams = {site: _gram(lm, site) for site in where.tensors}
    if any(block.view is not None for block in where.blocks):
        raise SiteError("features write through their dictionary: take mean_abs, max_abs or frequency of them")
    if weight_only and (wide := [site for site in where.tensors if site.name in WIDE]):
        raise SiteError(f"{wide[0]} is no unit with weights of its own: take heads or neurons")
    out = [np.empty((len(prompts), where.units or 1)) for _ in where.blocks]
    entries = sum(int(np.prod(lm.shape(site))) for site in where.tensors)
    done = 0
    for rows in batches(prompts, entries, batch_size):
        part = prompts.rows(rows, trim=True)
        run = None if weight_only else lm.run(part, where.tensors, logits=False)
        norms = {
            site: _alone(gram, len(rows), part) if run is None else _norms(run.whole(site), gram)
            for site, gram in grams.items()
        }
        for column, block in zip(out, where.blocks, strict=True):
            values = norms[block.base.whole]
            values = values if block.index is None else values[..., list(block.index)]
            at = part.columns(Scope("all") if block.at is None else block.at).to(values.device)
            mean = torch.where(at[..., None], values, 0.0).sum(1) / at.sum(1, keepdim=True)
            column[rows] = (mean if where.units else mean.sum(1, keepdim=True)).cpu().numpy()
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    return out


def _gram(lm: LM, site: Site) -> Float[Tensor, "unit e e"] | None:
    """The products of each unit's output weights with each other; None for what is written as it is."""
    if site.name in WIDE:
        return None
    block = lm.anatomy.blocks[site.layer or 0]
    linear = {"head": block.o, "attn_neuron": block.o, "neuron": block.down}.get(site.name)
    if linear is None:
        raise SiteError(f"{site} writes nothing to the residual stream itself: take heads, neurons or sublayer outputs")
    like = torch.zeros(1, dtype=lm.dtype, device=lm.device)
    with torch.no_grad():
        weight, _ = apply_linear(lambda x: linear(x[None])[0], in_features(linear), like)
    weight = weight.double().view(lm.shape(site)[0], -1, weight.shape[-1])
    return torch.einsum("ued,ufd->uef", weight, weight)


def _norms(values: Tensor, gram: Tensor | None) -> Float[Tensor, "row pos unit"]:
    x = values.double()
    if gram is None:
        return x.norm(dim=-1, keepdim=True)
    if x.ndim == 3:
        return x.abs() * gram[:, 0, 0].sqrt()
    return torch.einsum("rpue,uef,rpuf->rpu", x, gram, x).clamp(min=0).sqrt()


def _alone(gram: Tensor | None, rows: int, prompts: Prompts) -> Float[Tensor, "row pos unit"]:
    assert gram is not None
    norm = torch.einsum("uee->u", gram).sqrt()
    return norm.expand(rows, prompts.width, -1)
