"""Scores: what every localising method returns. Effects for each example, labelled by where in the model they are.

It reads and ranks numbers and knows nothing of how they came about.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Self, TypeAlias, cast

import numpy as np
from typing_extensions import TypeVar

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.bootstrap import mean_interval, mean_over_examples
from trimtab.values.provenance import Provenance, plain
from trimtab.values.ranks import hypergeometric_tail, ranked, spearman
from trimtab.values.saved import Saved
from trimtab.values.site import Edge, Site

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from trimtab.figures.figure import Figure

Label = str | int
Order = Literal["abs", "high", "low"]
By = Literal["abs", "high", "low", "value"]
"""How cells are ranked; "value" is another name of "high"."""
Place = TypeVar("Place", bound=Site | Edge, default=Site, covariant=True)
"""What the cells of scores are: sites, or edges where their address has "->" in it."""


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
class Scores(Saved, Generic[Place]):
    """Effects of shape (example, …), one for each example and each place in the model.

    `dims` names the axes: "example" first, then any of layer, head, neuron, channel, expert, feature, pos, span.
    `coords` gives each axis its labels. `site` is the address with an axis in braces wherever its label goes:
    `L{layer}.head[{head}]@{span}`. An address with "->" is that of edges, `L{layer}.head[{head}]->{receiver}`: `top`,
    `sites` and `site_at` then give Edges. Such scores are typed `Scores[Edge]`; what takes either takes `AnyScores`.
    `unit` is what the numbers are in, `method` what made them and with which `options`, `direction` whether clean
    values were put into the corrupt run ("denoise"), the other way round ("noise"), or neither. `groups` labels the
    examples that belong together. `order` says which cells are the strongest: those of largest mean in absolute value
    (effects), the highest, or the lowest (a rank, an entropy); whatever ranks goes by it unless it is told another.
    An effect that is not defined is NaN, and is left out of every summary.

    >>> effects = np.array([[[0.1, -2.0], [0.0, 0.5]]])
    >>> scores = Scores(effects, ("example", "layer", "head"), {}, "L{layer}.head[{head}]", unit="logits")
    >>> scores.top(2)
    [Site.parse("L0.head[1]"), Site.parse("L1.head[1]")]
    """

    KIND: ClassVar[str] = "scores"
    LATER: ClassVar[Mapping[str, object]] = {"order": "abs"}

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
    order: Order = "abs"

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
        if self.order not in ("abs", "high", "low"):
            raise TrimtabError(f'order is "abs", "high" or "low", got {self.order!r}')
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
        self, level: float = 0.95, samples: int = 2000, seed: int = 0, groups: Sequence[Label] | None = None
    ) -> Interval:
        """The interval of `mean()`, over whole groups where there are groups (given, or the scores' own).

        A bootstrap where there are 30 groups or more, Student's with a cluster-robust variance where there are fewer
        (`bootstrap.mean_interval`). With one example, or one group, both ends are NaN: that says nothing of others.
        """
        groups = self.groups if groups is None else groups
        low, high = mean_interval(self.array, level=level, samples=samples, seed=seed, groups=groups)
        return Interval(low, high, level)

    def site_at(self, **coords: Label) -> Place:
        """The site or edge at one label of each axis: `scores.site_at(layer=9, head=6)`. SiteError for a label that
        is not there."""
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
        return self._parse(self.site.format(**coords))

    def sites(self) -> Iterator[Place]:
        """Every site or edge, in the order of `mean().ravel()`."""
        return map(self._parse, self._addresses())

    def strength(self, by: By | None = None) -> np.ndarray:
        """`mean()` turned so that the larger, the stronger: its absolute value, the mean itself ("high"), or less it
        ("low"); by default as the scores' own `order` has it."""
        return sized(self.mean(), self.order if by is None else by)

    def top(self, k: int, by: By | None = None) -> list[Place]:
        """The `k` strongest sites or edges, the strongest first; fewer where fewer have a value. `by` as in
        `strength`."""
        return [self.site_at(**labels) for labels, _ in self.ranking(k, by)]

    def ranking(self, k: int, by: By | None = None) -> list[tuple[dict[str, Label], np.ndarray]]:
        """The cells that `top` names: their labels by axis, and the effect of every example (example)."""
        cells = ranked(self.strength(by).ravel())[: _count(k)]
        found = []
        for cell in cells:
            at = np.unravel_index(cell, self.array.shape[1:])
            labels = {dim: self.coords[dim][int(i)] for dim, i in zip(self.places, at, strict=True)}
            found.append((labels, self.array[(slice(None), *at)]))
        return found

    def mask(self, threshold: float, by: By | None = None) -> np.ndarray:
        """Where the mean is at least `threshold`, in absolute value or as it is, or at most ("low"): booleans of the
        shape of `mean()`."""
        order = self.order if by is None else by
        return self.strength(order) >= (-threshold if order == "low" else threshold)

    def sel(self, **labels: Label | Sequence[Label] | slice) -> Self:
        """Some of the scores: `sel(layer=9)` fixes an axis, which goes into the address; `sel(layer=[8, 9])` and
        `sel(layer=slice(8, 12))` keep some labels of it, the ends of a slice both included; "example" likewise.

        SiteError for a label or an axis that is not there.

        >>> effects = np.array([[[0.1, -2.0], [0.0, 0.5]]])
        >>> Scores(effects, ("example", "layer", "head"), {}, "L{layer}.head[{head}]").sel(layer=1).site
        'L1.head[{head}]'
        """
        from trimtab.values.slices import select

        return cast("Self", select(self, labels))

    def over(self, dim: str, how: Literal["max", "mean", "sum"] = "max") -> Self:
        """The scores without one axis: of each cell along it the label whose mean is strongest ("max"), or every
        example's mean or sum; the address is that of the whole, without the part that the axis stood for.

        A maximum is chosen by what it then reports: its interval is too hopeful, and more so the longer the axis.
        SiteError where the address has no meaning without the axis (a layer).
        """
        from trimtab.values.slices import reduce

        return cast("Self", reduce(self, dim, how))

    def compare(self, other: AnyScores, k: int = 10, by: By | None = None) -> Comparison:
        """How this and other scores rank the cells that both have, matched by label, each from its own strongest to
        its weakest unless `by` ranks both; cells without a value are left out."""
        if set(self.places) != set(other.places):
            raise TrimtabError(f"only scores over the same axes can be compared, got {self.places} and {other.places}")
        shared = [[label for label in self.coords[dim] if label in set(other.coords[dim])] for dim in self.places]
        labels = dict(zip(self.places, shared, strict=True))
        ours, theirs = (sized(s.means_at(labels), s.order if by is None else by) for s in (self, other))
        present = ~(np.isnan(ours) | np.isnan(theirs))
        ours, theirs = ours[present], theirs[present]
        cells, k = len(ours), min(_count(k), len(ours))
        if not k:
            raise TrimtabError("these scores have no cell in common that has a value in both: their labels do not meet")
        common = len(set(ranked(ours)[:k].tolist()) & set(ranked(theirs)[:k].tolist()))
        return Comparison(spearman(ours, theirs), common / k, hypergeometric_tail(common, cells, k, k), k, cells)

    def means_at(self, labels: Mapping[str, Sequence[Label]]) -> np.ndarray:
        """The means over examples at the given labels of every axis, flat, the axes in the order of `labels`."""
        mean = self.mean().transpose([self.places.index(dim) for dim in labels])
        where = [[self.coords[dim].index(label) for label in wanted] for dim, wanted in labels.items()]
        return (mean[np.ix_(*where)] if where else mean).ravel()

    def summary(self, k: int | None = 20, by: By | None = None, level: float = 0.95) -> pd.DataFrame:
        """The `k` strongest cells (None: all that have a value) as a table: the axes, `site`, `mean`, the ends `low`
        and `high` of its interval, and how many examples have a value, `n`."""
        from trimtab.values.tables import summary

        return summary(self, k, by, level)

    def plot(self, kind: Literal["map", "lines", "bars"] | None = None) -> Figure:
        """A figure of the means over examples, which shows itself in a notebook and saves itself as .svg or .html.

        Two axes make a map of coloured cells, one axis of layers or positions a line with its intervals, any other
        ranked bars; a third axis makes a map for each of its labels; more cells than can be seen (neurons) are drawn as
        their spread in each layer and the strongest of them. `kind` asks for one of these.
        """
        from trimtab.values.plots import plot

        return plot(self, kind)

    def _parse(self, address: str) -> Place:
        return cast("Place", (Edge if "->" in address else Site).parse(address))

    def _addresses(self) -> Iterator[str]:
        for labels in product(*(self.coords[dim] for dim in self.places)):
            yield self.site.format(**dict(zip(self.places, labels, strict=True)))

    def to_xarray(self) -> xr.DataArray:
        """The scores as an xarray DataArray with its labels, the rest in `attrs`."""
        import xarray as xr

        coords = {dim: list(labels) for dim, labels in self.coords.items()}
        attrs = {
            "site": self.site,
            "unit": self.unit,
            "method": self.method,
            "direction": self.direction or "",
            "order": self.order,
        }
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


AnyScores: TypeAlias = Scores[Site | Edge]
"""Scores of sites or of edges."""


def sized(values: np.ndarray, by: By) -> np.ndarray:
    """Values turned so that the larger, the stronger."""
    if by not in ("abs", "high", "low", "value"):
        raise TrimtabError(f'by is "abs", "high" (or "value") or "low", got {by!r}')
    return np.abs(values) if by == "abs" else -values if by == "low" else values


def _count(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise TrimtabError(f"k is how many sites, a whole number from 0 up, got {k!r}")
    return int(k)
