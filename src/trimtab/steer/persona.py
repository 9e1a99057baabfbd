"""Persona vectors: a trait's direction from how a model answers when it is told to have the trait and told not to.

Chen et al. 2025, "Persona Vectors: Monitoring and Controlling Character Traits in Language Models" (arXiv 2507.21509).
Answers come first (`responses`), those are kept that show the trait (`contrasting`), and the vector is the difference
of their mean activations over response tokens. `project` and `project_stream` (`steer.projection`) look along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import TaskError
from trimtab.model.provenance import provenance
from trimtab.model.training import continuation_log_probs
from trimtab.steer.methods import scope_free
from trimtab.steer.projection import ProjectedPiece, project, project_stream
from trimtab.steer.vectors import vector_edits
from trimtab.tasks.example import Contrast
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import sides, tokens_of
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.scope import Scope

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

__all__ = [
    "ProjectedPiece",
    "contrasting",
    "persona_vector",
    "project",
    "project_stream",
    "responses",
    "trait_likelihood",
]

Progress = Callable[[int, int], None]
Judge = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""(question, response) pairs -> for each a number that is the higher, the more of the trait the response shows."""


@scope_free
def persona_vector(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
    judge: Judge | None = None,
    threshold: float = 0.0,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Intervention:
    """Adds the mean difference over response tokens between responses with a trait and responses without it, filtered
    (Chen et al. 2025, arXiv 2507.21509).

    Args:
        task: a contrast task with system prompts for the trait and against it (`tasks.from_systems`), whose questions
            the model then answers; or one with a prompt and two responses to it, which are taken as they are.
        sites: where activations are averaged and the vector is added.
        strength: in units of the vector.
        judge: what a response shows of the trait, by default `trait_likelihood`, for which the task needs systems;
            with neither, all pairs are kept.
        threshold: a pair is kept whose positive response is judged above it and whose negative one below it.
        samples: responses to each question on each side; more than one are sampled at `temperature`.
        max_new_tokens: of a response.
        batch_size: texts in a pass.
        progress: called with texts read and texts in all, once the responses are there.

    Raises TaskError where no pair is left, or the task has neither systems nor responses.

    >>> persona_vector(lm, from_systems(questions, "Be rude.", "Be polite.", …), "L15.resid_post")  # doctest: +SKIP
    """
    options = {"samples": samples, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    answered = responses(lm, task, **options, batch_size=batch_size)
    kept = contrasting(lm, answered, judge=judge, threshold=threshold, batch_size=batch_size)
    means = mean_difference(lm, kept, sites, read="text", batch_size=batch_size, progress=progress)
    edits = vector_edits(means, means, strength=strength, where=where)
    known = {"task": task.name, "kept": len(kept), "of": len(answered), "threshold": threshold, **options}
    made = provenance(lm, sides(lm, kept).positive, "persona_vector", known, seed=seed)
    return Intervention(tuple(edits), name=f"{task.name} persona vector", provenance=made)


def responses(
    lm: LM,
    task: Task,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    batch_size: int = 16,
) -> Task:
    """The task's questions answered under either system prompt: examples with a prompt and two responses.

    One sample is greedy; several are drawn at `temperature`, the i-th with the i-th. Pairs of which one side said
    nothing, or both the same, are left out. Examples that have responses already stay as they are.

    Raises TaskError where there are neither systems nor responses, or nothing is left.
    """
    if task.shape != "contrast":
        raise TaskError(f"{task.name} is a counterfactual task: a persona needs questions under two system prompts")
    examples = [example for example in task.examples if isinstance(example, Contrast)]
    if all(example.prompt for example in examples):
        return task
    if any(e.prompt or e.positive_system is None or e.negative_system is None for e in examples):
        raise TaskError(
            f"{task.name} has examples with neither two system prompts nor a prompt and two responses to it: make it "
            "with tasks.from_systems, or give each example its prompt"
        )
    if samples < 1:
        raise TaskError(f"samples is how many responses each question gets, at least 1, got {samples}")
    made: dict[tuple[str, str, str, str | None], Contrast] = {}
    for sample in range(samples):
        drawn = {"temperature": temperature if samples > 1 else 0.0, "max_new_tokens": max_new_tokens}
        drawn |= {"seed": seed + sample}
        both = [
            _answers(lm, [(text(e), system(e)) for e in examples], batch_size, drawn)
            for text, system in (
                (lambda e: e.positive, lambda e: e.positive_system),
                (lambda e: e.negative, lambda e: e.negative_system),
            )
        ]
        for example, positive, negative in zip(examples, *both, strict=True):
            if positive.strip() and negative.strip() and positive != negative:
                answered = example.with_(prompt=example.positive, positive=positive, negative=negative)
                made.setdefault((example.positive, positive, negative, example.positive_system), answered)
    if not made:
        raise TaskError(f"{task.name}: no question was answered in two ways; ask for more tokens, or sample more often")
    return task.of(list(made.values()))


def contrasting(
    lm: LM, task: Task, *, judge: Judge | None = None, threshold: float = 0.0, batch_size: int = 16
) -> Task:
    """The pairs of responses of which the positive one is judged above the threshold and the negative one below it.

    Without a judge, by `trait_likelihood` where the task has system prompts, and otherwise all of them. TaskError where
    none is left.
    """
    examples: Sequence[Contrast] = task.examples  # pyright: ignore[reportAssignmentType]
    if judge is not None:
        positive, negative = (
            np.asarray(judge([(e.prompt, text) for e, text in zip(examples, texts, strict=True)]), dtype=np.float64)
            for texts in ([e.positive for e in examples], [e.negative for e in examples])
        )
    elif all(e.positive_system is not None and e.negative_system is not None for e in examples):
        positive, negative = trait_likelihood(lm, task, batch_size=batch_size)
    else:
        return task
    if positive.shape != (len(task),) or negative.shape != (len(task),):
        raise TaskError(f"a judge gives one number for each response, got {len(positive)} for {len(task)}")
    kept = np.flatnonzero((positive > threshold) & (negative < threshold))
    if not len(kept):
        raise TaskError(
            f"{task.name}: in none of {len(task)} pairs is the positive response judged above {threshold:g} (at most "
            f"{positive.max():.3g}) and the negative one below (at least {negative.min():.3g}): sharpen the system "
            "prompts, sample more responses, or give another threshold"
        )
    return task.only(kept.tolist())


def trait_likelihood(
    lm: LM, task: Task, *, batch_size: int = 16
) -> tuple[Float[np.ndarray, "example"], Float[np.ndarray, "example"]]:
    """How much likelier each response is under the system prompt for the trait than under that against it, log p per
    token, in nats: of the positive responses and of the negative ones.

    It asks the model itself and needs no judge; what it calls a trait is what the two system prompts say.
    """
    examples: Sequence[Contrast] = task.examples  # pyright: ignore[reportAssignmentType]
    found = []
    for text in ([e.positive for e in examples], [e.negative for e in examples]):
        under = [
            _log_likelihood(
                lm, [(e.prompt, own, s) for e, own, s in zip(examples, text, systems, strict=True)], batch_size
            )
            for systems in ([e.positive_system for e in examples], [e.negative_system for e in examples])
        ]
        found.append(under[0] - under[1])
    return found[0], found[1]


def _answers(lm: LM, asked: Sequence[tuple[str, str | None]], batch_size: int, options: dict[str, float]) -> list[str]:
    """What the model says to each question under its system prompt."""
    found = [""] * len(asked)
    for system in dict.fromkeys(system for _, system in asked):
        rows = [i for i, (_, own) in enumerate(asked) if own == system]
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            seeds = [int(options["seed"]) * len(asked) + i for i in some]
            made = lm.generate(
                [asked[i][0] for i in some],
                chat=True,
                system=system,
                temperature=options["temperature"],
                max_new_tokens=int(options["max_new_tokens"]),
                seed=seeds,
            )
            for i, text in zip(some, made.texts, strict=True):
                found[i] = text
    return found


def _log_likelihood(lm: LM, asked: Sequence[tuple[str, str, str | None]], batch_size: int) -> Float[np.ndarray, "row"]:
    """log p per token of each response, after its question under its system prompt, in nats."""
    rows: list[list[int]] = [[] for _ in asked]
    tails = tokens_of(lm, (text for _, text, _ in asked))
    for system in dict.fromkeys(system for *_, system in asked):
        which = [i for i, (*_, own) in enumerate(asked) if own == system]
        prompts = lm.prompts([asked[i][0] for i in which], chat=True, system=system)
        for i, ids, real in zip(which, prompts.ids, prompts.mask, strict=True):
            rows[i] = ids[real.bool()].tolist() + tails[asked[i][1]]
    lengths = [len(tails[text]) for _, text, _ in asked]
    found = np.zeros(len(asked))
    joint = lm.prompts(rows)
    for start in range(0, len(rows), batch_size):
        some = list(range(start, min(start + batch_size, len(rows))))
        own = [lengths[i] for i in some]
        with torch.no_grad():
            total = continuation_log_probs(lm, joint.rows(some, trim=True), own)
        found[some] = total.double().cpu().numpy() / np.array(own)
    return found
