"""Statistics of rankings: which values are the largest, how two rankings agree, and how much of that is chance."""

from __future__ import annotations

import math

import numpy as np


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors, ties sharing their mean rank; NaN where either is constant."""
    x, y = (_ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / spread if spread else math.nan


def hypergeometric_tail(common: int, cells: int, first: int, second: int) -> float:
    """The probability that random subsets of sizes `first` and `second` of `cells` share at least `common` elements."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    least, most = max(0, first + second - cells), min(first, second)
    if common <= least:
        return 1.0
    total = log_choose(cells, second)
    logs = [log_choose(first, m) + log_choose(cells - first, second - m) - total for m in range(common, most + 1)]
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def ranked(sizes: np.ndarray) -> np.ndarray:
    """The positions of the values that are there, the largest first; equal ones in their order."""
    order = np.argsort(-sizes, kind="stable")
    return order[~np.isnan(sizes[order])]
