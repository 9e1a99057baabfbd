"""What a part of the model says of the next token: vectors of a site in the basis that the unembedding reads.

A residual stream is read as if it were the last one, after a tuned lens's translation where one is given. What a head
or a sublayer writes is read as if it were the whole stream: for heads, their slice of the output projection, with a
post-norm's scale as it was in this run. It knows nothing of tasks or of numbers made from logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import ModelError, SiteError
from trimtab.locate.frozen import FrozenNorm
from trimtab.values.site import Site
from trimtab.values.tuned_lens import TunedLens

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.run import Run

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post")
WRITTEN = ("head", "attn_raw", "attn_out", "mlp_raw", "mlp_out")
AT_ONCE = 1 << 24
"""Logits that are held at a time: vectors are taken in blocks of this over the vocabulary's size."""


class Translator:
    """A tuned lens on the model's device, one site's map at a time: (… d_model) to (… d_model).

    Raises `ModelError` where it was trained on another model, `SiteError` for a site that it does not have.
    """

    def __init__(self, lm: LM, lens: TunedLens | None, sites: Sequence[Site]) -> None:
        self.lm, self.lens = lm, lens
        self.maps: dict[Site, tuple[Tensor, Tensor]] = {}
        if lens is None:
            return
        if lens.d_model != lm.anatomy.d_model:
            raise ModelError(
                f"this lens is of a model of width {lens.d_model} ({lens.model}), and {lm.name} has "
                f"{lm.anatomy.d_model}: train one on this model with train_tuned_lens"
            )
        if lens.model_hash != lm.hash:
            raise ModelError(
                f"this lens was trained on {lens.model or 'another model'} with other weights than {lm.name} has now; "
                "train one on this model, or, to use it for a fine-tuned or converted copy on purpose, give "
                "lens.with_(model_hash=lm.hash)"
            )
        for site in sites:
            row = lens.row(site)
            if lens.weight[row].any() or lens.bias[row].any():
                parts = (torch.tensor(part[row], device=lm.device) for part in (lens.weight, lens.bias))
                self.maps[site.whole] = tuple(parts)  # pyright: ignore[reportArgumentType]

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """The translated vectors; as they are where the lens leaves the site alone, or there is none."""
        if site.whole not in self.maps:
            return x
        weight, bias = (
            part.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
            for part in self.maps[site.whole]
        )
        wide = x.to(weight.dtype)
        return (wide + wide @ weight.T + bias).to(x.dtype)


def check_readable(sites: Sequence[Site], kinds: Sequence[str]) -> None:
    """A `SiteError` for a site that has no reading in the vocabulary."""
    for site in sites:
        if site.name not in kinds or site.view is not None or (site.name != "head" and site.index is not None):
            raise SiteError(
                f"{site}: a lens reads whole vectors that are as wide as the residual stream or are written to it, "
                f"here {', '.join(kinds)}"
            )


def needed(sites: Sequence[Site]) -> list[Site]:
    """The whole tensors to read in a run so that `written` can project these sites."""
    wanted: dict[Site, None] = {}
    for site in sites:
        wanted[site.whole] = None
        if site.name == "head":
            wanted[Site("attn_raw", site.layer)] = None
    return list(wanted)


def vectors(lm: LM, run: Run, site: Site, rows: Tensor, columns: Tensor) -> Float[Tensor, "cell unit d_model"]:
    """What the site holds at some cells (row and column of each), as vectors of the residual stream.

    Heads give one vector each, through the output projection and the post-norm; a site without units gives one. A site
    that names heads gives the sum of theirs.
    """
    x = run.whole(site.whole)
    x = x[rows.to(x.device), columns.to(x.device)]
    if site.name != "head":
        return x.flatten(1)[:, None]
    assert site.layer is not None
    block = lm.anatomy.blocks[site.layer]
    raw = run.whole(Site("attn_raw", site.layer))
    raw = raw[rows.to(raw.device), columns.to(raw.device)]
    parts = []
    nothing = block.o(torch.zeros_like(x[:1]).flatten(1)[:, None])
    heads = range(x.shape[1]) if site.index is None else site.index
    for head in heads:
        alone = torch.zeros_like(x)
        alone[:, head] = x[:, head]
        parts.append(block.o(alone.flatten(1)[:, None]).squeeze(1) - nothing.squeeze(1))
    each = torch.stack(parts, 1)
    if block.attn_post is not None:
        each = _through(FrozenNorm(block.attn_post, raw), each)
    return each if site.index is None else each.sum(1, keepdim=True)


def _through(norm: FrozenNorm, x: Tensor) -> Tensor:
    """(cell unit d) through a norm at the scale that it had for each cell, without its bias."""
    exact = x.cpu().double()
    exact = (exact - exact.mean(-1, keepdim=True) if norm.centred else exact) * norm.weight * norm.scale[:, None]
    return exact.to(x)


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax over the last axis, at least in float32."""
    return torch.log_softmax(logits.float() if logits.dtype.itemsize < 4 else logits, dim=-1)


def cell_numbers(
    logp: Float[Tensor, "cell vocab"], own: Float[Tensor, "cell vocab"]
) -> Mapping[str, Float[Tensor, "cell"]]:
    """Entropy of each distribution and its divergence KL(own ‖ it) from the model's own, in nats."""
    p = own.exp()
    return {
        "entropy": torch.special.entr(logp.exp()).sum(-1),
        "kl": torch.where(p > 0, p * (own - logp), 0).sum(-1).clamp(min=0),
    }
