"""The effect of interventions on a task: its number with and without them, example by example.

Where the number is the likelihood of a text after a question, interventions act as they do when it is generated: a
scope counts the positions of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import TrimtabError
from trimtab.evaluate.forced import forced
from trimtab.model.memory import budget, row_bytes
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.metrics import Metric
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention, Noise
from trimtab.values.outcome import Outcome

if TYPE_CHECKING:
    from trimtab.model.lm import LM

ROWS = 32
"""Rows whose base run is kept at a time."""
COPIES = 4
"""Tensors as large as the read logits that a readout may need at a time."""


@dataclass(frozen=True, eq=False)
class Effects:
    """A task's number without (example) and with (variant example) each intervention, in `unit`."""

    base: Float[np.ndarray, "example"]
    values: Float[np.ndarray, "variant example"]
    groups: tuple[str, ...]
    unit: str
    metric: str

    @property
    def changes(self) -> Float[np.ndarray, "variant example"]:
        """With minus without."""
        return self.values - self.base

    def outcome(self, variant: int = 0) -> Outcome:
        """Before and after one of the interventions."""
        return Outcome(self.metric, self.unit, self.base, self.values[variant], self.groups)


def effects(
    lm: LM,
    task: Task | Measure,
    variants: Iterable[Intervention],
    *,
    metric: Metric | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Effects:
    """What each intervention does to a task's number, on contrast tasks after their questions, on counterfactual ones
    on their corrupt prompts; computed by the engine.

    `metric` reads something else than the task's own. `progress(done, total)` is called with rows.

    Raises TrimtabError for a `metric` with a Measure, which has one.
    """
    if isinstance(task, Measure) and metric is not None:
        raise TrimtabError("a Measure reads its own metric: give the task, or measure it with that metric")
    made = task if isinstance(task, Measure) else measure(lm, task, metric=metric)
    listed = [Intervention.of(variant) for variant in variants]
    rows = made.prompts.batch
    size = rows if any(_numbers_rows(edit) for variant in listed for edit in variant) else ROWS
    base, values = [], []
    for start in range(0, rows, size):
        part = list(range(start, min(start + size, rows)))
        prompts, readout = made.prompts.rows(part, trim=True), made.readout.of_rows(part)
        prompts, here = _at_question(prompts, readout, listed)
        found = lm.counterfactuals(prompts, here, readout, memory=memory(lm, prompts, readout))
        base.append(found.base)
        values.append(found.values)
        if progress is not None:
            progress(part[-1] + 1, rows)
    return Effects(
        made.per_example(torch.cat(base)),
        made.per_example(torch.cat(values, 1)),
        made.groups,
        made.unit,
        made.readout.name,
    )


def memory(lm: LM, prompts: Prompts, readout: Readout) -> float:
    """Bytes that the engine may take for a sweep's batches, so that the logits the readout reads of them, which it does
    not count, fit in what it may take in all."""
    each = row_bytes(lm, prompts.width, prompts.width)
    tokens = lm.anatomy.vocab if readout.tokens is None else readout.tokens.shape[-1]
    read = COPIES * max(lm.dtype.itemsize, 4) * readout.columns(prompts).shape[1] * tokens
    return budget(lm, None) * each / (each + read)


def _at_question(
    prompts: Prompts, readout: Readout, interventions: list[Intervention]
) -> tuple[Prompts, list[Intervention]]:
    """Prompts and interventions where a span is read, the tokens that predict a text: what follows its first token is
    that text."""
    if readout.where.kind != "span":
        return prompts, interventions
    lengths = [positions[0] + 1 for positions in prompts.spans[str(readout.where.name)]]
    return forced(prompts, lengths, interventions)


def _numbers_rows(edit: Edit) -> bool:
    """Whether an edit goes by the number of a row, so that rows cannot be run in parts."""
    return edit.rows is not None or isinstance(edit.strength, tuple) or isinstance(edit.value, Noise)
