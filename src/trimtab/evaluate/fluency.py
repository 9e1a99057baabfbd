"""Fluency of what a model writes: how likely the unsteered model finds it, how varied it is, whether it loops.

All of it is of finished texts, so any generator may have written them. Distinct-n: Li et al. 2016 (arXiv 1510.03055).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from trimtab.evaluate.side_effects import HELD

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Rows = Sequence[Sequence[int]]
"""Token ids, row by row, without padding."""


def distinct(rows: Rows, n: int = 2) -> Float[np.ndarray, "row"]:
    """Distinct-n: the share of a text's n-grams that are different ones; NaN for a text with none.

    >>> distinct([[5, 6, 5, 6, 5], [7]], 2)
    array([0.5, nan])
    """
    found = []
    for row in rows:
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        found.append(len(set(grams)) / len(grams) if grams else np.nan)
    return np.array(found, dtype=np.float64)


def loops(rows: Rows, times: int = 3, longest: int = 16) -> Float[np.ndarray, "row"]:
    """The share of a text's tokens that lie in a loop: a passage of at most `longest` tokens, at least `times` times in
    a row; NaN for a text without tokens.

    >>> loops([[1, 2, 3, 2, 3, 2, 3], [1, 2, 3, 4], [9, 9, 9, 9]])
    array([0.85714286, 0.        , 1.        ])
    """
    found = []
    for row in rows:
        ids, inside = np.asarray(row), np.zeros(len(row), bool)
        for period in range(1, min(longest, len(ids) // times) + 1):
            same = ids[period:] == ids[:-period]
            for start, stop in _runs(same):
                if stop - start >= (times - 1) * period:
                    inside[start : stop + period] = True
        found.append(inside.mean() if len(ids) else np.nan)
    return np.array(found, dtype=np.float64)


def nll(
    lm: LM,
    heads: Rows,
    tails: Rows,
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "row"]:
    """Mean negative log-likelihood in nats per token of each tail after its head, under the model as it is.

    Its exponential is the perplexity. NaN for a tail without tokens; a head has at least one.
    """
    found = np.full(len(tails), np.nan)
    order = sorted((i for i, tail in enumerate(tails) if len(tail)), key=lambda i: len(heads[i]) + len(tails[i]))
    done = 0
    while done < len(order):
        longest = len(heads[order[done]]) + len(tails[order[done]])
        rows = order[done : done + max(1, min(batch_size, HELD // (longest * lm.anatomy.vocab)))]
        prompts = lm.prompts([[*heads[i], *tails[i]] for i in rows])
        logits = lm.run(prompts).logits
        assert logits is not None
        for row, i in enumerate(rows):
            first = int(prompts.start[row]) + len(heads[i])
            told = logits[row, first - 1 : first - 1 + len(tails[i])]
            logp = torch.log_softmax(told.float() if told.dtype.itemsize < 4 else told, -1)
            target = torch.tensor(list(tails[i]), device=logp.device)
            found[i] = -float(logp.gather(-1, target[:, None]).mean())
        done += len(rows)
        if progress is not None:
            progress(done, len(order))
    return found


def _runs(same: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
