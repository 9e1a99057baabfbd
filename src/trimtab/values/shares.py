"""The interval of a share that was counted in a sample. Numbers only.

Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404; for examples that come in groups Korn and Graubard 1998,
"Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
Survey Methodology 24, 193–201.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from trimtab.values.estimate import Estimate

ALIKE = 1e-9
"""Standard error below which the groups all say the same, up to rounding."""


def share_interval(hits: float, sampled: float, of: float = math.inf) -> tuple[float, float]:
    """The 95 % interval of the share of hits among `of` things of which `sampled` were looked at.

    Clopper and Pearson's, which is exact for draws with replacement and wider than need be for those without; where
    everything was looked at, the share itself twice. Draws that depend on each other count as so many, not always a
    whole number, as would scatter alike.

    >>> share_interval(1, 4, of=4)
    (0.25, 0.25)
    """
    from scipy.stats import beta

    if sampled >= of:
        return hits / sampled, hits / sampled
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, sampled - hits + 1))
    high = 1.0 if hits == sampled else float(beta.ppf(0.975, hits + 1, sampled - hits))
    return low, high


def share_of(values: Float[np.ndarray, "example"], groups: Sequence[object] | None = None) -> Estimate:
    """A share of examples with its 95 % interval over groups: the mean of numbers from 0 to 1, NaN counted in none.

    It is Clopper and Pearson's interval of as many draws n* as scatter like the groups do: the n examples over the
    design effect, which is the cluster-robust variance G/(G − 1) · Σ_g (Σ_{i in g} (x_i − s))²/n² over that of
    independent examples, s(1 − s)/(n − 1). n* is times (t(n − 1)/t(G − 1))² for a variance that is known from few
    groups, and never more than n, so that no interval is narrower than that of independent examples: what little
    scatter a few groups show may be luck. Where all or none count, the groups scatter not at all, which says nothing of
    how much the examples of one depend on each other: there n* is the number of groups that weigh alike, n²/Σ_g n_g²,
    as if each were a single draw. Resampled, or Student's, the interval would have no width there. No other share has
    its upper end below that of none, nor its lower end above that of all: one more that counts never speaks for fewer.

    With fewer than two groups both ends are NaN.

    >>> print(share_of(np.zeros(48), groups=[i // 2 for i in range(48)]))
    +0 [0, 0.142]
    """
    values = np.asarray(values, dtype=np.float64)
    labels = range(len(values)) if groups is None else groups
    held: dict[object, list[float]] = {}
    for label, value in zip(labels, values.tolist(), strict=True):
        if not math.isnan(value):
            held.setdefault(label, []).append(value)
    n = sum(map(len, held.values()))
    share = sum(map(sum, held.values())) / n if n else math.nan
    if len(held) < 2:
        return Estimate(share, math.nan, math.nan, n)
    alike = n**2 / sum(len(part) ** 2 for part in held.values())
    draws = alike if share in (0.0, 1.0) else _draws(share, list(held.values()))
    low, high = share_interval(share * draws, draws)
    none = share_interval(0, alike)[1]
    return Estimate(share, min(low, 1 - none), max(high, none), n)


def _draws(share: float, held: Sequence[Sequence[float]]) -> float:
    """How many independent draws scatter as groups of numbers between 0 and 1 do; not always a whole number."""
    from scipy.stats import t as student

    g, n = len(held), sum(map(len, held))
    apart = sum((sum(part) - len(part) * share) ** 2 for part in held)
    variance = g / (g - 1) * apart / n**2
    if variance <= ALIKE**2:
        return float(n)
    effect = variance / (share * (1 - share) / (n - 1))
    known = (student.ppf(0.975, n - 1) / student.ppf(0.975, g - 1)) ** 2
    return float(min(n, n / effect * known))
