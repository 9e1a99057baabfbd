"""A GPT-2 whose heads are set by hand: what each does is known, and so is which reads which.

The stream holds the token, the position and the token before, one-hot, side by side. L0.head[0] looks at the token
before and writes what it was; L0.head[1] looks at the same token; L1.head[0] looks where the token before was this one
(an induction head, through the keys) and writes the token it finds; L1.head[1] looks evenly and takes tokens away.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import tokenizer
from trimtab.model.lm import LM

TOKENS, POSITIONS = 40, 24
WIDTH = 2 * TOKENS + POSITIONS
D_HEAD = WIDTH // 2
TOKEN, POSITION, BEFORE = slice(0, TOKENS), slice(TOKENS, TOKENS + POSITIONS), slice(TOKENS + POSITIONS, WIDTH)
SHARP = 4.0


@cache
def wired():
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
        _head(hf, 1, 0, q=(TOKEN, token), k=(BEFORE, token), v=(TOKEN, token), o=(TOKEN, token))
        _head(hf, 1, 1, v=(TOKEN, token), o=(TOKEN, -token))
    return LM(hf, tokenizer(), name="wired", check=False)


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
