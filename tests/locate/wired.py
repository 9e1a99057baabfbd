"""A GPT-2 whose heads are set by hand: what each does is known, and so is which reads which.

The stream holds the token, the position and the token before, one-hot, side by side. L0.head[0] looks at the token
before and writes what it was; L0.head[1] looks at the same token; L1.head[0] looks where the token before was this one
(an induction head, through the keys) and writes the token it finds; L1.head[1] looks evenly and takes tokens away.

What L0.head[0] writes may be read by the queries or the values of L1.head[0] in place of its keys. Of each there are
twins that differ in what is read, and of the induction head also twins whose last tokens ask for different pairs.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import tokenizer, words
from trimtab.model.lm import LM
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

TOKENS, POSITIONS = 40, 24
WIDTH = 2 * TOKENS + POSITIONS
D_HEAD = WIDTH // 2
TOKEN, POSITION, BEFORE = slice(0, TOKENS), slice(TOKENS, TOKENS + POSITIONS), slice(TOKENS + POSITIONS, WIDTH)
SHARP = 4.0
FILLERS = (36, 37, 38)
"""Tokens that stand between the others and are never asked for."""

Part = Literal["q", "k", "v"]


@cache
def wired(part: Part = "k") -> LM:
    """The model whose L1.head[0] reads what L0.head[0] wrote with its queries, keys or values."""
    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_inner=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    hf = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
        hf.transformer.wte.weight[:, TOKEN] = torch.eye(TOKENS).double()
        hf.transformer.wpe.weight[:, POSITION] = torch.eye(POSITIONS).double()
        token, position = torch.eye(TOKENS).double(), torch.eye(POSITIONS).double()
        one_back = torch.zeros(POSITIONS, POSITIONS).double()
        one_back[torch.arange(1, POSITIONS), torch.arange(POSITIONS - 1)] = 1.0
        _head(hf, 0, 0, q=(POSITION, one_back), k=(POSITION, position), v=(TOKEN, token), o=(BEFORE, token))
        _head(hf, 0, 1, q=(TOKEN, token), k=(TOKEN, token))
        reads = {name: (BEFORE if name == part else TOKEN, token) for name in "qkv"}
        _head(hf, 1, 0, **reads, o=(TOKEN, token))
        _head(hf, 1, 1, v=(TOKEN, token), o=(TOKEN, -token))
    return LM(hf, tokenizer(), name=f"wired {part}", check=False)


def asked(n: int = 6) -> Task:
    """Two pairs and the first token of one of them again, after which its second comes; the twin asks for the other.

    Only the query of the induction head differs, and no head wrote it.
    """
    examples = []
    for a, b, x, y in _drawn(n):
        clean, corrupt = ([38, a, b, 36, x, y, 37, last] for last in (a, x))
        examples.append(_twins(clean, corrupt, (b, y), subject=7))
    return Task("asked", tuple(examples))


def written(part: Part = "k", n: int = 6) -> Task:
    """Twins of `wired(part)` that differ in the token that L0.head[0] writes for L1.head[0] to read.

    "k": the first tokens of two pairs are exchanged, and the last token finds its pair's second. "v": what stands
    before two tokens is, and the last token finds what stood before its twin. "q": the token before the last is to be
    copied, and is exchanged with another.
    """
    examples = []
    for a, b, x, y in _drawn(n):
        if part == "k":
            examples.append(_twins([38, a, b, 36, x, y, 37, a], [38, x, b, 36, a, y, 37, a], (b, y), subject=1))
        elif part == "v":
            examples.append(_twins([38, b, a, 36, y, x, 37, a], [38, y, a, 36, b, x, 37, a], (b, y), subject=1))
        else:
            clean, corrupt = ([38, a, 36, x, 37, other, 36, last, b] for other, last in ((x, a), (a, x)))
            examples.append(_twins(clean, corrupt, (a, x), subject=7))
    return Task(f"written {part}", tuple(examples))


def _drawn(n: int) -> list[list[int]]:
    """Four tokens for each example, which no other one has."""
    return np.random.default_rng(0).permutation(np.arange(5, min(FILLERS)))[: 4 * n].reshape(n, 4).tolist()


def _twins(clean: list[int], corrupt: list[int], answers: tuple[int, int], subject: int) -> Counterfactual:
    """Twins of which `subject` is the position whose token is blurred when a subject is asked for."""
    starts = [len(words(*ids[:subject])) + 1 for ids in (clean, corrupt)]
    spans = [
        {"subject": (start, start + len(words(ids[subject])))}
        for start, ids in zip(starts, (clean, corrupt), strict=True)
    ]
    told = (words(answers[0]),), (words(answers[1]),)
    return Counterfactual(
        words(*clean), words(*corrupt), *told, group=words(*clean), spans=spans[0], corrupt_spans=spans[1]
    )


def _head(hf, layer, head, q=None, k=None, v=None, o=None):
    block = hf.transformer.h[layer].attn
    for number, part in enumerate((q, k, v)):
        if part is not None:
            where, matrix = part
            start = number * WIDTH + head * D_HEAD
            scale = SHARP if number < 2 else 1.0
            block.c_attn.weight[where, start : start + matrix.shape[1]] = scale * matrix
    if o is not None:
        where, matrix = o
        block.c_proj.weight[head * D_HEAD : head * D_HEAD + matrix.shape[0], where] = matrix
