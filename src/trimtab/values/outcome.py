"""Outcome: one metric before and after a change, example by example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.values.bootstrap import mean_interval, mean_over_examples
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved


class Difference(NamedTuple):
    """The mean of after − before, and the ends of its interval, in the metric's unit."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Saved):
    """What a metric was before and after, for each example, both of shape (example,).

    `groups` labels the examples that belong together (made from one template, say); an example whose metric is NaN on
    either side counts in neither.

    >>> outcome = Outcome("logit_diff", "logits", before=np.array([3.0, 2.0]), after=np.array([1.0, 1.0]))
    >>> outcome.difference().mean
    -1.5
    """

    KIND: ClassVar[str] = "outcome"

    metric: str
    unit: str
    before: np.ndarray
    after: np.ndarray
    groups: tuple[str | int, ...] | None = None
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not len(values):
                raise TrimtabError(f"{name} of an outcome must have shape (example,), got {values.shape}")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.before.shape != self.after.shape:
            raise TrimtabError(
                f"before and after must be of the same examples, got {len(self.before)} and {len(self.after)} of them"
            )
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(self.groups))
            if len(self.groups) != len(self.before):
                raise TrimtabError(f"groups must label each of the {len(self.before)} examples, got {len(self.groups)}")

    def __len__(self) -> int:
        return len(self.before)

    def difference(self, level: float = 0.95, samples: int = 2000, seed: int = 0) -> Difference:
        """The mean of after − before, with its paired interval, by group where there are groups (`mean_interval`)."""
        change = self.after - self.before
        low, high = mean_interval(change, level=level, samples=samples, seed=seed, groups=self.groups)
        return Difference(float(mean_over_examples(change)), float(low), float(high))

    def __str__(self) -> str:
        before, after = (float(mean_over_examples(values)) for values in (self.before, self.after))
        mean, low, high = self.difference()
        change = f"{before:.4g} -> {after:.4g} {self.unit}, by {mean:+.4g} [{low:.4g}, {high:.4g}]"
        return f"{self.metric}: {change}, n = {len(self)}"

    def __repr__(self) -> str:
        return f"<Outcome {self}>"
