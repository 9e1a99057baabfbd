"""How much memory a batch of suffix rows takes, how much may be taken, and when it ran out.

Everything that runs a model in batches asks here. `memory_limit` sets what batches may take for a `with` block, and the
environment variable TRIMTAB_MEMORY for a whole process ("2GB", or a number of bytes); the model itself comes on top.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.model.lm import LM

VARIABLE = "TRIMTAB_MEMORY"
UNITS = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_limit: ContextVar[float | None] = ContextVar("bytes that batches may take", default=None)

SHARE = 0.25
"""Share of the free memory that a sweep takes unless told otherwise."""
MOST_ON_CPU = 512e6
"""On a CPU batches beyond the caches gain nothing, so no more than this is taken unless told otherwise."""

HELD = 24
"""Bytes for each number that is held at once, with those made of it: six in float32."""


def row_bytes(lm: LM, length: int, width: int) -> int:
    """Peak bytes of one row with `length` computed columns out of `width` in one block."""
    a = lm.anatomy
    heads = a.n_heads * a.d_head
    d_mlp = max(block.d_mlp for block in a.blocks)
    tokens = length * (4 * a.d_model + 3 * d_mlp + 3 * heads)
    keys = 2 * width * a.d_head * (a.n_kv + a.n_heads)
    scores = 3 * a.n_heads * length * width if lm.attention == "eager" else 0
    return int((tokens + keys + scores) * max(lm.dtype.itemsize, 4))


@contextmanager
def memory_limit(size: float | str) -> Iterator[None]:
    """For the length of the block, what batches may take beyond the model: bytes, or a text such as "500MB".

    A `memory=` that is given to a call goes before it. Smaller batches give the same results to rounding.

    Raises TrimtabError for a size that is not above zero, or has a unit that is none.
    """
    token = _limit.set(bytes_of(size, "memory_limit"))
    try:
        yield
    finally:
        _limit.reset(token)


def limit() -> float | None:
    """Bytes that batches may take at most, as the block around or the environment says; None where neither does."""
    told = _limit.get()
    if told is None and (text := os.environ.get(VARIABLE)):
        return bytes_of(text, VARIABLE)
    return told


def held(most: int) -> int:
    """Numbers of one kind, such as logits, that may be held at once: `most`, or fewer where there is a limit, so that
    as many temporaries of them as a log softmax and a comparison make fit in it."""
    told = limit()
    return most if told is None else max(1, min(most, int(told // HELD)))


def bytes_of(size: float | str, name: str) -> float:
    """Bytes from a number or a text; TrimtabError, with the name of what was given, where it is neither.

    >>> bytes_of("1.5 GB", "memory"), bytes_of("64MiB", "memory")
    (1500000000.0, 67108864.0)
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(size).lower())
    try:
        made = math.nan if found is None else float(found[1]) * UNITS[found[2]]
    except (KeyError, ValueError):
        made = math.nan
    if not 0 < made < math.inf:
        raise TrimtabError(f'{name} is an amount of memory, such as "500MB", "2GB" or a number of bytes, got {size!r}')
    return made


def budget(lm: LM, memory: float | None) -> float:
    """Bytes that batches may take: as told, else a share of what is free."""
    memory = limit() if memory is None else memory
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
