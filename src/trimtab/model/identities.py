"""The anatomy proved on the model itself: each site is what its name says, or the model is refused.

A handful of tokens go through the model with every site read; then the tensors must fit together. Tolerances are
relative to the largest entry, because residual streams of real models reach 10⁴ in a few channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from trimtab.errors import ModelError
from trimtab.model.anatomy import apply_linear
from trimtab.model.halves import finish, needs
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Identity:
    """One equation, and how far it is from holding: largest difference over largest entry."""

    name: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is within tolerance."""
        return self.error <= self.tolerance


def check_anatomy(lm: LM) -> list[Identity]:
    """The identities of this model on six tokens; raises `ModelError` naming those that fail.

    Equations that run a module again are checked in the first and the last block of each kind (dense or mixture of
    experts, each type of attention); all others in every block. `identities` itself checks everything everywhere.
    """
    found = list(identities(lm, thorough=False))
    failed = [identity for identity in found if not identity.holds]
    if failed:
        listed = "; ".join(f"{i.name} (off by {i.error:.2g} of the largest entry)" for i in failed[:5])
        raise ModelError(
            f"{lm.name} is laid out otherwise than its architecture {lm.anatomy.family.name} says, so its sites would "
            f"be wrong tensors: {listed}. Load with check=False only to look into it"
        )
    return found


def probe_prompts(lm: LM, n: int = 6) -> Prompts:
    """A few arbitrary tokens, spread over the vocabulary."""
    known = lm.anatomy.vocab if lm.tokenizer is None else min(lm.anatomy.vocab, len(lm.tokenizer))
    ids = [(3 + 7919 * i) % known for i in range(n)]
    return lm.prompts([ids])


def identities(lm: LM, thorough: bool = True) -> Iterator[Identity]:
    """The identities of this model, one by one; with `thorough`, each in every block."""
    prompts, a = probe_prompts(lm), lm.anatomy
    names = sorted({name for layer in range(a.n_layers) for name in a.present(layer)} - {"expert", "expert.neuron"})
    sites = [s for name in names for s in lm.sites(f"L*.{name}")]
    core = {s for s in sites if s.name in ("scores", "pattern", "rot_q", "rot_k")}
    with torch.no_grad():
        plain = lm.call(prompts).logits
    run = lm.run(prompts, [s for s in sites if s not in core] + ["embed", "final"])
    ends = [s for s in sites if s.name in ("q", "k", "v", "head")]
    inner = lm.run(prompts, [*core, *ends], logits=False)  # every attention written out: a pass of its own
    tolerance = TOLERANCE.get(lm.dtype, 1e-1)
    if getattr(lm.hf, "is_quantized", False):
        tolerance = max(tolerance, 1e-1)

    def close(name: str, x: Tensor, y: Tensor, times: float = 1.0) -> Identity:
        scale = max(float(y.abs().max()), 1e-30)
        return Identity(name, float((x - y).abs().max()) / scale, tolerance * times)

    assert run.logits is not None
    yield Identity("logits while reading are bitwise those of the model", float(not torch.equal(run.logits, plain)), 0)
    with torch.no_grad():
        deep = set(range(a.n_layers)) if thorough else _ends_of_kinds(lm)
        for layer in range(a.n_layers):
            yield from _block_identities(lm, run, inner, layer, close, layer in deep)
        last = run[f"L{a.n_layers - 1}.resid_post"]
        yield close("the final norm of the last resid_post is what the unembedding reads", lm.final(last), run["final"])
        yield close("the unembedding of final is the logits", lm.unembed(run["final"]), run.logits)


Close = Callable[..., Identity]


def _ends_of_kinds(lm: LM) -> set[int]:
    """The first and last block of each kind: with experts or without, and each type of attention."""
    types = getattr(lm.hf.config, "layer_types", None) or [""] * lm.anatomy.n_layers
    kinds: dict[tuple[bool, str], list[int]] = {}
    for layer, block in enumerate(lm.anatomy.blocks):
        kinds.setdefault((block.experts is not None, types[layer]), []).append(layer)
    return {layer for layers in kinds.values() for layer in (layers[0], layers[-1])}


def _block_identities(lm: LM, run: Run, inner: Run, layer: int, close: Close, deep: bool) -> Iterator[Identity]:
    a, block, at = lm.anatomy, lm.anatomy.blocks[layer], f"L{layer}."

    def r(name: str) -> Tensor:
        return run[at + name]

    pre, post = r("resid_pre"), r("resid_post")
    if layer == 0:
        yield close("embed is what block 0 reads", run["embed"], pre)
    else:
        yield close(f"{at}resid_pre is the output of the block before", run[f"L{layer - 1}.resid_post"], pre)
    if a.family.parallel:
        yield close(f"{at}resid_pre + attn_out + mlp_out = resid_post", pre + r("attn_out") + r("mlp_out"), post)
    else:
        norms = block.stream_norm or (lambda x: x, lambda x: x)
        yield close(f"{at}resid_pre + attn_out = resid_mid", norms[0](pre + r("attn_out")), r("resid_mid"))
        yield close(f"{at}resid_mid + mlp_out = resid_post", norms[1](r("resid_mid") + r("mlp_out")), post)
    yield from _attention_identities(lm, run, inner, layer, close)
    if block.experts is None:
        act = _activation(lm)
        if act is not None:
            up = r("up") if f"{at}up" in run else 1.0
            yield close(f"{at}act(gate_pre) · up = neuron", act(r("gate_pre")) * up, r("neuron"))
    if not deep:
        return
    head = r("head")
    less = lm.run(run.prompts, f"{at}mlp_in", f"{at}attn_out scale 0.5", logits=False)[f"{at}mlp_in"]
    heard = not torch.equal(less, r("mlp_in"))
    says = "does not read" if a.family.parallel else "reads"
    yield Identity(f"{at}mlp_in {says} what attention adds", float(heard == a.family.parallel), 0)
    alone = lm.run(run.prompts, [f"{at}pattern", f"{at}head"], logits=False)
    floor = max(1.0, 1e-6 / TOLERANCE.get(lm.dtype, 1.0))
    yield close(f"{at}attention written out gives the kernel's heads", alone[f"{at}head"], head, 3 * floor)
    weight, bias = apply_linear(block.o, a.n_heads * a.d_head, head)
    summed = torch.einsum("bphd,hdm->bpm", head, weight.view(a.n_heads, a.d_head, -1)) + bias
    yield close(f"{at}heads through the output projection sum to attn_raw", summed, r("attn_raw"), 3)
    if block.experts is None:
        assert block.down is not None
        yield close(f"{at}neurons through the down projection are mlp_raw", block.down(r("neuron")), r("mlp_raw"))
    else:
        yield from _expert_identities(lm, run, layer, close)
    for entry in ("head", "mlp_in", *(() if block.experts is not None else ("neuron",))):
        base = {name: r(name).flatten(2).clone() for name in needs(a.family, entry)}
        yield close(f"{at}block finished from {entry} = resid_post", finish(block, a.family, entry, base), post, 3)


def _attention_identities(lm: LM, run: Run, inner: Run, layer: int, close: Close) -> Iterator[Identity]:
    a, at = lm.anatomy, f"L{layer}."
    pattern, scores = inner[at + "pattern"], inner[at + "scores"]
    group = a.n_heads // a.n_kv
    v = inner[at + "v"].repeat_interleave(group, dim=2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    # transformers' written-out attention takes its softmax in float32, also in a float64 model
    floor = max(1.0, 1e-6 / TOLERANCE.get(lm.dtype, 1.0))
    yield close(f"{at}pattern · v = head", mixed, inner[at + "head"], 3 * floor)
    exact = torch.float32 if scores.dtype.itemsize < 4 else scores.dtype
    yield close(f"{at}softmax(scores) = pattern", torch.softmax(scores.to(exact), -1).to(pattern), pattern, 3)
    yield close(f"{at}pattern is causal", pattern.triu(1), torch.zeros_like(pattern) + (pattern.triu(1) != 0), 0)
    if not a.family.rotary:  # two queries next to each other: what depends on the key alone (ALiBi) drops out
        q, k = inner[at + "q"], inner[at + "k"].repeat_interleave(group, dim=2)
        product = torch.einsum("bhd,bkhd->bhk", q[:, -1] - q[:, -2], k[:, :-1])
        apart = (scores[:, :, -1] - scores[:, :, -2])[..., :-1]
        scale = (apart * product).sum() / (product * product).sum()
        yield close(f"{at}q · k = scores", product * scale, apart, 3)
    else:
        for name in ("q", "k"):  # at position 0 the rotation turns nothing
            plain, turned = inner[f"{at}{name}"][:, 0], inner[f"{at}rot_{name}"][:, 0]
            scale = (turned * plain).sum() / (plain * plain).sum()
            yield close(f"{at}rot_{name} at position 0 = {name}", plain * scale, turned)


def _expert_identities(lm: LM, run: Run, layer: int, close: Close) -> Iterator[Identity]:
    block, at = lm.anatomy.blocks[layer], f"L{layer}."
    sites = [Site("expert", layer, expert=e) for e in range(block.n_experts)]
    parts = lm.run(run.prompts, sites, logits=False)
    total = sum((parts[s] for s in sites), torch.zeros_like(run[at + "mlp_raw"]))
    if block.shared is not None:
        x = run[at + "mlp_in"]
        gate = getattr(block.mlp, "shared_expert_gate", None)
        share = block.shared(x)
        total = total + (share if gate is None else torch.sigmoid(gate(x)) * share)
    yield close(f"{at}experts sum to mlp_raw", total, run[at + "mlp_raw"], 3)


def _activation(lm: LM) -> Callable[[Tensor], Tensor] | None:
    config = lm.hf.config
    for key in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        name = getattr(config, key, None)
        if isinstance(name, str) and name in ACT2FN:
            return ACT2FN[name]
    return None
