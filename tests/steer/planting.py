"""Models and rows with a direction planted in them, and what the tests of vector methods ask of all of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from tests.model.tinies import IDS, RAGGED, fresh, lm_of
from trimtab.steer.both_sides import BothSides
from trimtab.tasks.example import Contrast
from trimtab.tasks.task import Task
from trimtab.values.site import Site

PLANTED = np.random.default_rng(3).standard_normal(32)
SITES = ["L0.resid_post", "L1.head[1]", "L1.mlp_out"]
"""Sites that every family has, with one vector each."""


@cache
def planted():
    """A model in which the tokens w41 and w40 differ by a known vector where they are embedded."""
    lm = fresh("llama", torch.float64)
    with torch.no_grad():
        weight = lm.anatomy.embedding.weight
        weight[41] = weight[40] + torch.as_tensor(PLANTED)
    return lm


def ending(n=9, words=("w41", "w40")):
    """Texts of different lengths that end in the one word against the same ones that end in the other."""
    heads = [" ".join(f"w{5 + (3 * i + k) % 30}" for k in range(2 + i % 4)) for i in range(n)]
    return Task(
        "ending", tuple(Contrast(f"{h} {words[0]}", f"{h} {words[1]}", f"g{i % 3}") for i, h in enumerate(heads))
    )


def swapped(task):
    """The task with the two sides of every example the other way round."""
    return task.of([example.swapped() for example in task.examples])


def rows(v, covariance, n=400, seed=0):
    """Both sides of n examples drawn around ±v/2 with this covariance."""
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal(np.zeros(len(v)), covariance, size=(2, n))
    return BothSides(Site.parse("L0.resid_post"), noise[0] + v / 2, noise[1] - v / 2, (len(v),))


def cosine(a, b):
    """Of two arrays of one shape."""
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def is_nothing_at_zero(make):
    """Checks that a method at strength 0 leaves every logit as it is, bit for bit; `make(lm, strength=...)`."""
    lm = lm_of("llama", torch.float64)
    made, half = make(lm, strength=0.0), make(lm, strength=0.5)
    for prompts in (IDS, RAGGED):
        plain = lm.run(prompts).logits
        assert torch.equal(lm.run(prompts, edit=made).logits, plain)
        assert not torch.equal(lm.run(prompts, edit=half).logits, plain)


def is_cached_right(make):
    """Checks that generation with the cache is generation without it; `make(lm, where=...)` acts strongly."""
    lm = lm_of("llama", torch.float64)
    plain = lm.generate(RAGGED, max_new_tokens=8)
    for where in ("all", "-1:", "generated", "prompt"):
        made = make(lm, where=where)
        cached, whole = (lm.generate(RAGGED, made, max_new_tokens=8, cache=cache) for cache in (True, False))
        assert cached.ids == whole.ids, where
        assert cached.ids != plain.ids, where
