"""Which heads each method must find in the transformers made by hand: models, questions and answers as one table.

A method asks one of six questions about a head.

    carries    does what tells the twins apart pass through it?
    slope      the same, asked of the slope at one of the twins, which is 0 behind a softmax that is saturated
    straight   does it pass from there to the logits through no other head?
    varies     is the answer lost with what it says about the example at hand?
    works      is the answer lost with it?
    bends      is the answer lost, on average, where noise as large as what it says is added? Nothing is of what goes
               straight to the logits, which are linear in it, where no norm stands between
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from tests.handbuilt import bits, both_ways, facts, logic, memory
from tests.locate.copier import copied, copier, cued
from tests.locate.wired import asked, wired, written
from trimtab.locate.ablation import ablation
from trimtab.locate.atp_star import atp_star
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.patching import patching
from trimtab.locate.path_patching import path_patching
from trimtab.locate.tracing import causal_tracing
from trimtab.model.lm import LM
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores

Head = tuple[int, int]
Heads = frozenset[Head]

HEADS = "L*.head"
SLOPES = {
    "attribution patching": partial(attribution_patching, sites=HEADS, spans="all"),
    "attribution patching, noise": partial(attribution_patching, sites=HEADS, spans="all", direction="noise"),
    "AtP*": partial(atp_star, sites=HEADS, spans="all"),
    "AtP* without GradDrop": partial(atp_star, sites=HEADS, spans="all", grad_drop=False),
}


def noised(lm: LM, task: Task, sites: str | list[str]) -> Scores:
    """Ablation by noise of three standard deviations, the mean over four draws of it."""
    found = [ablation(lm, task, sites, kind="noise", sigma=3.0, seed=seed) for seed in range(4)]
    return found[0].with_(array=np.mean([scores.array for scores in found], axis=0))


METHODS: dict[str, tuple[str, Callable[..., Scores]]] = {
    "patching": ("carries", partial(patching, sites=HEADS, spans="all")),
    "patching, noise": ("carries", partial(patching, sites=HEADS, spans="all", direction="noise")),
    "causal tracing": (
        "carries",
        partial(causal_tracing, sites=HEADS, spans="all", subject="subject", noise=20.0, samples=8, known="all"),
    ),
    "integrated gradients": ("carries", partial(integrated_gradients, sites=HEADS, spans="all", batch_size=256)),
    **{name: ("slope", method) for name, method in SLOPES.items()},
    "path patching": ("straight", partial(path_patching, senders=HEADS, receivers="logits")),
    "resampling": ("varies", partial(ablation, sites=HEADS)),
    "mean ablation": ("varies", partial(ablation, sites=HEADS, kind="mean")),
    "zero ablation": ("works", partial(ablation, sites=HEADS, kind="zero")),
    "noise ablation": ("bends", partial(noised, sites=HEADS)),
}


@dataclass(frozen=True)
class Case:
    """A model, its task, the heads that tell the twins apart, and the answers to the questions that have others.

    `wrong` names for a method the heads that it scores though they are no answer, with the share of the answer's score.
    """

    lm: Callable[[], LM]
    task: Callable[[], Task]
    carries: Heads
    answers: Mapping[str, Heads] = field(default_factory=dict)
    wrong: Mapping[str, Mapping[Head, float]] = field(default_factory=dict)

    def heads(self, method: str) -> Heads:
        return self.answers.get(METHODS[method][0], self.carries)


def _bits(rule: str, turned: str) -> Case:
    carries = frozenset({(0, "AB".index(turned))})
    task = partial(_both_ways, rule, turned)
    return Case(partial(logic, rule), task, carries, {"works": frozenset({(0, 0), (0, 1)})})


def _both_ways(rule: str, turned: str) -> Task:
    """Resampled and averaged bits say something only where the clean prompts are not all alike in them."""
    return both_ways(bits(rule, turned))


PREVIOUS, INDUCTION, CARRIER, COPIER = (0, 0), (1, 0), (1, 0), (1, 2)
# The softmax behind the keys is saturated: of the head that they read a slope sees the norm before the values alone. To
# first order the token that it wrote goes and none comes, so the wrong answer, which stands beside it, grows, and by
# about its lead, half of what the right head changes. GradDrop keeps nothing of a path through both layers.
NORM_ALONE = {name: {PREVIOUS: -0.49} for name in SLOPES if name != "AtP*"}

CASES = {
    "a fact": Case(memory, facts, frozenset({CARRIER})),
    "a copy of another token": Case(copier, copied, frozenset({COPIER})),
    "a copy from another place": Case(copier, cued, frozenset({COPIER})),
    "induction, another query": Case(
        wired,
        asked,
        frozenset({INDUCTION}),
        dict.fromkeys(("varies", "works"), frozenset({PREVIOUS, INDUCTION})) | {"bends": frozenset({PREVIOUS})},
    ),
    "induction, other keys": Case(
        wired,
        written,
        frozenset({PREVIOUS, INDUCTION}),
        dict.fromkeys(("slope", "straight"), frozenset({INDUCTION})) | {"bends": frozenset({PREVIOUS})},
        NORM_ALONE,
    ),
    **{f"{rule} {turned}": _bits(rule, turned) for rule in ("and", "xor") for turned in "AB"},
}


def strengths(method: str, lm: LM, task: Task) -> np.ndarray:
    """(layer head) each head's mean effect, positive where the head makes for the answer."""
    scores = METHODS[method][1](lm, task)
    return scores.mean().reshape(lm.anatomy.n_layers, lm.anatomy.n_heads)


@torch.no_grad()
def rolled(lm: LM) -> LM:
    """The same function of prompts, computed by other heads: of n in a layer, what head h did head h + n/2 does now."""
    hf = deepcopy(lm.hf)
    for name, weight in hf.named_parameters():
        part = name.split(".")[-2]
        if part == "c_attn":
            each = weight.unflatten(-1, (3, -1))
            weight.copy_(each.roll(each.shape[-1] // 2, -1).flatten(-2))
        elif part in ("q_proj", "k_proj", "v_proj") or name.endswith("attn.c_proj.weight"):
            weight.copy_(weight.roll(len(weight) // 2, 0))
        elif part == "o_proj":
            weight.copy_(weight.roll(weight.shape[1] // 2, 1))
    return LM(hf, lm.tokenizer, name=f"{lm.name}, rolled", check=False)


@torch.no_grad()
def without(lm: LM, heads: Heads = frozenset(), neurons: Mapping[int, list[int]] | None = None) -> LM:
    """A GPT-2 some of whose heads, and neurons by layer, write nothing."""
    hf = deepcopy(lm.hf)
    d = lm.anatomy.d_head
    for layer, head in heads:
        hf.transformer.h[layer].attn.c_proj.weight[head * d : (head + 1) * d] = 0.0
    for layer, gone in (neurons or {}).items():
        hf.transformer.h[layer].mlp.c_proj.weight[gone] = 0.0
    return LM(hf, lm.tokenizer, name=f"{lm.name}, less", check=False)
