"""Path patching from every head to every later head's query, key and value, against one plain pass for each path.

One prompt of the indirect-object task. The plain pass is a forward pass of the clean prompt without any hooks, which is
less than a path takes by hand (two passes with every head frozen in the first); the long way itself, `exact="naive"`,
is timed on paths drawn at random too, and is what the values are held against.
"""

from __future__ import annotations

import numpy as np
import torch

import trimtab
from benchmarks.measure import Case, faster, ratio_of, say, seconds
from trimtab.locate.path_patching import path_patching
from trimtab.tasks.builtin import task
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import measure

PASSES = 20
QUICK = range(3, 30, 6)
"""Layers of the receivers when there is little time: early and late ones, as among all."""


def cases(quick: bool) -> list[Case]:
    say("path_patching")
    lm = trimtab.load("smollm2-135m-instruct")
    ioi = fit(lm, task("ioi")).task.take(1, 0)
    prompts, layers = measure(lm, ioi, on="clean").prompts, lm.anatomy.n_layers
    chosen = QUICK if quick else range(1, layers)
    receivers = [f"L{layer}.head" for layer in chosen]
    found: list[np.ndarray] = []

    def every() -> None:
        found.append(path_patching(lm, ioi, "L*.head", receivers).array)

    def plain() -> None:
        with torch.no_grad():
            for _ in range(PASSES):
                lm.call(prompts)

    path_patching(lm, ioi, ["L27.head[0]"], "L28.head.q")
    plain()
    before, fast, after = seconds(plain), seconds(every), seconds(plain)
    values = found[0][0, :, :, 0]
    paths = np.argwhere(np.isfinite(values))
    each = len(paths) / PASSES / fast
    ratio = ratio_of([before * each, after * each])
    names = [
        f"L{layer}.head[{head}].{part}" for layer in chosen for head in range(lm.anatomy.n_heads) for part in "qkv"
    ]
    sample = paths[np.random.default_rng(0).choice(len(paths), 6, replace=False)].tolist()
    by_hand: list[float] = []

    def long_way() -> None:
        for layer, head, receiver in sample:
            alone = path_patching(lm, ioi, [f"L{layer}.head[{head}]"], names[receiver], exact="naive")
            by_hand.append(float(alone.array[0, 0, 0]))

    slow = seconds(long_way) * len(paths) / len(sample) / fast
    logits = lm.run(prompts).logits
    assert logits is not None
    apart = np.abs(np.array(by_hand) - [values[layer, head, receiver] for layer, head, receiver in sample])
    error = float(apart.max()) / float(logits.abs().max())
    note = f"{len(paths)} paths on a prompt of {prompts.width} tokens"
    return [
        faster("path_patching", ratio, 10, f"over a plain pass for each path; {note}"),
        Case("path_patching_naive", slow, "times faster", note=f"over the long way, timed on {len(sample)} paths"),
        Case("path_patching_equal", error, "difference from the long way / largest logit", 1e-5, error <= 1e-5),
    ]
