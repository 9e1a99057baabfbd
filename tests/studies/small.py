"""A study of a made-up trait on a random two-layer model, in seconds; as a script, one that kills itself half-way.

python -m tests.studies.small FOLDER [STAGE SHARE]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from tests.model.tinies import fresh
from tests.tiny import words
from trimtab.studies.settings import Settings
from trimtab.studies.store import Store
from trimtab.studies.study import Study
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.task import Task

SMALL = {
    "task": "made-up",
    "model": "tiny",
    "objects": ("resid_post", "head", "neuron"),
    "candidates": 2,
    "sites": 1,
    "train": 12,
    "validation": 8,
    "test": 12,
    "draws": 3,
    "search_tokens": 24,
    "search_passages": 2,
    "test_tokens": 30,
    "coefficients": (1.0, 2.0),
    "factors": (0.0,),
    "kl_limit": 5.0,
    "capability": 20,
    "others": 0,
    "samples": 2,
    "new_tokens": 3,
}


def contrast(groups=13, each=4) -> Task:
    """Texts with one of two words in them, and a question in which neither stands."""
    made = []
    for group in range(groups):
        for i in range(each):
            own = 20 + group * each + i
            made.append(
                Contrast(
                    words(3, 10, own, 11),
                    words(3, 12, own, 13),
                    group=f"g{group}",
                    question=words(5, own, 6),
                    answers=("w10",),
                    distractors=("w12",),
                )
            )
    return Task("made-up", tuple(made), about="whether w10 or w12")


def counterfactual(groups=13, each=4) -> Task:
    """A clean prompt and a corrupt one that differ in a word."""
    made = []
    for group in range(groups):
        for i in range(each):
            own = 20 + group * each + i
            made.append(
                Counterfactual(
                    words(3, 10, own, 5), words(3, 12, own, 5), ("w10",), ("w12",), f"g{group}", {"subject": words(own)}
                )
            )
    return Task("made-up", tuple(made), metric="logit_diff")


def study(root: Path, task: Task | None = None, lm=None, **settings) -> Study:
    torch.set_num_threads(1)
    lm = fresh("llama", check=False) if lm is None else lm
    return Study(Settings.of(**{**SMALL, **settings}), lm=lm, task=task or contrast(), store=Store(root))


def digests(made: Study) -> dict[str, str]:
    """What every stage found, in short."""
    return {name: stage.digest for name, stage in made.folder.state.stages.items()}


if __name__ == "__main__":
    root, *where = sys.argv[1:]

    def kill(stage: str, what: str, share: float) -> None:
        if where and stage == where[0] and share >= float(where[1]):
            os.kill(os.getpid(), signal.SIGKILL)

    made = study(Path(root))
    made.run(kill)
