"""A Llama made by hand that copies: its last token says how many places back to look, and one head does.

The stream holds the token and a constant, side by side with what has been said, which the logits are read from. In
L1.head[2] the constant makes the keys, and the token that asks makes a query turned back by as many places, so that
their rotary embeddings agree there and nowhere else; the value is the token. L1.head[3] shares these keys and values,
looks evenly, and writes a little of what it finds where nobody reads, as do the heads that read nothing of use.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import tokenizer, words
from trimtab.model.lm import LM
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

TOKENS = D_HEAD = 32
TOKEN, ONE, SAID, SPARE = slice(0, TOKENS), TOKENS, slice(TOKENS + 1, 2 * TOKENS + 1), 2 * TOKENS + 1
WIDTH = 2 * TOKENS + 4
BASE = 4.0
"""Of the rotations: the slowest turns by a quarter of a radian a place, so that no two places look alike."""
BACK = {3: 2, 4: 3}
"""The tokens that ask, and how many places back."""
COPIER, MATE = 2, 3


@cache
@torch.no_grad()
def copier() -> LM:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4, "head_dim": D_HEAD, "max_position_embeddings": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": BASE}}
    ids = {"vocab_size": TOKENS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    hf = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **rotary, **ids)).double().eval()
    for name, parameter in hf.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    hf.model.embed_tokens.weight[:, TOKEN] = torch.eye(TOKENS).double()
    hf.model.embed_tokens.weight[:, ONE] = 1.0
    hf.lm_head.weight[:, SAID] = torch.eye(TOKENS).double()
    ramp = torch.linspace(-1, 1, TOKENS).double()
    for layer, head in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        attention = hf.model.layers[layer].self_attn
        attention.v_proj.weight[head // 2 * D_HEAD, TOKEN] = ramp
        attention.o_proj.weight[SPARE, head * D_HEAD] = 0.01
    attention = hf.model.layers[1].self_attn
    angles = BASE ** (-torch.arange(D_HEAD // 2).double() * 2 / D_HEAD)
    query = attention.q_proj.weight[COPIER * D_HEAD : (COPIER + 1) * D_HEAD]
    for token, back in BACK.items():
        query[:, token] = torch.cat([(back * angles).cos(), -(back * angles).sin()])
    shared = slice(COPIER // 2 * D_HEAD, (COPIER // 2 + 1) * D_HEAD)
    attention.k_proj.weight[shared, ONE] = torch.cat([torch.ones(D_HEAD // 2), torch.zeros(D_HEAD // 2)]).double()
    attention.v_proj.weight[shared, TOKEN] = torch.eye(TOKENS).double()
    attention.o_proj.weight[SAID, COPIER * D_HEAD : (COPIER + 1) * D_HEAD] = 0.2 * torch.eye(TOKENS).double()
    attention.o_proj.weight[SPARE + 1, MATE * D_HEAD : (MATE + 1) * D_HEAD] = 0.01 * ramp
    return LM(hf, tokenizer(), name="copier", check=False)


def copied(n: int = 6) -> Task:
    """Prompts that end with how many places back to look; in the twin another token stands there."""
    examples = []
    for i in range(n):
        asks = 3 + i % 2
        clean, corrupt = _prompt(i, asks), _prompt(i, asks)
        at = len(clean) - 1 - BACK[asks]
        corrupt[at] = 17 + i
        spans = {"subject": words(clean[at])}, {"subject": words(corrupt[at])}
        told = (words(clean[at]),), (words(corrupt[at]),)
        examples.append(Counterfactual(words(*clean), words(*corrupt), *told, f"filler {i % 3}", *spans))
    return Task("copied", tuple(examples))


def cued(n: int = 6) -> Task:
    """The same prompts; the twin looks another number of places back."""
    examples = []
    for i in range(n):
        asks = (3, 4) if i % 2 else (4, 3)
        clean, corrupt = (_prompt(i, one) for one in asks)
        told = [(words(ids[-1 - BACK[ids[-1]]]),) for ids in (clean, corrupt)]
        spans = {"subject": words(asks[0])}, {"subject": words(asks[1])}
        examples.append(Counterfactual(words(*clean), words(*corrupt), *told, f"filler {i % 3}", *spans))
    return Task("cued", tuple(examples))


def _prompt(i: int, asks: int) -> list[int]:
    """None to two fillers, the tokens three and two places back, a filler, and the token that asks."""
    return [*range(23, 23 + i % 3), 5 + i, 11 + i, 26 + i % 3, asks]
