"""One number for each place and example from activations and their gradients: what the methods of `gradients` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.locate.slopes import at_once, check_choice, check_gradients, entries, place_sums, values
from trimtab.locate.units import Spans, default_spans, places
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

On = Literal["clean", "corrupt"]
Progress = Callable[[int, int], None]
Number = Callable[[Tensor, Tensor], Tensor]
"""(activation, gradient), both (batch pos unit …) -> a number for each entry."""


def gradient_scores(
    lm: LM,
    task: Task,
    sites: Reads,
    spans: Spans | None,
    on: On,
    batch_size: int,
    memory: float | None,
    progress: Progress | None,
    method: str,
    number: Number,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
    unit: str = "{}",
    **options: object,
) -> Scores:
    """Numbers of every entry summed to one for each place and example; `finish` gets them with how many positions and
    units each is of."""
    check_choice("on", on, ("clean", "corrupt"))
    check_gradients(lm, sites)
    where = places(lm, sites, spans, mapped=default_spans(task) if task.shape == "counterfactual" else "all")
    measured = measure(lm, task, on=on)
    sums = np.zeros((len(measured.prompts), *where.shape))
    counts = np.zeros_like(sums)
    done = 0
    for rows in batches(measured.prompts, entries(lm, where.tensors), batch_size, at_once(lm, memory)):
        prompts = measured.prompts.rows(rows, trim=True)
        found = lm.gradients(prompts, measured.readout.of_rows(rows), where.tensors)

        def made(tensor: Site) -> Tensor:
            return number(values(found.activations, tensor), values(found.gradients, tensor))  # noqa: B023

        found_sums = place_sums(where.blocks, where.units, prompts, made)
        sums[rows] = where.array(found_sums[block] for block in where.blocks)
        counts[rows] = where.array(
            _count(lm, block, where.units)
            * prompts.columns(Scope("all") if block.at is None else block.at)
            .sum(1, True)
            .cpu()
            .numpy()
            .repeat(where.units or 1, 1)
            for block in where.blocks
        )
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    examples = np.zeros((2, len(measured), *where.shape))
    np.add.at(examples[0], measured.owner, sums)
    np.add.at(examples[1], measured.owner, counts)
    return where.scores(
        finish(examples[0], examples[1]).astype(np.float64 if lm.dtype == torch.float64 else np.float32),
        lm,
        task,
        measured.prompts,
        method,
        unit.format(measured.unit),
        {"on": on, **options} if task.shape == "counterfactual" else options,
    )


def _count(lm: LM, block: Site, units: int | None) -> int:
    """How many units a place of a block is of."""
    if units is not None:
        return 1
    return lm.shape(block.whole)[0] if block.index is None else len(block.index)
