"""Conditions of edits decided on a tensor: which rows of a prompt point the way that a condition asks for.

Conditional steering: Lee et al. 2024, arXiv 2409.05907.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trimtab.model.frame import Frame
from trimtab.values.edit import Condition


def evaluate(condition: Condition, x: Tensor, frame: Frame) -> None:
    """Decide a condition for each row from its site's tensor (batch pos d), on the prompt; kept in the frame."""
    if frame.start != 0:
        return
    real = frame.real()
    if condition.site.at is not None:
        real = real & frame.of_rows(frame.prompts.columns(condition.site.at))[:, : real.shape[1]]
    real = real.to(x.device)
    x = x[:, : real.shape[1]]
    x = x.float() if x.dtype.itemsize < 4 else x  # a threshold is finer than half types are
    if condition.pool == "mean":
        state = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    else:
        last = (real * torch.arange(1, real.shape[1] + 1, device=x.device)).argmax(1)
        state = x[torch.arange(len(x), device=x.device), last]
    direction = torch.as_tensor(np.array(condition.direction), dtype=x.dtype, device=x.device)
    cosine = torch.nn.functional.cosine_similarity(state, direction[None], dim=-1)
    frame.held[condition] = cosine > condition.threshold if condition.above else cosine < condition.threshold
