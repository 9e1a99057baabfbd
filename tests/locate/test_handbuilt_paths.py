"""Path patching and the parts of a head, on transformers made by hand: which head reads another, and with what."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handbuilt import bits, facts, logic, memory
from tests.locate.copier import COPIER, MATE, copied, copier, cued
from tests.locate.mechanisms import rolled
from tests.locate.wired import asked, wired, written
from trimtab.locate.atp_star import atp_star
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.patching import patching, total_effect
from trimtab.locate.path_patching import path_patching

PARTS = {
    "a fact": (memory, facts, "v", 0),
    "a copy of another token": (copier, copied, "v", COPIER // 2),
    "a copy from another place": (copier, cued, "q", COPIER),
    "induction, another query": (wired, asked, "q", 0),
    "induction, other keys": (wired, written, "k", 0),
    "a value of the token before": (lambda: wired("v"), lambda: written("v"), "v", 0),
}
"""Models, tasks, and the part of a head of L1 (its own or, under grouped queries, shared) by which the twins differ."""
METHODS = {
    "patching": patching,
    "AtP*": atp_star,
    "AtP* without GradDrop": lambda *given, **options: atp_star(*given, **options, grad_drop=False),
    "integrated gradients": lambda *given, **options: integrated_gradients(*given, **options, batch_size=256),
}


def edges(scores):
    """The size of each path's mean effect, by its name without positions."""
    sizes = np.abs(scores.mean()).reshape(*scores.array.shape[1:3], -1)
    return {
        f"L{layer}.head[{head}]->{receiver}": float(sizes[layer, head, i])
        for layer in range(sizes.shape[0])
        for head in range(sizes.shape[1])
        for i, receiver in enumerate(scores.coords["receiver"])
        if np.isfinite(sizes[layer, head, i])
    }


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_the_previous_token_head_reaches_the_later_one_through_the_part_that_reads_it(part, direction):
    """What differs between the twins passes there and nowhere else, all of it: of the induction head through its keys,
    and through its queries or values where these read the token before."""
    lm, task = wired(part), written(part)
    found = edges(path_patching(lm, task, "L*.head", ["L*.head", "logits"], direction=direction))
    gap = float(total_effect(lm, task).mean())
    through, last = f"L0.head[0]->L1.head[0].{part}", "L1.head[0]->logits"
    assert found.pop(through) == pytest.approx(gap, rel=1e-3)
    assert found.pop(last) == pytest.approx(gap, rel=1e-3)
    assert max(found.values()) < 1e-3 * gap


def test_a_query_that_no_head_wrote_has_no_path():
    """The last token itself asks: from the previous-token head nothing that tells the twins apart comes."""
    found = edges(path_patching(wired(), asked(), "L*.head", ["L*.head", "logits"]))
    last = found.pop("L1.head[0]->logits")
    assert max(found.values()) < 1e-2 * last


def test_the_path_moves_with_the_heads():
    found = edges(path_patching(rolled(wired()), written(), "L*.head", "L*.head"))
    best = max(found, key=lambda edge: found[edge])
    assert best == "L0.head[1]->L1.head[1].k"
    del found[best]
    assert max(found.values()) < 1e-3 * float(total_effect(wired(), written()).mean())


@pytest.mark.parametrize(("rule", "turned"), [(rule, turned) for rule in ("and", "xor") for turned in "AB"])
def test_a_bit_reaches_the_logits_through_the_neurons_alone(rule, turned):
    """With the MLPs held nothing of it arrives but what the last norm makes of its size."""
    lm, task = logic(rule), bits(rule, turned)
    edge = f"L0.head[{'AB'.index(turned)}]->logits"
    ways = {mlps: edges(path_patching(lm, task, "L*.head", mlps=mlps)) for mlps in ("recompute", "freeze")}
    assert ways["recompute"][edge] == pytest.approx(float(total_effect(lm, task).mean()), rel=1e-2)
    assert ways["freeze"][edge] < 0.1 * ways["recompute"][edge]
    assert max(size for name, size in ways["recompute"].items() if name != edge) < 0.01 * ways["recompute"][edge]


@pytest.mark.parametrize("task", [copied, cued])
def test_of_two_heads_with_the_same_keys_and_values_one_writes_the_copy(task):
    found = edges(path_patching(copier(), task(), "L*.head", ["L*.head", "logits"]))
    copy, mate = (found.pop(f"L1.head[{head}]->logits") for head in (COPIER, MATE))
    assert copy == pytest.approx(float(total_effect(copier(), task()).mean()), rel=1e-2)
    assert max(mate, *found.values()) < 0.01 * copy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PARTS)
def test_the_part_of_the_head_that_tells_the_twins_apart(name, method):
    """Of the queries, keys and values of all heads of the layer, one holds the effect."""
    lm, task, part, unit = PARTS[name]
    sizes = {
        kind: np.abs(METHODS[method](lm(), task(), f"L1.{kind}", spans="all").mean()).ravel()
        for kind in ("q", "k", "v")
    }
    true, sizes[part][unit] = sizes[part][unit], 0.0
    assert true > 5 * max(each.max() for each in sizes.values())
