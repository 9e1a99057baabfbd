"""AblationStudy: what becomes of a behaviour, and of everything else, as more and more located parts are ablated.

Beside each set of located parts stand random sets of the same kind and layers: a behaviour that falls as much without
them was not located. Intervals are over examples and take the random sets as they were drawn; how far these differ, and
the rank of the located parts among them, are given beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from trimtab.errors import TrimtabError, nearest
from trimtab.values.bootstrap import mean_over_examples
from trimtab.values.content import Content
from trimtab.values.estimate import Estimate
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.figures.figure import Figure

BEHAVIOUR, NLL, CAPABILITY = "behaviour", "nll", "capability"


@dataclass(frozen=True, eq=False, repr=False)
class AblatedNumber(Content):
    """One number before (`base`, example) and after ablation: of the located parts (kind, k, example), and of random
    ones (kind, k, draw, example)."""

    name: str
    unit: str
    base: np.ndarray
    located: np.ndarray
    random: np.ndarray
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, axes in (("base", 1), ("located", 3), ("random", 4)):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != axes or values.shape[-1] != len(self.groups):
                raise TrimtabError(
                    f"{name} of {self.name} must have {axes} axes, the last of {len(self.groups)} examples"
                )
            values.setflags(write=False)
            object.__setattr__(self, name, values)


@dataclass(frozen=True, eq=False, repr=False)
class AblationStudy(Saved):
    """The task's number ("behaviour"), negative log-likelihood of neutral text ("nll", nats per token) and accuracy on
    unrelated items ("capability"), as the first `k` of `sites` are ablated by each kind ("zero", "mean", "resample").

    `draws` random sets were ablated beside each; `proposed_by` names the method that located the sites.
    """

    KIND: ClassVar[str] = "ablation-study"

    task: str
    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    k: tuple[int, ...]
    draws: int
    numbers: tuple[AblatedNumber, ...]
    proposed_by: str = ""
    provenance: Provenance | None = None

    def number(self, name: str) -> AblatedNumber:
        """One of the numbers by its name."""
        known = {number.name: number for number in self.numbers}
        if name not in known:
            raise TrimtabError(f'no number "{name}"{nearest(name, known)}: there are {", ".join(known)}')
        return known[name]

    def change(self, name: str, kind: str, k: int) -> Estimate:
        """After − before without the located parts, with its interval over groups."""
        number, (i, j) = self.number(name), self._at(kind, k)
        return Estimate.of(number.located[i, j] - number.base, number.groups)

    def control(self, name: str, kind: str, k: int) -> Estimate:
        """After − before without random parts, the mean over draws; the interval is over examples, not over draws."""
        number, (i, j) = self.number(name), self._at(kind, k)
        return Estimate.of(number.random[i, j].mean(0) - number.base, number.groups)

    def draw_means(self, name: str, kind: str, k: int) -> Float[np.ndarray, "draw"]:
        """After − before without each set of random parts: how far sets differ."""
        number, (i, j) = self.number(name), self._at(kind, k)
        return mean_over_examples((number.random[i, j] - number.base).T)

    def difference(self, name: str, kind: str, k: int) -> Estimate:
        """The change without the located parts minus the mean of those without random ones, paired by example.

        The interval says what other examples would have given with these random sets, and nothing of other sets: `p`
        does.
        """
        number, (i, j) = self.number(name), self._at(kind, k)
        return Estimate.of(number.located[i, j] - number.random[i, j].mean(0), number.groups)

    def p(self, name: str, kind: str, k: int) -> float:
        """The share of sets, the located parts counted as one of them, whose mean change is at least as large, up or
        down, as that without the located parts. With fewer than 20 draws it cannot fall to 0.05."""
        own, draws = self.change(name, kind, k).mean, self.draw_means(name, kind, k)
        return float((1 + (~(np.abs(draws) < abs(own))).sum()) / (1 + len(draws)))

    def to_frame(self) -> pd.DataFrame:
        """A row for each number, kind and k: the change, the mean, least and most of the random sets', the difference
        from their mean, and the rank `p` among them."""
        import pandas as pd

        rows = []
        for number in self.numbers:
            for kind in self.kinds:
                for k in self.k:
                    parts = (self.change(number.name, kind, k), self.difference(number.name, kind, k))
                    draws = self.draw_means(number.name, kind, k)
                    control = (self.control(number.name, kind, k).mean, float(draws.min()), float(draws.max()))
                    ends = [value for part in parts for value in (part.mean, part.low, part.high)]
                    before, p = float(np.nanmean(number.base)), self.p(number.name, kind, k)
                    rows.append((number.name, number.unit, kind, k, before, *ends[:3], *control, *ends[3:], p))
        names = ["number", "unit", "kind", "k", "before", "change", "low", "high"]
        names += ["random", "random_least", "random_most", "difference", "difference_low", "difference_high", "p"]
        return pd.DataFrame(rows, columns=names)

    def plot(self) -> Figure:
        """Each number as more parts go, located and random."""
        from trimtab.values.robustness_figures import ablation_figure

        return ablation_figure(self)

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, float_format="{:.3g}".format)
        return self.plot().with_details("The numbers", table)

    def _at(self, kind: str, k: int) -> tuple[int, int]:
        if kind not in self.kinds or k not in self.k:
            raise TrimtabError(f"the study ablated by {', '.join(self.kinds)}, {self.k} parts; got {kind!r}, {k}")
        return self.kinds.index(kind), self.k.index(k)

    def __str__(self) -> str:
        lines = [f"{self.task}: the first {', '.join(map(str, self.k))} of {len(self.sites)} parts ablated"]
        k = self.k[-1]
        for kind in self.kinds:
            for number in self.numbers:
                change, draws = self.change(number.name, kind, k), self.draw_means(number.name, kind, k)
                random = f"{draws.mean():+.3g} ({draws.min():+.3g} to {draws.max():+.3g} in {len(draws)} draws)"
                lines.append(
                    f"  {kind}, {k} parts: {number.name} {change} {number.unit}, random parts {random}, "
                    f"p {self.p(number.name, kind, k):.2g}"
                )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<AblationStudy {self.task}: {', '.join(self.kinds)} of up to {self.k[-1]} parts>"
