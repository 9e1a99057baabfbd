"""Tasks and passages of the tiny models' words, with prompts of different lengths."""

from __future__ import annotations

import numpy as np

from tests.tiny import words
from trimtab.evaluate.texts import Passage
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.task import Task
from trimtab.values.edit import Condition, Edit


def _text(i, length):
    rng = np.random.default_rng(1000 * length + i)
    return words(*(int(n) for n in rng.integers(3, 60, length)))


def twins(n=40):
    """Clean and corrupt prompts of 4 to 6 tokens, with one or two answers."""
    examples = []
    for i in range(n):
        head = _text(i, 2 + i % 3)
        answers = (" w70", " w71") if i % 2 else (" w72",)
        examples.append(
            Counterfactual(f"{head} w61 w62", f"{head} w63 w62", answers, (f" w{80 + i % 5}",), group=f"g{i % 7}")
        )
    return Task("twins", tuple(examples))


def questions(n=40, answer=" w70", distractor=" w71"):
    """Contrasting texts, with a question of 3 to 6 tokens."""
    examples = [
        Contrast(
            f"{_text(i, 3)} w64", f"{_text(i, 3)} w65", f"g{i % 7}", "", _text(i, 3 + i % 4), (answer,), (distractor,)
        )
        for i in range(n)
    ]
    return Task("questions", tuple(examples))


def phrases(n=40):
    """Questions whose answers have two or three tokens."""
    return questions(n, " w70 w73 w74", " w71 w75").with_(name="phrases")


def bare(n=40):
    """Contrasting texts of different lengths and nothing else: their likelihoods are compared."""
    examples = [Contrast(_text(i, 5 + i % 3), _text(i + 500, 4 + i % 4), group=f"g{i % 7}") for i in range(n)]
    return Task("bare", tuple(examples))


def continuations(n=40):
    """Two continuations of one prompt."""
    examples = [
        Contrast(_text(i, 3 + i % 2), _text(i + 500, 2), group=f"g{i % 7}", prompt=_text(i + 900, 3 + i % 4))
        for i in range(n)
    ]
    return Task("continuations", tuple(examples))


def passages(n=6, length=26):
    """Texts of `length` tokens or a few more."""
    return tuple(Passage(f"kind {i}", _text(i + 77, length + i % 3)) for i in range(n))


def vector(size=32, seed=0, norm=3.0):
    """A direction."""
    x = np.random.default_rng(seed).standard_normal(size)
    return (norm * x / np.linalg.norm(x)).astype(np.float32)


def edits(where="all", strength=1.0):
    """One edit of each sort at two layers, at the given positions."""
    return [
        Edit("L0.resid_post", "add", vector(), where=where, strength=strength),
        Edit("L1.resid_pre", "add", 0.7, where=where, strength=strength),
        Edit("L0.head[1,3]", "scale", 0.0, where=where, strength=strength),
        Edit("L1.neuron[3,17,20]", "scale", 3.0, where=where, strength=strength),
        Edit("L1.mlp_out", "set", 0.0, where=where, strength=strength),
    ]


def conditional(where="all", threshold=0.0, at=None):
    """An edit that waits for a condition."""
    site = "L0.resid_pre" if at is None else f"L0.resid_pre@{at}"
    return Edit(
        "L1.resid_post", "add", vector(seed=1, norm=9.0), where=where, when=Condition(site, vector(seed=2), threshold)
    )
