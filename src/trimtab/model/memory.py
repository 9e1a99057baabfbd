"""How much memory a batch of suffix rows takes, how much may be taken, and when it ran out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trimtab.model.lm import LM

SHARE = 0.25
"""Share of the free memory that a sweep takes unless told otherwise."""
MOST_ON_CPU = 512e6
"""On a CPU batches beyond the caches gain nothing, so no more than this is taken unless told otherwise."""


def row_bytes(lm: LM, length: int, width: int) -> int:
    """Peak bytes of one row with `length` computed columns out of `width` in one block."""
    a = lm.anatomy
    heads = a.n_heads * a.d_head
    d_mlp = max(block.d_mlp for block in a.blocks)
    tokens = length * (4 * a.d_model + 3 * d_mlp + 3 * heads)
    keys = 2 * width * a.d_head * (a.n_kv + a.n_heads)
    scores = 3 * a.n_heads * length * width if lm.attention == "eager" else 0
    return int((tokens + keys + scores) * max(lm.dtype.itemsize, 4))


def budget(lm: LM, memory: float | None) -> float:
    """Bytes that batches may take: as told, else a share of what is free."""
    if memory is not None:
        return float(memory)
    if lm.device.type == "cuda":
        return SHARE * torch.cuda.mem_get_info(lm.device)[0]
    return min(SHARE * free_memory(), MOST_ON_CPU)


def free_memory() -> float:
    """Bytes of main memory that are free, where the system says so."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4e9


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    said = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)
