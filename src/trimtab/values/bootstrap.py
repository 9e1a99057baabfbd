"""Intervals of a mean and of a ratio over examples, by group where examples belong together. Pure numpy.

Examples made from one template, or one fact asked in several ways, are not independent: resampling whole groups keeps
the interval honest (Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.errors import TrimtabError

_BLOCK = 4096  # columns resampled at a time, so that memory stays at samples × block


def mean_over_examples(values: np.ndarray) -> np.ndarray:
    """The mean over axis 0, leaving NaN out; NaN where nothing is left."""
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def bootstrap_interval(
    values: np.ndarray, *, level: float, samples: int, seed: int, groups: Sequence[object] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of `mean_over_examples`: lower and upper ends, of the shape of one example.

    `values` has shape (example, …), `groups` one label for each example (None: each its own). With fewer than two
    groups that have a value there is nothing to resample, and both ends are NaN.
    """
    _check(level, samples)
    n, shape = values.shape[0], values.shape[1:]
    flat = values.reshape(n, -1).astype(np.float64)
    sums, counts = _by_group(flat, groups)
    draws = np.random.default_rng(seed).integers(0, len(sums), size=(samples, len(sums)))
    times = np.stack([np.bincount(draw, minlength=len(sums)) for draw in draws]).astype(np.float64)
    ends = np.full((2, flat.shape[1]), np.nan)
    enough = (counts > 0).sum(axis=0) >= 2
    for start in range(0, flat.shape[1], _BLOCK):
        cells = np.flatnonzero(enough[start : start + _BLOCK]) + start
        if cells.size:
            count = times @ counts[:, cells]
            means = np.divide(times @ sums[:, cells], count, out=np.full(count.shape, np.nan), where=count > 0)
            ends[:, cells] = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0].reshape(shape), ends[1].reshape(shape)


FEW = 30
"""Groups below which resampling them gives intervals that are too narrow."""


def mean_interval(
    values: np.ndarray,
    *,
    level: float = 0.95,
    groups: Sequence[object] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the means over examples of values (example, …) that come in groups: both ends, each (…).

    With 30 groups or more it is the group bootstrap. Fewer groups are too few to resample (a percentile interval of
    95 % then misses the mean 10 to 25 % of the time), so it is Student's with the cluster-robust variance,
    m ± t(G − 1) · √(G/(G − 1) · Σ_g (Σ_{i in g} (x_i − m))²)/n (Cameron, Gelbach and Miller 2008). NaN with one group.
    """
    from scipy.stats import t as student

    _check(level, samples)
    values = np.asarray(values, dtype=np.float64)
    flat, shape = values.reshape(len(values), -1), values.shape[1:]
    sums, counts = _by_group(flat, groups)
    g = (counts > 0).sum(axis=0)
    low, high = np.full((2, flat.shape[1]), np.nan)
    if (many := g >= FEW).any():
        low[many], high[many] = bootstrap_interval(
            flat[:, many], level=level, samples=samples, seed=seed, groups=groups
        )
    if (few := (g >= 2) & ~many).any():
        n, g = counts[:, few].sum(axis=0), g[few]
        mean = sums[:, few].sum(axis=0) / n
        error = np.sqrt(g / (g - 1) * ((sums[:, few] - counts[:, few] * mean) ** 2).sum(axis=0)) / n
        reach = student.ppf((1 + level) / 2, g - 1) * error
        low[few], high[few] = mean - reach, mean + reach
    return low.reshape(shape), high.reshape(shape)


def ratio_interval(
    values: np.ndarray,
    of: np.ndarray,
    *,
    level: float = 0.95,
    groups: Sequence[object] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ratio R = Σ x/Σ y of values x (example, …) to one y of each example, and both ends of its interval, each (…).

    An example without x or without y is in neither sum. Whole groups are resampled, x and y together, where there are
    30 or more; with fewer it is Student's with the cluster-robust variance of the linearised ratio,
    R ± t(G − 1) · √(G/(G − 1) · Σ_g (Σ_{i in g} (x_i − R y_i))²)/|Σ y| (Cochran 1977, chapter 6). Ends are NaN with one
    group, R too where Σ y is 0.
    """
    from scipy.stats import t as student

    _check(level, samples)
    values, of = np.asarray(values, dtype=np.float64), np.asarray(of, dtype=np.float64)
    flat, shape = values.reshape(len(values), -1), values.shape[1:]
    both = ~np.isnan(flat) & ~np.isnan(of)[:, None]
    tops, counts = _by_group(np.where(both, flat, np.nan), groups)
    bottoms, _ = _by_group(np.where(both, of[:, None], np.nan), groups)
    ratio, whole = _over(tops.sum(axis=0), bottoms.sum(axis=0)), bottoms.sum(axis=0)
    low, high = np.full((2, flat.shape[1]), np.nan)
    g = (counts > 0).sum(axis=0)
    draws = np.random.default_rng(seed).multinomial(len(tops), np.full(len(tops), 1 / len(tops)), size=samples)
    for start in range(0, flat.shape[1], _BLOCK):
        cells = np.flatnonzero((g >= FEW)[start : start + _BLOCK]) + start
        if cells.size:
            ratios = _over(draws @ tops[:, cells], draws @ bottoms[:, cells])
            low[cells], high[cells] = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if (few := (g >= 2) & (g < FEW) & ~np.isnan(ratio)).any():
        g, apart = g[few], tops[:, few] - bottoms[:, few] * ratio[few]
        error = np.sqrt(g / (g - 1) * (apart**2).sum(axis=0)) / np.abs(whole[few])
        reach = student.ppf((1 + level) / 2, g - 1) * error
        low[few], high[few] = ratio[few] - reach, ratio[few] + reach
    return ratio.reshape(shape), low.reshape(shape), high.reshape(shape)


def _over(tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
    """Their ratio; NaN where the lower number is 0."""
    return np.divide(tops, bottoms, out=np.full(np.shape(tops), np.nan), where=bottoms != 0)


def _check(level: float, samples: int) -> None:
    if not 0 < level < 1:
        raise TrimtabError(f"level is a probability between 0 and 1, such as 0.95, got {level!r}")
    if samples < 1:
        raise TrimtabError(f"samples is the number of resamples, at least 1, got {samples!r}")


def _by_group(flat: np.ndarray, groups: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """For each group and column: the sum of the values present, and how many they are."""
    present = ~np.isnan(flat)
    filled = np.where(present, flat, 0.0)
    if groups is None:
        return filled, present.astype(np.float64)
    if len(groups) != len(flat):
        raise TrimtabError(f"groups must have one label for each of the {len(flat)} examples, got {len(groups)}")
    names = {label: number for number, label in enumerate(dict.fromkeys(groups))}
    member = np.zeros((len(names), len(flat)))
    member[[names[label] for label in groups], np.arange(len(flat))] = 1.0
    return member @ filled, member @ present
