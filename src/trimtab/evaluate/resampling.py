"""Resampling: another example's activations in the place of a prompt's own, token by token.

Which places take them, and what becomes of the task's number, is not known here. Chan et al. 2022, causal scrubbing,
https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from trimtab.errors import TaskError
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def donors(prompts: Prompts, groups: Sequence[str], owner: Sequence[int] | np.ndarray, seed: int) -> list[int]:
    """For each row another one to take activations from: of another example, of another group if there is one, and
    among these at random one of those closest in length."""
    rng = np.random.default_rng(seed)
    lengths = [len(row) for row in prompts.tokens]
    found = []
    for row in range(len(prompts)):
        others = [i for i in range(len(prompts)) if owner[i] != owner[row]]
        if not others:
            raise TaskError("there is no other example to resample from: give two or more, or another kind of ablation")
        others = [i for i in others if groups[i] != groups[row]] or others
        closest = min(abs(lengths[i] - lengths[row]) for i in others)
        found.append(int(rng.choice([i for i in others if abs(lengths[i] - lengths[row]) == closest])))
    return found


def resampled(
    lm: LM, prompts: Prompts, partner: Sequence[int], rows: Sequence[int], part: Prompts, tensors: Sequence[Site]
) -> Run:
    """The donors' activations at `tensors`, laid out in the columns of `part`, which are the `rows` of `prompts`.

    First token goes to first token; the others are counted from the end.
    """
    theirs = prompts.rows([partner[row] for row in rows], trim=True)
    run = lm.run(theirs, tensors, logits=False)
    columns = _columns_of(part, theirs)
    index = torch.arange(len(rows))[:, None]
    return Run(part, None, {site: run.whole(site)[index, columns] for site in tensors})


def _columns_of(mine: Prompts, theirs: Prompts) -> Int[Tensor, "batch pos"]:
    """Of each column of `mine` the column of `theirs`."""
    columns = torch.zeros(mine.ids.shape, dtype=torch.long)
    starts = zip(mine.start.tolist(), theirs.start.tolist(), mine.tokens, theirs.tokens, strict=True)
    for row, (start, other, tokens, donated) in enumerate(starts):
        for position in range(len(tokens)):
            at = len(donated) - (len(tokens) - position) if position else 0
            columns[row, start + position] = other + max(at, min(position, len(donated) - 1, 1))
    return columns
