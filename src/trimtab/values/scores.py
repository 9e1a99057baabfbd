"""Scores: what every localising method returns. Effects for each example, labelled by where in the model they are.

It reads and ranks numbers and knows nothing of how they came about.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.bootstrap import bootstrap_interval, mean_over_examples
from trimtab.values.provenance import Provenance, plain
from trimtab.values.saved import Saved
from trimtab.values.site import Site

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Label = str | int
Order = Literal["abs", "value"]


@dataclass(frozen=True)
class Interval:
    """Lower and upper ends of the mean over examples, of the shape of `Scores.mean()`, in the scores' unit."""

    low: np.ndarray
    high: np.ndarray
    level: float


@dataclass(frozen=True)
class Comparison:
    """How two scores agree on the cells both have.

    `rank_correlation` is Spearman's; `overlap` the fraction of the top `k` they share; `p_value` the probability that
    two random choices of `k` out of `cells` share at least as many (hypergeometric).
    """

    rank_correlation: float
    overlap: float
    p_value: float
    k: int
    cells: int


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Saved):
    """Effects of shape (example, …), one for each example and each place in the model.

    `dims` names the axes: "example" first, then any of layer, head, neuron, channel, expert, feature, pos, span.
    `coords` gives each axis its labels. `site` is the address with an axis in braces wherever its label goes:
    `L{layer}.head[{head}]@{span}`. `unit` is what the numbers are in, `method` what made them and with which `options`,
    `direction` whether clean values were put into the corrupt run ("denoise"), the other way round ("noise"), or
    neither. `groups` labels the examples that belong together. An effect that is not defined is NaN, and is left out of
    every summary.

    >>> effects = np.array([[[0.1, -2.0], [0.0, 0.5]]])
    >>> scores = Scores(effects, ("example", "layer", "head"), {}, "L{layer}.head[{head}]", unit="logits")
    >>> scores.top(2)
    [Site.parse("L0.head[1]"), Site.parse("L1.head[1]")]
    """

    KIND: ClassVar[str] = "scores"

    array: np.ndarray
    dims: tuple[str, ...]
    coords: Mapping[str, tuple[Label, ...]]
    site: str
    unit: str = ""
    method: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    direction: Literal["denoise", "noise"] | None = None
    groups: tuple[Label, ...] | None = None
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        array = np.array(array, dtype=np.float64 if array.dtype != np.float32 else np.float32, order="C")
        array.setflags(write=False)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "dims", tuple(self.dims))
        object.__setattr__(self, "options", plain(self.options))
        self._check_dims()
        object.__setattr__(
            self, "coords", {dim: self._labels(dim, size) for dim, size in zip(self.dims, array.shape, strict=True)}
        )
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(self.groups))
            if len(self.groups) != len(self):
                raise TrimtabError(f"groups must label each of the {len(self)} examples, got {len(self.groups)}")
        if self.direction not in ("denoise", "noise", None):
            raise TrimtabError(f'direction is "denoise", "noise" or None, got {self.direction!r}')
        if array.size:
            self.site_at(**{dim: self.coords[dim][0] for dim in self.places})

    def _check_dims(self) -> None:
        if (
            len(self.dims) != self.array.ndim
            or not self.dims
            or self.dims[0] != "example"
            or len(set(self.dims)) < len(self.dims)
        ):
            raise TrimtabError(
                f'dims must name each of the {self.array.ndim} axes of the array once, "example" first, got {self.dims}'
            )
        named = [name for _, name, _, _ in string.Formatter().parse(self.site) if name is not None]
        if set(named) != set(self.places):
            raise TrimtabError(
                f'the site "{self.site}" must have each of the axes {", ".join(self.places) or "(none)"} in braces, '
                f"and no other: it has {', '.join(named) or 'none'}"
            )
        if extra := set(self.coords) - set(self.dims):
            raise TrimtabError(
                f"coords has labels for {', '.join(sorted(extra))}, which is no axis: the axes are {self.dims}"
            )

    def _labels(self, dim: str, size: int) -> tuple[Label, ...]:
        labels = tuple(label if isinstance(label, str) else int(label) for label in self.coords.get(dim, range(size)))
        if len(labels) != size or len(set(labels)) < size:
            raise TrimtabError(
                f'coords["{dim}"] must have {size} labels, all different, got {len(labels)}: {labels[:8]}'
            )
        return labels

    @property
    def places(self) -> tuple[str, ...]:
        """The axes other than "example"."""
        return self.dims[1:]

    def __len__(self) -> int:
        return self.array.shape[0]

    def mean(self) -> np.ndarray:
        """The mean over examples, of shape (…), NaN left out; NaN where no example has a value."""
        return mean_over_examples(self.array)

    def interval(
        self, level: float = 0.95, samples: int = 1000, seed: int = 0, groups: Sequence[Label] | None = None
    ) -> Interval:
        """The bootstrap interval of `mean()`, resampling whole groups where there are groups (given, or the scores'
        own).

        With one example, or one group, both ends are NaN: there is nothing to resample.
        """
        groups = self.groups if groups is None else groups
        low, high = bootstrap_interval(self.array, level=level, samples=samples, seed=seed, groups=groups)
        return Interval(low, high, level)

    def site_at(self, **coords: Label) -> Site:
        """The site at one label of each axis: `scores.site_at(layer=9, head=6)`. SiteError for a label that is not
        there."""
        for dim in self.places:
            if dim not in coords:
                raise SiteError(f"{dim} is missing: give a label for each of {', '.join(self.places)}")
            if coords[dim] not in self.coords[dim]:
                labels = [str(label) for label in self.coords[dim]]
                shown = ", ".join(labels if len(labels) <= 12 else [*labels[:11], "…", labels[-1]])
                raise SiteError(
                    f"no {dim} {coords[dim]!r} in these scores{nearest(str(coords[dim]), labels)}: there are {shown}"
                )
        if extra := set(coords) - set(self.places):
            raise SiteError(
                f"these scores have no axis {', '.join(sorted(extra))}: the axes are {', '.join(self.places)}"
            )
        return Site.parse(self.site.format(**coords))

    def sites(self) -> Iterator[Site]:
        """Every site, in the order of `mean().ravel()`."""
        return (Site.parse(text) for text in self._addresses())

    def top(self, k: int, by: Order = "abs") -> list[Site]:
        """The `k` sites of largest mean, in absolute value or as it is, the largest first; fewer where fewer have a
        value."""
        labels = [self.coords[dim] for dim in self.places]
        shape = self.array.shape[1:]
        return [
            self.site_at(
                **{
                    dim: names[i]
                    for dim, names, i in zip(self.places, labels, np.unravel_index(cell, shape), strict=True)
                }
            )
            for cell in _ranked(_sized(self.mean(), by).ravel())[: _count(k)]
        ]

    def mask(self, threshold: float, by: Order = "abs") -> np.ndarray:
        """Where the mean is at least `threshold`, in absolute value or as it is: booleans of the shape of `mean()`."""
        return _sized(self.mean(), by) >= threshold

    def compare(self, other: Scores, k: int = 10, by: Order = "abs") -> Comparison:
        """How this and other scores rank the cells that both have, matched by label; cells without a value are left
        out."""
        if set(self.places) != set(other.places):
            raise TrimtabError(f"only scores over the same axes can be compared, got {self.places} and {other.places}")
        shared = [[label for label in self.coords[dim] if label in set(other.coords[dim])] for dim in self.places]
        ours, theirs = (
            _sized(scores.means_at(dict(zip(self.places, shared, strict=True))), by) for scores in (self, other)
        )
        present = ~(np.isnan(ours) | np.isnan(theirs))
        ours, theirs = ours[present], theirs[present]
        cells, k = len(ours), min(_count(k), len(ours))
        if not k:
            raise TrimtabError("these scores have no cell in common that has a value in both: their labels do not meet")
        common = len(set(_ranked(ours)[:k].tolist()) & set(_ranked(theirs)[:k].tolist()))
        return Comparison(spearman(ours, theirs), common / k, hypergeometric_tail(common, cells, k, k), k, cells)

    def means_at(self, labels: Mapping[str, Sequence[Label]]) -> np.ndarray:
        """The means over examples at the given labels of every axis, flat, the axes in the order of `labels`."""
        mean = self.mean().transpose([self.places.index(dim) for dim in labels])
        where = [[self.coords[dim].index(label) for label in wanted] for dim, wanted in labels.items()]
        return (mean[np.ix_(*where)] if where else mean).ravel()

    def _addresses(self) -> Iterator[str]:
        for labels in product(*(self.coords[dim] for dim in self.places)):
            yield self.site.format(**dict(zip(self.places, labels, strict=True)))

    def to_xarray(self) -> xr.DataArray:
        """The scores as an xarray DataArray with its labels, the rest in `attrs`."""
        import xarray as xr

        coords = {dim: list(labels) for dim, labels in self.coords.items()}
        attrs = {"site": self.site, "unit": self.unit, "method": self.method, "direction": self.direction or ""}
        return xr.DataArray(self.array, coords=coords, dims=self.dims, name=self.method or "scores", attrs=attrs)

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each example and cell: a column for each axis, the `site`, and the `value`."""
        import pandas as pd

        index = pd.MultiIndex.from_product([self.coords[dim] for dim in self.dims], names=self.dims)
        frame = index.to_frame(index=False)
        frame["site"] = list(self._addresses()) * len(self)
        frame["value"] = self.array.ravel()
        return frame

    def __repr__(self) -> str:
        shape = " × ".join(f"{size} {dim}s" for dim, size in zip(self.dims, self.array.shape, strict=True))
        best = self.top(1) if self.array.size else []
        strongest = f", strongest {best[0]}" if best else ""
        detail = ", ".join(part for part in (self.direction, self.unit) if part)
        return f"<Scores {self.method or self.site}: {shape}{f' ({detail})' if detail else ''}{strongest}>"

    def _repr_html_(self) -> str:
        from trimtab.values.tables import scores_html

        return scores_html(self)


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


def _ranked(sizes: np.ndarray) -> np.ndarray:
    """The positions of the values that are there, the largest first; equal ones in their order."""
    order = np.argsort(-sizes, kind="stable")
    return order[~np.isnan(sizes[order])]


def _sized(values: np.ndarray, by: Order) -> np.ndarray:
    if by not in ("abs", "value"):
        raise TrimtabError(f'by is "abs" or "value", got {by!r}')
    return np.abs(values) if by == "abs" else values


def _count(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise TrimtabError(f"k is how many sites, a whole number from 0 up, got {k!r}")
    return int(k)
