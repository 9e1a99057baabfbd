"""Attribution patching: what patching would do, to first order, for every place at once.

Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al. 2023, arXiv
2310.10348. One forward pass over each twin and one backward pass give (a_other − a_base)·∂M/∂a for all units, layers
and positions, where patching takes a pass for each. On contrast tasks, whose two sides do not correspond to the
question that is asked, the difference is that of means: the first-order effect of adding it while the question is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.locate.units import Places, Spans, default_spans, mean_differences, places
from trimtab.model.gradient import Gradients
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.tasks.means import MeanDifference, batches
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Direction = Literal["denoise", "noise"]

GRAPH = 1 << 28
"""Numbers that a backward pass may hold."""


def attribution_patching(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    spans: Spans | None = None,
    direction: Direction = "denoise",
    source: Task | None = None,
    differences: MeanDifference | None = None,
    batch_size: int = 16,
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
        batch_size: prompts that go through the model together.

    Returns:
        `Scores` in the metric's unit.

    Raises EditError for a metric without a gradient, such as accuracy; SiteError for features.

    >>> attribution_patching(lm, task, "L*.head").top(5)  # doctest: +SKIP
    """
    if direction not in ("denoise", "noise"):
        raise TrimtabError(
            f'direction is "denoise" or "noise", got {direction!r}{nearest(str(direction), ["denoise", "noise"])}'
        )
    if features := [site for site in lm.sites(sites) if site.view is not None]:
        raise SiteError(
            f"{features[0]}: features are no tensor of the model's own, so no gradient reaches them; score "
            f"{features[0].base}, or give the features to patching"
        )
    twins = task.shape == "counterfactual" and source is None and differences is None
    measured = measure(lm, task, on="clean" if twins and direction == "noise" else "corrupt")
    where = places(lm, sites, spans, mapped=default_spans(task) if task.shape == "counterfactual" else "all")
    out = np.zeros((len(measured.prompts), *where.shape), np.float64 if lm.dtype == torch.float64 else np.float32)
    if twins:
        both = sides(lm, task)
        others, vectors = both.positive if direction == "denoise" else both.negative, {}
    else:
        means = differences or mean_differences(
            lm, task, source or task, where, batch_size=batch_size, dictionaries=None
        )
        others, vectors = None, {block: means.difference(block) for block in where.blocks}
    sign = -1.0 if twins and direction == "noise" else 1.0
    done = 0
    for rows in batches(measured.prompts, _entries(lm, where), batch_size, GRAPH):
        prompts = measured.prompts.rows(rows, trim=True)
        found = lm.gradients(prompts, measured.readout.of_rows(rows), where.tensors)
        run = None if others is None else lm.run(others.rows(rows, trim=True), where.tensors, logits=False)

        def summed(block: Site, found: Gradients = found, run: Run | None = run) -> np.ndarray:
            gradient = _pick(found.gradients, block)
            if run is None:
                change = torch.as_tensor(vectors[block], device=gradient.device, dtype=gradient.dtype)
            else:
                change = _pick(run, block) - _pick(found.activations, block)
            return _summed(gradient, change, block, where, found.gradients.prompts)

        out[rows] = sign * where.array(summed(block) for block in where.blocks)
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    examples = np.zeros((len(measured), *where.shape), out.dtype)
    np.add.at(examples, measured.owner, out)
    options = {} if twins else {"source": (source or task).name}
    name, unit = "attribution_patching", measured.unit
    return where.scores(examples, lm, task, measured.prompts, name, unit, options, direction if twins else None)


def _summed(gradient: Tensor, change: Tensor, block: Site, where: Places, prompts: Prompts) -> np.ndarray:
    """(row unit) gradient · change (batch pos unit …), summed over the block's positions and its units' entries."""
    effects = (gradient * change).flatten(2)
    at = prompts.columns(Scope("all") if block.at is None else block.at).to(effects.device)
    effects = torch.where(at[..., None], effects, 0.0)  # what pads hold may be anything
    return effects.sum(1).unflatten(1, (where.units or 1, -1)).sum(-1).cpu().numpy()


def _pick(run: Run, block: Site) -> Tensor:
    """(batch pos unit …) of a block in a run, at all positions."""
    values = run.whole(block.whole)
    values = values if block.index is None else values[:, :, list(block.index)]
    return values.float() if values.dtype.itemsize < 4 else values


def _entries(lm: LM, where: Places) -> int:
    """Numbers that are held of each token: at the sites, for the backward pass in every layer, and of the logits."""
    a = lm.anatomy
    sites = sum(int(np.prod(lm.shape(site))) for site in where.tensors)
    graph = sum(10 * a.d_model + 4 * block.d_mlp for block in a.blocks)
    return 4 * sites + graph + 3 * a.vocab
