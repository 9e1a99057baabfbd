"""The interval of a share that was counted in a sample. Numbers only.

Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
"""

from __future__ import annotations

import math


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
