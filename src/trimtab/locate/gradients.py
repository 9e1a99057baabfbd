"""Scores read off one gradient: gradient × input, saliency, first-order Taylor importance, Fisher information.

Simonyan et al. 2014, arXiv 1312.6034 (saliency); Shrikumar et al. 2016, arXiv 1605.01713 (gradient × input); Molchanov
et al. 2019, arXiv 1906.10771, for heads Michel et al. 2019, arXiv 1905.10650, and for channels Theis et al. 2018, arXiv
1801.05787 (Taylor importance); Kirkpatrick et al. 2017, arXiv 1612.00796 (the diagonal of the Fisher information,
there of parameters). One forward and one backward pass for all places together. On the embedding they say which tokens
count: `token_scores`, shown as coloured text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from trimtab.errors import TaskError
from trimtab.locate.gradient_sums import Number, On, Progress, gradient_scores
from trimtab.locate.integrated_gradients import Baseline, attributions
from trimtab.locate.pairing import alone, paired_where
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_slopes, plan_tokens
from trimtab.locate.slopes import at_once, check_choice, check_gradients, differentiates, entries, values
from trimtab.locate.units import Spans
from trimtab.model.provenance import provenance
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.token_scores import TokenScores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Norm = Literal["l2", "l1"]
Kind = Literal["gradient_input", "saliency", "integrated_gradients"]


@alone
@planned_by(plan_slopes)
@differentiates
def gradient_input(
    lm: LM,
    task: Task,
    sites: Reads = "embed",
    *,
    spans: Spans | None = None,
    on: On = "clean",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Σ a·∂M/∂a over a span's positions and a unit's entries: to first order, what setting the place to 0 takes away.

    Args:
        sites: a map such as `"L*.head"`, or a list of candidates.
        spans: by default the task's own spans and "end", or "all" of a contrast task's question.
        on: which prompts of a counterfactual task.
        batch_size: prompts that go through the model together, fewer where they do not fit into `memory`.
        memory: bytes that a pass with its gradients may take beyond the model; by default a share of what is free.

    Returns:
        `Scores` in the metric's unit, positive where the place makes for the answer.

    Raises EditError for a metric without a gradient, SiteError for features.

    >>> gradient_input(lm, task, "L*.head").top(5)  # doctest: +SKIP
    """
    return gradient_scores(
        lm, task, sites, spans, on, batch_size, memory, progress, "gradient_input", lambda a, g: a * g, lambda x, _: x
    )


@alone
@planned_by(plan_slopes)
@differentiates
def saliency(
    lm: LM,
    task: Task,
    sites: Reads = "embed",
    *,
    spans: Spans | None = None,
    norm: Norm = "l2",
    on: On = "clean",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Progress | None = None,
) -> Scores:
    """The size of ∂M/∂a at a place: √Σ g² ("l2") or Σ |g| ("l1") over a span's positions and a unit's entries.

    Args:
        sites, spans, on, batch_size, memory: as in `gradient_input`.

    Returns:
        `Scores` in the metric's unit per unit of activation, not negative.

    >>> saliency(lm, task, "embed").top(3)  # doctest: +SKIP
    """
    check_choice("norm", norm, ("l2", "l1"))
    number: Number = (lambda a, g: g.square()) if norm == "l2" else (lambda a, g: g.abs())
    finish = (lambda x, _: np.sqrt(x)) if norm == "l2" else (lambda x, _: x)
    return gradient_scores(
        lm,
        task,
        sites,
        spans,
        on,
        batch_size,
        memory,
        progress,
        "saliency",
        number,
        finish,
        unit="{} per activation",
        norm=norm,
    )


@alone
@planned_by(plan_slopes)
@differentiates
def taylor(
    lm: LM,
    task: Task,
    sites: Reads = "L*.head",
    *,
    spans: Spans | None = None,
    squared: bool = True,
    on: On = "clean",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Progress | None = None,
) -> Scores:
    """First-order Taylor importance: (Σ a·∂M/∂a)², or |Σ a·∂M/∂a|, whose signs cannot cancel over examples.

    Args:
        sites, spans, on, batch_size, memory: as in `gradient_input`; importance for pruning reads all positions,
            `spans="all"`.
        squared: the square, as for weights and channels; the absolute value otherwise, as for heads.

    Half the mean of the squares, with the log probability of the answer as the metric, is what Theis et al. prune by:
    the loss that the Fisher information predicts for leaving the unit out.

    Returns:
        `Scores` in the metric's unit, squared where `squared`, not negative.

    >>> taylor(lm, task, "L*.head", spans="all", squared=False).top(5)  # doctest: +SKIP
    """
    finish = (lambda x, _: np.square(x)) if squared else (lambda x, _: np.abs(x))
    unit = "{}²" if squared else "{}"
    return gradient_scores(
        lm,
        task,
        sites,
        spans,
        on,
        batch_size,
        memory,
        progress,
        "taylor",
        lambda a, g: a * g,
        finish,
        unit=unit,
        squared=squared,
    )


@alone
@planned_by(plan_slopes)
@differentiates
def fisher(
    lm: LM,
    task: Task,
    sites: Reads = "L*.head",
    *,
    spans: Spans | None = None,
    on: On = "clean",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Progress | None = None,
) -> Scores:
    """The mean squared gradient (∂M/∂a)² over a span's positions and a unit's entries.

    With the metric "log_prob" its mean over examples is the diagonal of the empirical Fisher information at the
    activations, averaged over the unit; with another metric it says how strongly that one depends on them. What leaving
    a unit out costs is half of `taylor`, and not this, which knows nothing of how large the activation is.

    Args:
        sites, spans, on, batch_size, memory: as in `gradient_input`.

    Returns:
        `Scores` in the metric's unit squared per squared unit of activation; NaN where a span has no token.

    >>> fisher(lm, task, "L*.neuron").top(5)  # doctest: +SKIP
    """

    def number(a: Tensor, g: Tensor) -> Tensor:
        return g.square() if g.ndim < 4 else g.square().mean(3)

    def finish(x: np.ndarray, count: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return x / count

    return gradient_scores(
        lm, task, sites, spans, on, batch_size, memory, progress, "fisher", number, finish, unit="{}² per activation²"
    )


@paired_where(lambda *, kind, baseline, **_: kind == "integrated_gradients" and baseline == "corrupt")
@planned_by(plan_tokens)
def token_scores(
    lm: LM,
    task: Task,
    *,
    kind: Kind = "gradient_input",
    site: str = "embed",
    steps: int = 20,
    baseline: Baseline = "zero",
    on: On = "clean",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Progress | None = None,
) -> TokenScores:
    """What each token of each prompt contributes, or how much the metric depends on it.

    Args:
        kind: "gradient_input", "saliency" (L2 norm of the gradient), or "integrated_gradients".
        site: one whole site, summed over its entries.
        steps: of integrated gradients.
        baseline: of integrated gradients: "zero", or "corrupt", the twin prompt, from which fewer steps are needed.
        on: which prompts of a counterfactual task.
        batch_size, memory: as in `gradient_input`.

    Returns:
        `TokenScores`, which notebooks show as coloured text; those of integrated gradients with how far each prompt's
        numbers are from adding up, `completeness_error`.

    Raises TaskError for integrated gradients of corrupt prompts, or from the twins of a contrast task.

    >>> token_scores(lm, task, kind="saliency")  # doctest: +SKIP
    """
    check_choice("kind", kind, ("gradient_input", "saliency", "integrated_gradients"))
    check_choice("on", on, ("clean", "corrupt"))
    check_gradients(lm, site)
    if kind == "integrated_gradients" and on == "corrupt":
        raise TaskError("integrated gradients end at the clean prompts: leave out on=")
    check_choice("baseline", baseline, ("corrupt", "zero"))
    if kind == "integrated_gradients" and baseline == "corrupt" and task.shape != "counterfactual":
        raise TaskError(f'{task.name} has no twin prompts to start from: give baseline="zero"')
    integrated = kind == "integrated_gradients"
    measured = measure(lm, task, on="corrupt" if integrated and baseline == "corrupt" else on)
    shown = sides(lm, task).positive if integrated and baseline == "corrupt" else measured.prompts
    (tensor,) = lm.sites(site)
    rows_of: list[list[float]] = [[] for _ in range(len(measured.prompts))]
    errors = np.zeros(len(measured.prompts))
    done, most = 0, at_once(lm, memory)
    for rows in batches(measured.prompts, entries(lm, [tensor]), batch_size, most):
        prompts = measured.prompts.rows(rows, trim=True)
        if integrated:
            made = attributions(
                lm, task, measured, rows, [tensor], steps, baseline, "midpoint", "site", batch_size, most
            )
            _, product, gaps = next(made)
            errors[rows] = np.abs(gaps)
        else:
            found = lm.gradients(prompts, measured.readout.of_rows(rows), [tensor])
            g = values(found.gradients, tensor)
            product = g.square() if kind == "saliency" else values(found.activations, tensor) * g
        numbers = product.flatten(2).double().sum(2).cpu()
        numbers = numbers.sqrt() if kind == "saliency" else numbers
        for row, line, real in zip(rows, numbers, prompts.mask.bool().cpu(), strict=True):
            rows_of[row] = line[real].tolist()
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    unit = f"{measured.unit} per activation" if kind == "saliency" else measured.unit
    options: dict[str, object] = {"task": task.name, "kind": kind, "site": str(tensor), "on": on}
    options |= {"steps": steps, "baseline": baseline} if integrated else {}
    return TokenScores.of(
        rows_of,
        shown.tokens,
        site=str(tensor),
        unit=unit,
        method=kind,
        completeness_error=tuple(errors.tolist()) if integrated else None,
        provenance=provenance(lm, measured.prompts, kind, options),
    )
