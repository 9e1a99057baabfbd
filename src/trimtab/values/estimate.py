"""Estimate: a mean with its interval, which every number that is shown comes as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.values.bootstrap import mean_interval, mean_over_examples
from trimtab.values.content import Content


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Content):
    """A mean with the ends of its 95 % interval, over `n` examples; the ends are NaN where there is nothing to
    resample."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: np.ndarray, groups: Sequence[object] | None = None, seed: int = 0) -> Estimate:
        """From one value for each example, over whole groups where there are groups: `bootstrap.mean_interval`."""
        values = np.asarray(values, dtype=np.float64)
        low, high = mean_interval(values, groups=groups, seed=seed)
        return cls(float(mean_over_examples(values)), float(low), float(high), int((~np.isnan(values)).sum()))

    @property
    def excludes_zero(self) -> bool:
        """Whether both ends lie on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:.3g}, {self.high:.3g}]"
