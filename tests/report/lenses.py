"""A small lens with tokens that a page must not take for its own."""

from __future__ import annotations

import numpy as np

from trimtab.values.lens import Lens
from trimtab.values.provenance import Provenance

NASTY = '</script><script>alert("x")</script>'


def made(**changes):
    """Two layers and two positions, two guesses each."""
    parts = {
        "tokens": ("The", " <b>"),
        "token_ids": np.array([5, 6]),
        "sites": ("L0.resid_post", "L1.resid_post"),
        "top_ids": np.array([[[1, 2], [2, 3]], [[4, 1], [1, 4]]]),
        "top_probabilities": np.array([[[0.5, 0.25], [0.9, 0.01]], [[0.3, 0.2], [1.0, 0.0]]]),
        "words": {"1": NASTY, "2": " a", "3": "\n", "4": "\u202e'\"&"},
        "answer": None,
        "targets": np.array([4, 1]),
        "rank": np.array([[3, 2], [1, 1]]),
        "probability": np.array([[0.1, 0.005], [0.3, 1.0]]),
        "entropy": np.array([[1.0, 2.0], [0.5, 0.0]]),
        "kl": np.array([[3.0, 4.0], [0.0, 0.0]]),
        "edits": ("L0.head[1] scale 0",),
        "provenance": Provenance("<i>model</i>", model_hash="ab" * 32, created="2025-01-01T00:00:00+00:00"),
    }
    return Lens(**(parts | changes))


def long(positions=600, layers=10):
    """A lens of a long prompt."""
    grid = (layers, positions)
    return Lens(
        tokens=tuple(f" {i}" for i in range(positions)),
        token_ids=np.arange(positions),
        sites=tuple(f"L{i}.resid_post" for i in range(layers)),
        top_ids=np.ones((*grid, 1)),
        top_probabilities=np.full((*grid, 1), 0.5),
        words={"1": "x"},
        answer="x",
        targets=np.ones(positions),
        rank=np.ones(grid),
        probability=np.full(grid, 0.5),
        entropy=np.ones(grid),
        kl=np.zeros(grid),
    )
