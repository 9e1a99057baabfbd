"""Neurons of the bundled model: every one of them ablated exactly, and the attributions that propose some of them.

`neurons_exact` is an absolute time, the one that a person waits for; the others are set against plain forward passes of
the same prompts in the same process.
"""

from __future__ import annotations

import numpy as np

import trimtab
from benchmarks.measure import Case, paired, say, seconds
from trimtab.locate.ablation import ablation
from trimtab.locate.knowledge_neurons import knowledge_neurons
from trimtab.locate.neuron_attribution import log_probability_increase
from trimtab.model.lm import LM
from trimtab.tasks import builtin
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task

SECONDS = 60.0
"""For one prompt and all neurons, on two cores."""


def cases(quick: bool) -> list[Case]:
    """The cases; `quick` looks at the last third of the layers, without the target in seconds."""
    lm = trimtab.load("smollm2-135m-instruct")
    task = fit(lm, builtin.task("ioi")).task.take(1, 0)
    rounds = 2 if quick else 3
    return [*neurons_exact(lm, task, quick), against_passes(lm, task, rounds), knowledge(lm, task, rounds)]


def neurons_exact(lm: LM, task: Task, quick: bool) -> list[Case]:
    """Seconds to zero each neuron at the last position of one prompt, and some of them against the naive loop."""
    say("neurons_exact")
    n = lm.anatomy.n_layers
    sites = f"L{n - n // 3}-{n - 1}.neuron" if quick else "L*.neuron"
    lm.hash  # noqa: B018 - worked out once for each model, not for each sweep
    found = []
    took = seconds(lambda: found.append(ablation(lm, task, sites, spans="last", kind="zero")))
    scores = found[0]
    some = [str(site) for site in scores.top(5)]
    naive = ablation(lm, task, some, kind="zero", exact="naive").array[0]
    fast = scores.array.ravel()
    error = float(np.abs(naive - fast[np.argsort(-np.abs(fast), kind="stable")[:5]]).max())
    note = f"{scores.array.size} neurons of one prompt of {measure(lm, task, on='clean').prompts.width} tokens"
    target = None if quick else SECONDS
    return [
        Case("neurons_exact", took, "seconds", target, None if quick else took <= SECONDS, note=note),
        Case(
            "neurons_exact_equal",
            error,
            "largest difference from the naive loop, logits",
            1e-3,
            error <= 1e-3,
            note="the five of largest effect",
        ),
    ]


def against_passes(lm: LM, task: Task, rounds: int) -> Case:
    """The log probability increases of all neurons, estimated, in forward passes of the prompt."""
    say("log_probability_increase")
    prompts = measure(lm, task, on="clean").prompts
    ratio = paired(lambda: log_probability_increase(lm, task, estimate=True), lambda: lm.run(prompts), rounds)
    note = "estimates of all neurons over one forward pass"
    return Case("log_probability_estimates", ratio.value, "forward passes", None, None, ratio.low, ratio.high, note)


def knowledge(lm: LM, task: Task, rounds: int) -> Case:
    """Integrated gradients of one layer with 20 steps, in forward passes of the prompt."""
    say("knowledge_neurons")
    prompts = measure(lm, task, on="clean").prompts
    ratio = paired(lambda: knowledge_neurons(lm, task, "L15.neuron"), lambda: lm.run(prompts), rounds)
    note = "20 steps of one middle layer over one forward pass; a loop takes 20 forward and backward passes"
    return Case("knowledge_neurons_layer", ratio.value, "forward passes", None, None, ratio.low, ratio.high, note)
