"""Audit: how a screen's best places, and a random sample of the others, came out of exact patching.

It holds numbers and knows nothing of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trimtab.values.saved import Saved
from trimtab.values.scores import Scores
from trimtab.values.shares import share_interval


@dataclass(frozen=True, eq=False, repr=False)
class Audit(Saved):
    """Exact effects of the places that a screen ranks highest, and of a random sample of the rest.

    `top` and `sample` are what `patching` gives (example, site), None without any; `top_estimates` (site) and
    `sample_estimates` (site) the means that the screen gave the same places. `rest` is how many places are not in the
    top. `sizes`: the screen gives sizes without a sign (GradDrop), and is compared with sizes.
    """

    KIND: ClassVar[str] = "audit"

    top: Scores
    sample: Scores | None
    top_estimates: np.ndarray
    sample_estimates: np.ndarray
    rest: int
    sizes: bool = False

    @property
    def threshold(self) -> float:
        """The size of the smallest exact effect in the top."""
        return float(np.nanmin(np.abs(self.top.mean())))

    @property
    def missed(self) -> float:
        """Share of the sample whose exact effect is larger than the smallest one in the top; NaN without a sample."""
        if self.sample is None:
            return math.nan
        return float(np.mean(np.abs(self.sample.mean()) > self.threshold))

    @property
    def missed_interval(self) -> tuple[float, float]:
        """The interval (95 %) of the share missed among all of the rest, as in `evaluate.verify`."""
        if self.sample is None:
            return math.nan, math.nan
        n = len(self.sample.coords["site"])
        return share_interval(round(self.missed * n), n, of=self.rest)

    @property
    def error(self) -> float:
        """Mean size of estimate minus exact effect over all places looked at, as a share of the largest exact one."""
        exact = [self.top.mean()] + ([] if self.sample is None else [self.sample.mean()])
        given = np.concatenate([self.top_estimates, self.sample_estimates])
        values = np.abs(np.concatenate(exact)) if self.sizes else np.concatenate(exact)
        return float(np.nanmean(np.abs(given - values)) / np.nanmax(np.abs(values)))

    def summary(self) -> dict[str, object]:
        """Its numbers, for the options of a result."""
        low, high = self.missed_interval
        return {
            "verified": [str(site) for site in self.top.coords["site"]],
            "exact": [float(x) for x in self.top.mean()],
            "sampled": 0 if self.sample is None else len(self.sample.coords["site"]),
            "rest": self.rest,
            "missed": None if math.isnan(self.missed) else self.missed,
            "missed_interval": None if math.isnan(low) else [low, high],
        }

    def __repr__(self) -> str:
        k, n = len(self.top.coords["site"]), 0 if self.sample is None else len(self.sample.coords["site"])
        low, high = self.missed_interval
        missed = f"missed {self.missed:.1%} [{low:.1%}, {high:.1%}] of" if n else "no sample of"
        return f"<Audit: {k} places verified, {n} sampled, {missed} the other {self.rest}>"
