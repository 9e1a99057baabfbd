"""Transformers made by hand, whose mechanism is known, and tasks for them: what every causal method must find.

`memory`: a key-value memory. A neuron of L0 fires on its subject and writes the subject's attribute there; L1.head[0]
carries it to the last token. `logic`: two heads of L0 carry a bit each to the last token, and neurons of L0 make "and"
or "xor" of them. `opposed`: a bit that raises the answer straight and lowers it through a neuron of L1. Everything else
(the other heads and neurons) computes something that nobody reads, and writes so little of it that norms hardly notice.
Others, of previous-token and induction heads and of a head that copies, are in `tests.locate.wired` and
`tests.locate.copier`.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import tokenizer, words
from trimtab.model.lm import LM
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

TOKENS = 32
SUBJECTS, ATTRIBUTES = range(5, 13), range(15, 23)
FLAG, SPARE, ATTRIBUTE = TOKENS, TOKENS + 1, slice(TOKENS + 2, 2 * TOKENS + 2)
CARRIER, KEPT = "L1.head[0]", {subject: i for i, subject in enumerate(SUBJECTS)}
"""The head that carries attributes, and the neuron of L0 that holds each subject's."""

ON, OFF, YES, NO = 5, 6, 10, 11
PLACES, BIT_A, BIT_B, UNREAD = slice(TOKENS, TOKENS + 8), TOKENS + 8, TOKENS + 9, slice(TOKENS + 10, TOKENS + 12)
BOTH, EITHER = 3, 7
"""The neurons of L0 that fire when both bits, or at least one, are on."""


def _blank(width: int, inner: int) -> GPT2LMHeadModel:
    """GPT-2 of two layers and two heads whose weights are all zero, but for the norms'."""
    sizes = {"n_positions": 16, "n_embd": width, "n_layer": 2, "n_head": 2, "n_inner": inner}
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes))
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
    return hf.double().eval()


@cache
@torch.no_grad()
def memory() -> LM:
    width, inner = 2 * TOKENS + 2, 16
    hf = _blank(width, inner)
    body, generator = hf.transformer, torch.Generator().manual_seed(0)
    body.wte.weight[:, :TOKENS] = torch.eye(TOKENS).double()
    body.wte.weight[list(SUBJECTS), FLAG] = 1.0
    mlp = body.h[0].mlp
    for subject, attribute in zip(SUBJECTS, ATTRIBUTES, strict=True):
        neuron = KEPT[subject]
        mlp.c_fc.weight[subject, neuron], mlp.c_fc.bias[neuron] = 4.0, -12.0
        mlp.c_proj.weight[neuron, ATTRIBUTE.start + attribute] = 1.0
    idle = slice(len(SUBJECTS), inner)
    mlp.c_fc.weight[:, idle] = torch.randn(width, inner - len(SUBJECTS), generator=generator).double()
    mlp.c_proj.weight[idle, SPARE] = 0.01
    d = width // 2
    attention = body.h[1].attn  # queries are the same everywhere, keys are large at subjects
    attention.c_attn.bias[0], attention.c_attn.weight[FLAG, width] = 6.0, 6.0
    attention.c_attn.weight[ATTRIBUTE, 2 * width : 2 * width + TOKENS] = torch.eye(TOKENS).double()
    attention.c_proj.weight[:TOKENS, :TOKENS] = torch.eye(TOKENS).double()
    _idle_heads(hf, [(0, 0), (0, 1), (1, 1)], d, SPARE)
    return LM(hf, tokenizer(), name="memory", check=False)


def facts(n: int = 8) -> Task:
    """Prompts of a filler, a subject, a filler and the relation; the answer is the subject's attribute."""
    examples = []
    for i in range(n):
        clean, corrupt = SUBJECTS[i % 8], SUBJECTS[(i + 3) % 8]
        before, after = 25 + i % 3, 28 + i % 2
        examples.append(
            Counterfactual(
                words(before, clean, after, 31),
                words(before, corrupt, after, 31),
                (words(ATTRIBUTES[clean - 5]),),
                (words(ATTRIBUTES[corrupt - 5]),),
                group=f"filler {i % 3}",
                spans={"subject": words(clean)},
                corrupt_spans={"subject": words(corrupt)},
            )
        )
    return Task("facts", tuple(examples))


@cache
@torch.no_grad()
def logic(rule: str) -> LM:
    width, inner = TOKENS + 12, 12
    hf = _blank(width, inner)
    body, generator = hf.transformer, torch.Generator().manual_seed(1)
    _carrier(hf, 0, BIT_A)
    _carrier(hf, 1, BIT_B)
    mlp = body.h[0].mlp
    for neuron, least in ((BOTH, 5.0), (EITHER, 2.0)):
        mlp.c_fc.weight[[BIT_A, BIT_B], neuron], mlp.c_fc.bias[neuron] = 4.0, -4 * least
    sign = 1.0 if rule == "and" else -4.0
    mlp.c_proj.weight[BOTH, YES], mlp.c_proj.weight[BOTH, NO] = sign, -sign
    if rule == "xor":
        mlp.c_proj.weight[EITHER, YES], mlp.c_proj.weight[EITHER, NO] = 1.0, -1.0
    mlp.c_proj.bias[NO] = 1.0
    idle = [i for i in range(inner) if i not in (BOTH, EITHER)]
    mlp.c_fc.weight[:, idle] = torch.randn(width, len(idle), generator=generator).double()
    mlp.c_proj.weight[idle, UNREAD.start] = 0.01
    _idle_heads(hf, [(1, 0), (1, 1)], width // 2, UNREAD.start + 1)
    return LM(hf, tokenizer(), name=rule, check=False)


def bits(rule: str, turned: str) -> Task:
    """Prompts of two bits and a filler, twins in the bit that is turned ("A" or "B") while the other is on."""
    examples = []
    for i in range(6):
        both, one = (ON, ON), ((OFF, ON) if turned == "A" else (ON, OFF))
        clean, corrupt = (both, one) if rule == "and" else (one, both)
        span = {"A": clean[0], "B": clean[1]}[turned]
        other = {"A": corrupt[0], "B": corrupt[1]}[turned]
        start = 0 if turned == "A" else 3
        examples.append(
            Counterfactual(
                words(*clean, 20 + i),
                words(*corrupt, 20 + i),
                (words(YES),),
                (words(NO),),
                group=f"filler {i % 3}",
                spans={"subject": (start, start + len(words(span)))},
                corrupt_spans={"subject": (start, start + len(words(other)))},
            )
        )
    return Task(f"{rule} {turned}", tuple(examples), metric="logit_diff")


@torch.no_grad()
def opposed(straight: float) -> LM:
    """L0.head[0] carries bit A to the last token, and writes `straight` of it to YES as well; a neuron of L1 that bends
    where the bit is off takes YES away."""
    width = TOKENS + 12
    hf = _blank(width, 4)
    _carrier(hf, 0, BIT_A)
    hf.transformer.h[0].attn.c_proj.weight[0, YES] = straight
    mlp = hf.transformer.h[1].mlp
    mlp.c_fc.weight[BIT_A, 0], mlp.c_fc.bias[0], mlp.c_proj.weight[0, YES] = 4.0, 1.4, -0.2
    _idle_heads(hf, [(0, 1), (1, 0), (1, 1)], width // 2, UNREAD.start + 1)
    return LM(hf, tokenizer(), name=f"opposed by {straight}", check=False)


def both_ways(task: Task) -> Task:
    """The task's examples and the same with clean and corrupt exchanged, so that clean prompts are of both kinds."""
    return Task(f"{task.name} both ways", (*task.examples, *(e.swapped() for e in task.examples)), metric=task.metric)


def _carrier(hf: GPT2LMHeadModel, head: int, write: int) -> None:
    """A head of L0 that looks from everywhere at the position of its own number and writes whether the bit is on there;
    tokens and places are one-hot."""
    body = hf.transformer
    attention, width = body.h[0].attn, body.wte.weight.shape[1]
    body.wte.weight[:, :TOKENS] = torch.eye(TOKENS).double()
    body.wpe.weight[:8, PLACES] = torch.eye(8).double()
    first = head * width // 2
    attention.c_attn.bias[first] = 6.0
    attention.c_attn.weight[PLACES.start + head, width + first] = 6.0
    attention.c_attn.weight[ON, 2 * width + first] = 1.0
    attention.c_proj.weight[first, write] = 0.2


def _idle_heads(hf: GPT2LMHeadModel, heads: list[tuple[int, int]], d: int, write: int) -> None:
    """Heads that look everywhere alike, read tokens, and write them where nobody looks."""
    width = 2 * d
    for layer, head in heads:
        attention = hf.transformer.h[layer].attn
        attention.c_attn.weight[:TOKENS, 2 * width + head * d] = torch.linspace(-1, 1, TOKENS).double()
        attention.c_proj.weight[head * d, write] = 0.05
