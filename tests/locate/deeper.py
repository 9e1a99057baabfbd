"""Tiny models of more than two layers, for what happens between layers that are not neighbours."""

from __future__ import annotations

from functools import cache

import torch

from tests.model.tinies import EAGER, MOE
from tests.tiny import FAMILIES, tiny, tokenizer
from trimtab.model.lm import LM


@cache
def deeper(family, layers=3):
    """A random model of a family in float64 (float32 where transformers itself needs it)."""
    made = FAMILIES[family]

    def config():
        longer = made()
        longer.num_hidden_layers = layers
        if kinds := getattr(longer, "layer_types", None):
            longer.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
        return longer

    FAMILIES[family] = config
    try:
        hf = tiny(family, torch.float32 if family in EAGER else torch.float64)
    finally:
        FAMILIES[family] = made
    if family in MOE:
        hf.set_experts_implementation("eager")
    return LM(hf, tokenizer(), name=family, check=False)
