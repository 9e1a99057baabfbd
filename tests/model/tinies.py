"""What the tests of the model room share: tiny models as LMs, prompts, tolerances, and what may not stay on a model."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import cache

import torch

from tests.tiny import tiny, tokenizer
from trimtab.model import attention
from trimtab.model.lm import LM
from trimtab.values.site import Site

EAGER = frozenset({"gemma2", "bloom", "gptj"})
"""Families whose softmax transformers takes in float32 whatever the model's type; in float64 padded rows give NaN."""
MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
CORE = ("rot_q", "rot_k", "scores", "pattern")
"""Sites inside attention: a layer that shows them runs the plain formula, so it is equal to rounding only."""

IDS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 12, 9, 10, 13]]
OTHER = [[5, 6, 20, 8, 9, 10, 11], [5, 6, 7, 21, 9, 10, 13]]
"""As long as `IDS`, and different from its third and fourth token on."""
RAGGED = [[5, 6, 7, 8, 9, 10, 11], [7, 12, 9, 10, 13]]
SIDES = ("left", "right")


@cache
def lm_of(family, dtype=torch.float32, attention=None):
    """One tiny model of a family, made once: a test that changes its weights for good makes its own with `fresh`."""
    return fresh(family, dtype, attention, check=False)


def fresh(family, dtype=torch.float32, attention=None, check=True):
    hf = tiny(family, dtype, attention=attention)
    if dtype != torch.float32 and family in MOE:
        hf.set_experts_implementation("eager")  # transformers' grouped product needs float32, or wide rows
    return LM(hf, tokenizer(), name=family, check=check)


def exact(family, padded=False):
    """The family in float64, or in float32 where transformers itself is wrong in float64."""
    return lm_of(family, torch.float32 if padded and family in EAGER else torch.float64)


def tolerance(lm):
    """Relative to the largest entry: what two orders of the same sums may differ by."""
    return 1e-10 if lm.dtype == torch.float64 and lm.name not in EAGER else 2e-5


def off(x, y):
    """The largest difference, next to the largest entry of `y`; NaN and infinities are an error."""
    assert x.shape == y.shape, f"{tuple(x.shape)} is compared with {tuple(y.shape)}"
    assert torch.isfinite(x).all(), "values that are not finite"
    assert torch.isfinite(y).all(), "expected values that are not finite"
    return float((x - y).abs().max()) / max(float(y.abs().max()), 1e-30)


def close(lm, x, y, what="", times=1.0):
    """`x` is `y` to rounding."""
    apart = off(x, y)
    assert apart <= times * tolerance(lm), f"{what}: off by {apart:.2g} of the largest entry"


def real(prompts, values):
    """(token …): the entries (batch pos …) of real tokens."""
    return values[prompts.mask.bool()]


def site_names(lm, layer=1):
    """The names of the layer's sites that can be read without naming an expert."""
    return [name for name in lm.anatomy.present(layer) if not name.startswith("expert")]


def every_site(lm, experts=(0, 2), core=True):
    """Every site of a model, with two experts of each mixture; without `core`, those that are read bitwise."""
    sites = [Site("embed"), Site("final"), Site("logits")]
    for layer in range(lm.anatomy.n_layers):
        for name in lm.anatomy.present(layer):
            sites += [Site(name, layer, expert=e) for e in (experts if name.startswith("expert") else (None,))]
    return [site for site in sites if core or site.name not in CORE]


def plain_logits(lm, prompts):
    """Transformers' own logits, called with the same ids, mask and position ids."""
    options = {"position_ids": prompts.position_ids} if lm.takes_positions else {}
    with torch.no_grad():
        return lm.hf(input_ids=prompts.ids, attention_mask=prompts.mask, use_cache=False, **options).logits


def digest(lm):
    found = hashlib.sha256()
    for name, weight in lm.hf.state_dict().items():
        found.update(name.encode() + weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def state(lm):
    """All that could be left on a model, or in the package, by something that ran."""
    modules = dict(lm.hf.named_modules())
    return {
        "hooks": {
            name: (*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks)
            for name, module in modules.items()
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        },
        "attributes": {name: sorted(module.__dict__) for name, module in modules.items()},
        "configurations": {name: id(getattr(module, "config", None)) for name, module in modules.items()},
        "attention": lm.hf.config._attn_implementation,
        "inside attention": dict(attention._ACTS),
        "frame": lm.frame,
        "active": list(lm.active),
        "requires_grad": {name: p.requires_grad for name, p in lm.hf.named_parameters()},
        "gradients": {name: p.grad is None for name, p in lm.hf.named_parameters()},
        "gradients on": torch.is_grad_enabled(),
        "weights": digest(lm),
    }


@contextmanager
def untouched(lm):
    """Fails where the block leaves anything behind on the model."""
    before = state(lm)
    yield
    after = state(lm)
    for what, was in before.items():
        assert after[what] == was, f"{what} changed"
