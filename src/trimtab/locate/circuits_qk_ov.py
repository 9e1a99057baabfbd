"""The circuits of a head in its weights: QK (where it looks), OV (what it moves), and how heads read one another.

Elhage et al. 2021, "A mathematical framework for transformer circuits",
https://transformer-circuits.pub/2021/framework. Weights are read by applying the model's own modules to unit vectors,
so quantised and fused projections are no special case. Norms are folded in by their weight and, where they have one,
their mean; how far they scale a particular vector is not in the weights and is left out. So are biases, positions
(rotary embeddings, ALiBi, tables of them), soft caps and the scale of attention scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import ModelError, SiteError, TrimtabError, nearest
from trimtab.locate.frozen import FrozenNorm
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_weights
from trimtab.model.provenance import provenance
from trimtab.model.run import Run
from trimtab.model.taps import Clipped, Heads
from trimtab.tasks.repeated import vocabulary
from trimtab.values.edit import Edit, Ref
from trimtab.values.lowrank import LowRank
from trimtab.values.scores import Scores
from trimtab.values.site import Edge, Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Kind = Literal["q", "k", "v"]
AT_ONCE = 4096
"""Tokens that are embedded together."""


class Weights:
    """The projections of a layer's heads: what a head makes of the stream, row vectors times matrices.

    `q`, `k`, `v` (head d_model d_head), `o` (head d_head d_model), each read when it is first asked for. Heads that
    share a key-value head have equal k and v: what is kept is `keys` and `values` (kv d_model d_head), once for each.
    """

    def __init__(self, circuits: Circuits, layer: int) -> None:
        self._circuits, self._layer = circuits, layer

    @cached_property
    def q(self) -> Float[Tensor, "head d_model d_head"]:
        """What each head asks with."""
        return self._circuits.read(self._layer, "q")

    @cached_property
    def keys(self) -> Float[Tensor, "kv d_model d_head"]:
        """What each key-value head is found by."""
        return self._circuits.read(self._layer, "k")

    @cached_property
    def values(self) -> Float[Tensor, "kv d_model d_head"]:
        """What each key-value head takes."""
        return self._circuits.read(self._layer, "v")

    @cached_property
    def o(self) -> Float[Tensor, "head d_head d_model"]:
        """What each head writes."""
        return self._circuits.output(self._layer)

    @property
    def k(self) -> Float[Tensor, "head d_model d_head"]:
        """`keys` for each head."""
        return self._for_heads(self.keys)

    @property
    def v(self) -> Float[Tensor, "head d_model d_head"]:
        """`values` for each head."""
        return self._for_heads(self.values)

    def _for_heads(self, shared: Tensor) -> Tensor:
        return shared.repeat_interleave(self._circuits.lm.anatomy.n_heads // len(shared), dim=0)


class Circuits:
    """A model's heads as matrices, each read when first asked for and kept.

    Raises ModelError where the architecture norms the residual stream itself (OPT-350m): what a head writes is then not
    what a later one reads, by more than a scale.
    """

    def __init__(self, lm: LM) -> None:
        if any(block.stream_norm is not None for block in lm.anatomy.blocks):
            raise ModelError(
                f"{lm.name} ({lm.anatomy.family.name}) norms the residual stream itself after every sublayer, so no "
                "matrix leads from one head to the next; measure effects by ablation or path patching instead"
            )
        self.lm = lm
        self.exact = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self._layers: dict[int, Weights] = {}

    def layer(self, layer: int) -> Weights:
        """The projections of a layer's heads, norms folded in."""
        return self._layers.setdefault(layer, Weights(self, layer))

    def output(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """What each head's value writes to the stream."""
        a = self.lm.anatomy
        block = a.blocks[layer]
        o = self._apply(block.o, a.n_heads * a.d_head).unflatten(0, (a.n_heads, a.d_head))
        if block.attn_post is None:
            return o
        norm = FrozenNorm(block.attn_post, self._some)
        return (o - o.mean(-1, keepdim=True) if norm.centred else o) * norm.weight.to(o)

    @cached_property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """What each token's logit reads off the stream after the last block, the final norm folded in."""
        a = self.lm.anatomy
        linear: nn.Module = a.unembed if a.project_out is None else nn.Sequential(a.project_out, a.unembed)
        rows = self._apply(linear, a.d_model).T
        if a.norm is None:
            return rows
        norm = FrozenNorm(a.norm, self._some)
        rows = rows * norm.weight.to(rows)
        return rows - rows.mean(-1, keepdim=True) if norm.centred else rows

    @cached_property
    def copies(self) -> Float[Tensor, "d_model d_model"]:
        """Uᵀ E over the model's ordinary tokens, what they have in common taken off: Σ_t (u_t − ū)ᵀ (e_t − ē)."""
        tokens = vocabulary(self.lm)
        total = torch.zeros(self.lm.anatomy.d_model, self.lm.anatomy.d_model, dtype=self.exact, device=self.lm.device)
        embedding = self._embedding(tokens)
        mean = embedding.mean(0)
        u = self.unembedding
        for start in range(0, len(tokens), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            total += u[torch.as_tensor(tokens[part], device=u.device)].T @ (embedding[part] - mean)
        return total

    def copying(self, layer: int) -> Float[np.ndarray, "head"]:
        """Σ λ / Σ |λ| of each head, λ the eigenvalues of W_E W_V W_O W_Uᵀ (token → token) that may differ from zero."""
        w = self.layer(layer)
        product = (w.o @ self.copies.to(w.o) @ w.v).double().cpu()
        values = torch.linalg.eigvals(product)
        return (values.real.sum(-1) / values.abs().sum(-1)).numpy()

    def _embedding(self, tokens: np.ndarray) -> Float[Tensor, "token d_model"]:
        """What enters block 0 for each token, at a text's first position."""
        parts = []
        for start in range(0, len(tokens), AT_ONCE):
            ids = torch.as_tensor(tokens[start : start + AT_ONCE])[:, None]
            prompts = self.lm.prompts(ids, mask=torch.ones_like(ids))
            parts.append(self.lm.run(prompts, "embed", logits=False)["embed"][:, 0].to(self.exact))
        return torch.cat(parts)

    def read(self, layer: int, name: Kind) -> Float[Tensor, "unit d_model d_head"]:
        """(unit d_model d_head) of the projection onto each head's queries, keys or values."""
        a = self.lm.anatomy
        block, tap = a.blocks[layer], a.tap(Site(name, layer))
        layout = tap.layout.inner if isinstance(tap.layout, Clipped) else tap.layout
        module = block.qkv if block.qkv is not None else getattr(block, name)
        normed = tap.module is not module
        n = a.n_heads if name == "q" else a.n_kv
        out = self._apply(module, a.d_model)[None]
        weight = (Heads(n) if normed else layout).read(out, 1, a.d_model)[0]
        if normed:  # a norm of queries or keys
            flat = a.family.qk_norm == "flat"
            scale = FrozenNorm(tap.module, self._random(n * a.d_head if flat else a.d_head)).weight
            weight = weight * scale.reshape(-1, a.d_head).to(weight)
        scale, centred = self._norms[layer]
        weight = weight.transpose(0, 1) * scale[:, None].to(weight)
        return weight - weight.mean(1, keepdim=True) if centred else weight

    @cached_property
    def _norms(self) -> list[tuple[Tensor, bool]]:
        """Of the norm before each layer's attention its weight (d_model), and whether it takes off the mean.

        The stream is set to vectors whose norms are known, in all layers of one pass, and what attention reads is seen.
        """
        lm, d = self.lm, self.lm.anatomy.d_model
        probe = torch.ones(d, dtype=lm.dtype)
        probe[1::2] = -1.0
        if d % 2:
            probe[-1] = 0.0  # of mean zero; what it says nothing of, the one rolled along does
        rolled = probe.roll(1)
        rows = torch.stack([torch.zeros_like(probe), probe, probe + 3.0, rolled])[None].to(lm.device)
        prompts = lm.prompts([[int(t) for t in vocabulary(lm)[:4]]])
        sites = [Site("resid_pre", layer) for layer in range(lm.anatomy.n_layers)]
        given = Run(prompts, None, dict.fromkeys(sites, rows))
        edits = [Edit(site, "set", Ref("probe")) for site in sites]
        run = lm.run(prompts, "L*.attn_in", edits, logits=False, runs={"probe": given})
        found = []
        for layer in range(lm.anatomy.n_layers):
            zero, plain, shifted, other = run[f"L{layer}.attn_in"][0].double().cpu()
            known = probe.double()
            weight = (plain - zero) * known
            weight = torch.where(known == 0, (other - zero) * rolled.double(), weight)
            gap = float((shifted - plain).abs().max())
            found.append((weight, gap <= 0.05 * float((plain - zero).abs().max())))
        return found

    def _apply(self, linear: nn.Module, width: int) -> Float[Tensor, "in out"]:
        eye = torch.eye(width, dtype=self.lm.dtype, device=next(iter(linear.parameters()), self._some).device)
        with torch.no_grad():
            bias = linear(torch.zeros_like(eye[None, :1]))[0]
            return (linear(eye[None])[0] - bias).to(self.exact).to(self.lm.device)

    @cached_property
    def _some(self) -> Tensor:
        return self._random(self.lm.anatomy.d_model)

    def _random(self, width: int) -> Float[Tensor, "one width"]:
        drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
        return drawn.to(self.lm.dtype).to(self.lm.device)


@planned_by(plan_weights)
def ov_circuit(lm: LM, site: str | Site) -> LowRank:
    """What a head moves: a token whose stream is x adds x @ matrix to the stream of a token that attends to it fully.

    Args:
        site: one head, such as `"L5.head[3]"`.

    Returns:
        W_V W_O as factors (d_model, d_head) and (d_head, d_model), norms folded in as this file's docstring says.

    >>> ov_circuit(lm, "L5.head[3]").singular_values[:3]  # doctest: +SKIP
    """
    layer, head = _one_head(lm, site)
    weights = Circuits(lm).layer(layer)
    return LowRank(_array(weights.v[head]), _array(weights.o[head]), f"OV of L{layer}.head[{head}]")


@planned_by(plan_weights)
def qk_circuit(lm: LM, site: str | Site) -> LowRank:
    """Where a head looks: the score of a query whose stream is x for a key whose stream is y grows with x @ matrix @ y.

    Returns:
        W_Q W_Kᵀ as factors (d_model, d_head) and (d_head, d_model). Positions are not in it: rotary embeddings turn
        queries and keys by their distance before they meet, which is ignored. Norms of queries and keys are folded in
        by their weight.

    >>> qk_circuit(lm, "L5.head[3]").singular_values[:3]  # doctest: +SKIP
    """
    layer, head = _one_head(lm, site)
    weights = Circuits(lm).layer(layer)
    return LowRank(_array(weights.q[head]), _array(weights.k[head].T), f"QK of L{layer}.head[{head}]")


@planned_by(plan_weights)
def composition(
    lm: LM,
    sites: Reads = "L*.head",
    *,
    kind: Kind = "k",
    receivers: Reads = "L*.head",
    circuits: Circuits | None = None,
) -> Scores[Edge]:
    """How much of what later heads read comes in the directions that earlier heads write, by weights alone.

    ‖W_OV W_K W_Qᵀ‖ / (‖W_OV‖ ‖W_Q W_Kᵀ‖) for `kind="k"`; with queries and keys exchanged for "q"; for "v"
    ‖W_OV W_OV′‖ / (‖W_OV‖ ‖W_OV′‖), all Frobenius norms. Were the sender's output rotated at random, its mean square
    would be exactly 1/d_model: `options["baseline"]` is the root of that.

    Args:
        sites: layers whose heads send, `"L*.head"` or `"L0-10.head"`.
        receivers: heads that read, as a selection or a list.
        circuits: the matrices, where they have been read already.

    Returns:
        `Scores` over edges (one example, layer, head, receiver), no unit; NaN where the receiver is not in a later
        layer, 0 for a head that writes or reads nothing.

    >>> composition(lm, kind="k").top(3)  # doctest: +SKIP
    """
    if kind not in ("q", "k", "v"):
        raise TrimtabError(f'kind is "q", "k" or "v", got {kind!r}')
    made = circuits or Circuits(lm)
    n = lm.anatomy.n_heads
    layers = sorted({layer for layer, _ in heads_of(lm, sites)})
    wanted = heads_of(lm, receivers)
    array = np.full((1, len(layers), n, len(wanted)), np.nan)
    written: dict[int, Tensor] = {}
    for layer in layers:
        w = made.layer(layer)
        out = torch.linalg.qr(w.v, mode="r")[1] @ w.o  # as large as V O in every direction of what reads it
        written[layer] = out / torch.linalg.matrix_norm(out).clamp(min=1e-30)[:, None, None]
    for later in sorted({layer for layer, _ in wanted}):
        which = [i for i, (layer, _) in enumerate(wanted) if layer == later]
        w = made.layer(later)
        into, beyond = {"k": (w.k, w.q), "q": (w.q, w.k), "v": (w.v, w.o.mT)}[kind]
        heads = [wanted[i][1] for i in which]
        read = into[heads] @ torch.linalg.qr(beyond[heads], mode="r")[1].mT
        read = read / torch.linalg.matrix_norm(read).clamp(min=1e-30)[:, None, None]
        for number, layer in enumerate(layers):
            if layer < later:
                met = torch.einsum("hdm,rme->hdre", written[layer], read)
                array[0, number][:, which] = _array(met.square().sum((1, 3)).sqrt())
    options = {"kind": kind, "baseline": lm.anatomy.d_model**-0.5}
    names = tuple(f"L{layer}.head[{head}].{kind}" for layer, head in wanted)
    some = lm.prompts([[int(vocabulary(lm)[0])]])  # weights alone: the provenance needs some prompt
    return Scores(
        array,
        ("example", "layer", "head", "receiver"),
        {"layer": tuple(layers), "head": tuple(range(n)), "receiver": names},
        "L{layer}.head[{head}]->{receiver}",
        method="composition",
        options=options,
        provenance=provenance(lm, some, "composition", options),
    )


def _one_head(lm: LM, site: str | Site) -> tuple[int, int]:
    found = heads_of(lm, [site])
    if len(found) != 1:
        raise SiteError(f'one head is needed, such as "L5.head[3]", and {site} is {len(found)}')
    return found[0]


def heads_of(lm: LM, sites: Reads) -> list[tuple[int, int]]:
    """Layer and number of every head that a selection names."""
    found: list[tuple[int, int]] = []
    for site in lm.sites(sites):
        if site.name != "head" or site.layer is None:
            raise SiteError(f'{site}: heads are needed, such as "L*.head"{nearest(site.name, ["head"])}')
        units: Sequence[int] = range(lm.anatomy.n_heads) if site.index is None else site.index
        found += [(site.layer, head) for head in units]
    return found


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
