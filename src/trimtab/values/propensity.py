"""Propensity: how much rather a model completes as the behaviour does, along a coefficient, example by example.

What a steering vector does on average may hide that it does the opposite on many examples: Tan et al. 2024,
"Analyzing the Generalization and Reliability of Steering Vectors" (arXiv 2407.12404).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from trimtab.errors import TrimtabError
from trimtab.values.estimate import Estimate
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.shares import share_of

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.figures.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Propensity(Saved):
    """log p(matching completion) − log p(the other), of shape (coefficient, example), at each coefficient.

    `coefficients` are at least two different numbers; `groups` labels examples that belong together.
    """

    KIND: ClassVar[str] = "propensity"

    coefficients: tuple[float, ...]
    values: np.ndarray
    unit: str
    groups: tuple[str, ...]
    task: str = ""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", tuple(map(float, self.coefficients)))
        values = np.array(self.values, dtype=np.float64)
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        wanted = (len(self.coefficients), len(self.groups))
        if values.shape != wanted:
            raise TrimtabError(
                f"the values of a propensity must have shape (coefficient, example) = {wanted}, got {values.shape}"
            )
        if len(set(self.coefficients)) < 2 or len(set(self.coefficients)) < len(self.coefficients):
            raise TrimtabError(f"a slope needs two or more different coefficients, got {self.coefficients}")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def probability(self) -> Float[np.ndarray, "coefficient example"]:
        """p(matching) / (p(matching) + p(other)): the normalised probability of the matching completion."""
        return 0.5 * (1 + np.tanh(self.values / 2))  # the logistic function, without overflow

    @property
    def slopes(self) -> Float[np.ndarray, "example"]:
        """The slope of each example's least-squares line over the coefficient, in the unit for each unit of it."""
        return slopes(self.coefficients, self.values)

    @property
    def steerability(self) -> Estimate:
        """The mean slope, which is the slope of the mean, with its interval over groups."""
        return Estimate.of(self.slopes, self.groups)

    @property
    def anti_steerable(self) -> Estimate:
        """The share of examples whose slope is below zero: steering does the opposite to them."""
        return share_below(self.slopes, self.groups)

    def to_frame(self) -> pd.DataFrame:
        """A row for each coefficient: mean log odds with interval, and mean normalised probability."""
        import pandas as pd

        rows = []
        for coefficient, odds, p in zip(self.coefficients, self.values, self.probability, strict=True):
            found, chance = Estimate.of(odds, self.groups), Estimate.of(p, self.groups)
            rows.append((coefficient, found.mean, found.low, found.high, chance.mean, chance.low, chance.high, found.n))
        names = ["coefficient", "mean", "low", "high", "probability", "probability_low", "probability_high", "n"]
        return pd.DataFrame(rows, columns=names)

    def plot(self) -> Figure:
        """The mean along the coefficient, and how the examples' slopes are spread."""
        from trimtab.figures import Curve, Drawing, Figure, Mark, curves, histogram

        order = np.argsort(self.coefficients)
        marks = tuple(Mark(self.coefficients[i], Estimate.of(self.values[i], self.groups)) for i in order)
        line = curves(
            [Curve(self.task or "propensity", marks)],
            about="Propensity along the coefficient",
            x_axis="coefficient",
            y_axis=f"log odds, {self.unit}",
        )
        spread = histogram(self.slopes, about="Slopes of the examples", axis=f"slope, {self.unit}", aim=1)
        return Figure(
            f"Propensity: {self.task}" if self.task else "Propensity",
            (Drawing(line, "Along the coefficient"), Drawing(spread, "Slopes", "In orange: anti-steerable examples.")),
        )

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, float_format="{:.3g}".format)
        return self.plot().with_details("The numbers", table)

    def __str__(self) -> str:
        share = self.anti_steerable
        return (
            f"steerability {self.steerability} {self.unit} for each unit of the coefficient; anti-steerable "
            f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}] of {len(self)} examples"
        )

    def __repr__(self) -> str:
        return f"<Propensity {self.task}: {self}>"


def slopes(
    coefficients: tuple[float, ...] | list[float], values: Float[np.ndarray, "coefficient *rest"]
) -> Float[np.ndarray, "*rest"]:
    """The slope of the least-squares line of values over coefficients.

    >>> slopes([0.0, 1.0, 2.0], np.array([[1.0], [2.0], [6.0]]))
    array([2.5])
    """
    x = np.asarray(coefficients, dtype=np.float64)
    x = x - x.mean()
    return np.tensordot(x, np.asarray(values, dtype=np.float64), 1) / (x @ x)


def share_below(values: Float[np.ndarray, "example"], groups: Sequence[object] | None) -> Estimate:
    """The share of values below zero, with its interval over groups (`shares.share_of`); NaN counts in none."""
    return share_of(np.where(np.isnan(values), np.nan, (values < 0).astype(np.float64)), groups)
