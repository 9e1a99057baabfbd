"""KL to the clean run as the number of a task: it takes a run of the unedited model, so it is made and not named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import TaskError
from trimtab.model.protocols import Readout
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure
from trimtab.tasks.metrics import kl
from trimtab.tasks.task import Task

if TYPE_CHECKING:
    from trimtab.model.lm import LM


@torch.no_grad()
def kl_to_clean(lm: LM, task: Task, batch_size: int = 16) -> Readout:
    """−KL(unedited model after the clean prompt ‖ read) for each example, at the last token, in nats.

    It is 0 where the model says what it says after the clean prompt, and below elsewhere, so that more is better, as of
    every metric. The clean prompts are run once, `batch_size` at a time, with whatever edits the model bears now;
    log-probabilities (example vocab) are kept.

    The readout is made for these examples in this order, on their clean or their corrupt prompts: it is the metric of
    this task, and neither of a part of it (as a study makes them) nor of the "gap" of both prompts. Those raise
    TaskError, or StudyError, as they are not as many; as many examples in another order go undetected and give wrong
    numbers, so make it again for any task that is not this one.

    Raises TaskError for a contrast task, which has no clean prompts.

    >>> near = task.with_(metric=kl_to_clean(lm, task))  # doctest: +SKIP
    >>> locate.patching(lm, near).unit  # doctest: +SKIP
    'nat'
    """
    if task.shape != "counterfactual":
        raise TaskError(
            f"{task.name} has contrast examples, and KL is read against clean prompts: give counterfactual examples, "
            "or make a readout of your own with tasks.metrics.kl"
        )
    prompts = measure(lm, task, on="clean", metric="log_prob").prompts
    found: dict[int, Tensor] = {}
    for rows in batches(prompts, lm.anatomy.d_model, batch_size):
        final = lm.run(prompts.rows(rows, trim=True), "final@last", logits=False)["final@last"]
        logits = lm.unembed(final.flatten(1))
        wide = logits.float() if logits.dtype.itemsize < 4 else logits
        found |= dict(zip(rows, torch.log_softmax(wide, -1).cpu(), strict=True))
    clean = torch.stack([found[row] for row in range(len(prompts))])
    made = kl(clean[:, None], torch.ones(len(clean), 1, dtype=torch.bool))

    def function(logits: Tensor, rows: Tensor) -> Tensor:
        return -made.function(logits, rows).squeeze(1)

    return replace(made, function=function, name="kl_to_clean", ragged=False)
