"""Tasks in the words of the tiny tokenizer, ragged so that batches are padded, and a model with something planted."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from tests.model.tinies import fresh
from tests.tiny import words
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task

POSITIVE, NEGATIVE = 5, 6
"""The tokens that tell the two sides of a planted task apart."""


def twins(n=6, metric="logit_diff"):
    """Prompts of five to seven tokens and twins that differ in the subject, in three groups."""
    rng = np.random.default_rng(1)
    examples = []
    for i in range(n):
        before, after = (rng.integers(40, 97, 1 + i % 3).tolist() for _ in range(2))
        clean, corrupt = 10 + i, 25 + i
        examples.append(
            Counterfactual(
                words(*before, clean, *after),
                words(*before, corrupt, *after),
                (f"w{3 + i}",),
                (f"w{9 + i}",),
                group=f"group {i % 3}",
                spans={"subject": words(clean)},
                corrupt_spans={"subject": words(corrupt)},
            )
        )
    return Task("twins", tuple(examples), metric=metric)


def pairs(n=12, question=True, groups=4, metric="log_prob_diff", start=40, name="pairs"):
    """Texts of random words with one of two tokens among them, and a question."""
    rng = np.random.default_rng(2 + start)
    examples = []
    for i in range(n):
        rest = rng.integers(start, 97, 4 + i % 3).tolist()
        asked = {"question": words(*rest[:3], 7), "answers": ("w8",), "distractors": ("w9", "w10")} if question else {}
        sides = [words(*rest[:2], token, *rest[2:]) for token in (POSITIVE, NEGATIVE)]
        examples.append(Contrast(*sides, group=f"{name} {i % groups}", **asked))
    return Task(name, tuple(examples), metric=metric)


@cache
def planted():
    """GPT-2 whose two tokens stand far apart along one direction, which neuron 7 of layer 1 reads."""
    lm = fresh("gpt2", torch.float64)
    u = torch.zeros(32, dtype=torch.float64)
    u[0], u[1] = 1.0, -1.0
    with torch.no_grad():
        lm.hf.transformer.wte.weight[POSITIVE] += 12 * u
        lm.hf.transformer.wte.weight[NEGATIVE] -= 12 * u
        lm.hf.transformer.h[1].mlp.c_fc.weight[:, 7] = 6 * u
    return lm


def numbers(lm, task, on="corrupt", edits=None):
    """The task's number of each example, one prompt at a time: with `edits(row)` made by hand."""
    measured = measure(lm, task, on=on)
    values = []
    for row in range(len(measured.prompts)):
        prompts, readout = measured.prompts.rows([row], trim=True), measured.readout.of_rows([row])
        run = lm.run(prompts, edit=None if edits is None else edits(row))
        columns = readout.columns(prompts)
        at = run.logits.gather(1, columns[..., None].expand(-1, -1, run.logits.shape[-1]))
        values.append(readout.of(at, torch.tensor([0])))
    return measured.per_example(torch.cat(values))
