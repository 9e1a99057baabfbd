"""Attribution patching: what patching would do, to first order, for every place at once.

Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al. 2023, arXiv
2310.10348. One forward pass over each twin and one backward pass give (a_other − a_base)·∂M/∂a for all units, layers
and positions, where patching takes a pass for each. On contrast tasks, whose two sides do not correspond to the
question that is asked, the difference is that of means: the first-order effect of adding it while the question is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.locate.pairing import paired_where
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_attribution
from trimtab.locate.slopes import at_once, check_choice, check_gradients, differentiates, entries, place_sums, values
from trimtab.locate.units import Places, Spans, default_spans, mean_differences, places
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.tasks.means import MeanDifference, batches
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Direction = Literal["denoise", "noise"]


@paired_where(lambda *, source, differences, **_: source is None and differences is None, else_="corrupt")
@planned_by(plan_attribution)
@differentiates
def attribution_patching(
    lm: LM,
    task: Task,
    sites: Reads = "L*.head",
    *,
    spans: Spans | None = None,
    direction: Direction = "denoise",
    source: Task | None = None,
    differences: MeanDifference | None = None,
    batch_size: int = 16,
    memory: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """The first-order estimate of `patching` on counterfactual tasks, of `shift` on contrast tasks.

    Counterfactual: Σ (a_other − a_base)·∂M/∂a over the positions of a span and the entries of a unit, with base the
    corrupt run for "denoise" and the clean run for "noise"; under "noise" its sign is turned, as in `patching`, so that
    positive always means that the unit makes for the answer. Contrast: Σ v·∂M/∂a over the positions of the question,
    where v is the mean difference of the two sides at the site.

    Args:
        sites: a map such as `"L*.neuron"`, or a list of candidates such as `["L5.head[3]", "L9.neuron[7]@S2"]`.
        spans: positions of the prompts that are measured: by default the task's own spans and "end", or "all" of the
            question for contrast tasks.
        direction: of counterfactual tasks: clean activations into the corrupt run, or the other way round.
        source: the task whose two sides are compared, where it is not the task itself; then the mean difference is
            taken on counterfactual tasks too.
        differences: that mean difference, where it has been made already (or flipped, as a control).
        batch_size: prompts that go through the model together, fewer where they do not fit into `memory`.
        memory: bytes that a pass with its gradients may take beyond the model; by default a share of what is free.

    Returns:
        `Scores` in the metric's unit.

    Raises EditError for a metric without a gradient, such as accuracy; SiteError for features.

    >>> attribution_patching(lm, task, "L*.head").top(5)  # doctest: +SKIP
    """
    (scores,) = _estimates(lm, task, [sites], spans, direction, source, differences, batch_size, memory, progress)
    return scores


def attribution_maps(
    lm: LM,
    task: Task,
    maps: Sequence[str] = ("L*.head", "L*.neuron", "L*.resid_post"),
    *,
    spans: Spans | None = None,
    direction: Direction = "denoise",
    source: Task | None = None,
    differences: MeanDifference | None = None,
    batch_size: int = 16,
    memory: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Scores]:
    """`attribution_patching` for several maps at once: one forward pass on each side and one backward pass for all.

    Args:
        maps: selections such as `"L*.head"`, each of which becomes `Scores` of its own; the rest as in
            `attribution_patching`.

    Returns:
        the `Scores` of each map, by the text that was given.

    Raises as `attribution_patching`.

    >>> attribution_maps(lm, task, ("L*.head", "L*.neuron"))["L*.neuron"].top(5)  # doctest: +SKIP
    """
    names = [maps] if isinstance(maps, str) else list(maps)
    found = _estimates(lm, task, names, spans, direction, source, differences, batch_size, memory, progress)
    return dict(zip(names, found, strict=True))


def _estimates(
    lm: LM,
    task: Task,
    maps: Sequence[Reads],
    spans: Spans | None,
    direction: Direction,
    source: Task | None,
    differences: MeanDifference | None,
    batch_size: int,
    memory: float | None,
    progress: Callable[[int, int], None] | None,
) -> list[Scores]:
    check_choice("direction", direction, ("denoise", "noise"))
    for sites in maps:
        check_gradients(lm, sites)
    twins = task.shape == "counterfactual" and source is None and differences is None
    measured = measure(lm, task, on="clean" if twins and direction == "noise" else "corrupt")
    mapped = default_spans(task) if task.shape == "counterfactual" else "all"
    wheres = [places(lm, sites, spans, mapped=mapped) for sites in maps]
    tensors = list(dict.fromkeys(tensor for where in wheres for tensor in where.tensors))
    others, vectors = None, {}
    if twins:
        both = sides(lm, task)
        others = both.positive if direction == "denoise" else both.negative
    else:
        blocks = tuple(dict.fromkeys(block for where in wheres for block in where.blocks))
        every = Places(blocks, None, (), {}, "", wheres[0].spans)
        means = differences or mean_differences(
            lm, task, source or task, every, batch_size=batch_size, dictionaries=None
        )
        vectors = {block: torch.as_tensor(means.difference(block)) for block in blocks}
    wide = np.float64 if lm.dtype == torch.float64 else np.float32
    out = [np.zeros((len(measured.prompts), *where.shape), wide) for where in wheres]
    sign = -1.0 if twins and direction == "noise" else 1.0
    done = 0
    for rows in batches(measured.prompts, entries(lm, tensors), batch_size, at_once(lm, memory)):
        prompts = measured.prompts.rows(rows, trim=True)
        found = lm.gradients(prompts, measured.readout.of_rows(rows), tensors)
        slopes = found.gradients
        if others is not None:
            other = lm.run(others.rows(rows, trim=True), tensors, logits=False)
            base = found.activations

            def change(tensor: Site, base: Run = base, other: Run = other, slopes: Run = slopes) -> Tensor:
                return (values(other, tensor) - values(base, tensor)).mul_(values(slopes, tensor))

            for array, where in zip(out, wheres, strict=True):
                array[rows] = sign * where.array(_columns(where, prompts, change))
        else:
            for array, where in zip(out, wheres, strict=True):
                array[rows] = where.array(
                    _slopes_along(block, where, prompts, slopes, vectors) for block in where.blocks
                )
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    options = {} if twins else {"source": (source or task).name}
    name, unit = "attribution_patching", measured.unit
    scores = []
    for array, where in zip(out, wheres, strict=True):
        examples = np.zeros((len(measured), *where.shape), wide)
        np.add.at(examples, measured.owner, array)
        scores.append(
            where.scores(examples, lm, task, measured.prompts, name, unit, options, direction if twins else None)
        )
    return scores


def _columns(where: Places, prompts: Prompts, number: Callable[[Site], Tensor]) -> list[np.ndarray]:
    sums = place_sums(where.blocks, where.units, prompts, number)
    return [sums[block] for block in where.blocks]


def _slopes_along(block: Site, where: Places, prompts: Prompts, slopes: Run, vectors: dict[Site, Tensor]) -> np.ndarray:
    """(row unit) slope along a block's mean difference, which is that of the units it names."""

    def number(tensor: Site) -> Tensor:
        gradient = values(slopes, tensor)
        vector = vectors[block].to(gradient)
        if block.index is None:
            return gradient * vector
        whole = torch.zeros_like(gradient[0, 0])
        whole[list(block.index)] = vector
        return gradient * whole

    return place_sums([block], where.units, prompts, number)[block]
