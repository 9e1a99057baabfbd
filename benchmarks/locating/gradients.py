"""Gradient methods against plain passes of the same model.

F is a forward pass of the whole batch, logits of every position included. Where a backward pass follows, the last F
before it builds the graph and the others do not. B is a backward pass from the metric's sum to the embeddings with the
parameters frozen, over a graph that is there. The batch of F and B is tokenised and measured before the clock starts; a
method is timed whole: tokenising, measuring, its passes in batches of its own choice, and its sums.
"""

from __future__ import annotations

from functools import partial

import torch

import trimtab
from benchmarks.measure import Case, Ratio, overhead, paired, say
from trimtab.locate.atp_star import atp_star
from trimtab.locate.attribution_patching import attribution_maps
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.model.lm import LM
from trimtab.tasks.builtin import task as builtin
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Task

MAPS = ("L*.head", "L*.neuron", "L*.resid_pre", "L*.resid_mid", "L*.resid_post")
STEPS = 5
FILLER = "The afternoon was calm, the shops were open and nobody was in a hurry. "


def plain(lm: LM, measured: Measure, forwards: int, backwards: int, times: int = 1) -> None:
    """`times` over: `forwards` forward passes, the last of them with a graph, and `backwards` through that graph."""
    prompts, readout = measured.prompts, measured.readout
    columns = readout.columns(prompts)
    trained = [p for p in lm.hf.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        for _ in range(times):
            for _ in range(forwards - 1):
                with torch.no_grad():
                    lm.call(prompts)
            embeds = lm.anatomy.embedding(prompts.ids).detach().requires_grad_()
            logits = lm.hf(
                inputs_embeds=embeds,
                attention_mask=prompts.mask,
                position_ids=prompts.position_ids,
                use_cache=False,
            ).logits
            at = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
            number = readout.of(at, torch.arange(prompts.batch)).sum()
            for left in reversed(range(backwards)):
                torch.autograd.grad(number, embeds, retain_graph=left > 0)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def integrated(lm: LM, measured: Measure, steps: int) -> None:
    """A forward pass over either end, and a forward and a backward pass for each step."""
    plain(lm, measured, 1, 1, times=steps)
    with torch.no_grad():
        for _ in range(2):
            lm.call(measured.prompts)


def fixed(lm: LM, task: Task) -> None:
    """The softmax recomputed for every query, and for every key."""
    for site in ("L*.q", "L*.k"):
        atp_star(lm, task, site, grad_drop=False)


def long(lm: LM, task: Task, tokens: int) -> Task:
    """The task after filler text, with prompts of about so many tokens, read at the end only."""
    each = lm.prompts([FILLER]).width
    before = FILLER * max(1, round((tokens - 20) / each))
    made = [
        Counterfactual(before + e.clean, before + e.corrupt, e.answers, e.distractors, group=e.group)
        for e in task.examples
        if isinstance(e, Counterfactual)
    ]
    return task.of(made)


def figure(name: str, ratio: Ratio, unit: str, note: str) -> Case:
    """A ratio without a target."""
    return Case(name, ratio.value, unit, None, None, ratio.low, ratio.high, note)


def cases(quick: bool) -> list[Case]:
    lm = trimtab.load("smollm2-135m-instruct")
    whole = fit(lm, builtin("ioi")).task
    task = whole.take(16, 0)
    measured = measure(lm, task)
    rounds = 3 if quick else 5
    made = []

    say("atp")
    run = partial(attribution_maps, lm, task, MAPS)
    ratio = paired(run, partial(plain, lm, measured, 2, 1), rounds)
    note = f"heads, neurons and residual sites of {len(task)} pairs over 2F + B"
    made.append(overhead("atp", ratio, 0.15, note))

    for steps, part in ((5, task),) if quick else ((5, task), (20, whole.take(4, 0))):
        say(f"ig, {steps} steps")
        run = partial(integrated_gradients, lm, part, "embed", steps=steps)
        ratio = paired(run, partial(integrated, lm, measure(lm, part), steps), 2)
        note = f"{steps} steps at the embeddings of {len(part)} pairs over 2F + {steps}(F + B)"
        made.append(overhead("ig" if steps == STEPS else f"ig_{steps}", ratio, 0.15, note))

    say("atp_star")
    ratio = paired(partial(fixed, lm, task), partial(attribution_maps, lm, task, MAPS), 3)
    note = (
        "L*.q and then L*.k with the softmax recomputed over attribution patching of heads, neurons and residual sites"
    )
    made.append(overhead("atp_star", ratio, 2.0, note))

    say("grad_drop")
    layers = lm.anatomy.n_layers
    run = partial(atp_star, lm, task, "L*.head", grad_drop=True)
    ratio = paired(run, partial(plain, lm, measured, 2, layers), 1 if quick else 2, warm=0)
    made.append(overhead("grad_drop", ratio, 0.2, f"{len(task)} pairs over 2F + {layers}B"))
    return made if quick else made + scales(lm, whole)


def scales(lm: LM, whole: Task) -> list[Case]:
    """What the methods cost with other lengths and numbers of examples, without targets."""
    made = []
    for n in (1, 16, 128):
        task = whole.take(n, 0)
        say(f"{len(task)} examples")
        bottom = partial(plain, lm, measure(lm, task), 2, 1)
        note, rounds = f"{len(task)} pairs, batches of 16", 3 if n < 128 else 1
        ratio = paired(partial(attribution_maps, lm, task, MAPS), bottom, rounds, warm=int(n < 128))
        made.append(figure(f"atp_{n}_examples", ratio, "times (2F + B)", note))
        if n == 1:  # 16 have a target above, and 128 are eight times as many of the same batches
            made += costly(lm, task, f"{n}_examples", note)
    for tokens in (128, 1024):
        task = long(lm, whole.take(1, 0), tokens)
        say(f"{tokens} tokens")
        measured = measure(lm, task)
        bottom = partial(plain, lm, measured, 2, 1)
        note = f"{len(task)} pair of {measured.prompts.width} tokens, read at the end"
        ratio = paired(partial(attribution_maps, lm, task, MAPS), bottom, 1)
        made.append(figure(f"atp_{tokens}_tokens", ratio, "times (2F + B)", note))
        made += costly(lm, task, f"{tokens}_tokens", note) if tokens < 1024 else []
        for part in ("q", "k"):
            star = partial(atp_star, lm, task, f"L*.{part}", grad_drop=False)
            ratio = paired(star, bottom, 1, warm=0)
            made.append(figure(f"atp_star_{part}_{tokens}_tokens", ratio, "times (2F + B)", note))
    return made


def costly(lm: LM, task: Task, name: str, note: str) -> list[Case]:
    """Integrated gradients and GradDrop, which take many passes."""
    measured, steps, layers = measure(lm, task), STEPS, lm.anatomy.n_layers
    run = partial(integrated_gradients, lm, task, "embed", steps=steps)
    ratio = paired(run, partial(integrated, lm, measured, steps), 1, warm=0)
    made = [figure(f"ig_{name}", ratio, f"times (2F + {steps}(F + B))", note)]
    dropped = partial(atp_star, lm, task, "L*.head", grad_drop=True)
    ratio = paired(dropped, partial(plain, lm, measured, 2, layers), 1, warm=0)
    return [*made, figure(f"grad_drop_{name}", ratio, f"times (2F + {layers}B)", note)]
