"""Scoring monitors: what one is worth on examples that it has not seen, with intervals over whole groups.

A rate of few errors has no normal interval, and none at all by resampling where there are no errors. Intervals are
Clopper and Pearson's of as many independent draws as scatter like the groups do: Korn and Graubard 1998, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey data", Survey Methodology
24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import TaskError
from trimtab.locate.folds import true_labels
from trimtab.locate.monitors import token_margins
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_scoring
from trimtab.locate.probes import features
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import provenance
from trimtab.tasks.groups import texts_of
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.content import digest_of
from trimtab.values.findings import Estimate
from trimtab.values.monitor import GroupReport, Monitor, MonitorReport, auroc, bins_of, calibration_error
from trimtab.values.shares import share_interval

if TYPE_CHECKING:
    from trimtab.model.lm import LM

ALIKE = 1e-9
"""Scatter between groups that is rounding and no more."""


@planned_by(plan_scoring)
def score_monitor(
    lm: LM,
    monitor: Monitor,
    task: Task,
    *,
    bins: int = 10,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> MonitorReport:
    """What a monitor is worth on examples of groups that it has not seen: give it the test part of a split.

    AUROC, expected calibration error over `bins` beside what chance alone makes it, balanced accuracy, true and false
    positive rate at the monitor's threshold, and both rates where texts are looked at after every token. Intervals are
    over whole groups, inside 0 and 1, and never of no width: where all groups are alike, each counts as one draw. That
    of the calibration error is wide enough to have 0 in it for a monitor whose probabilities are right.

    Raises TaskError for a text that the monitor was fitted or calibrated on.

    >>> score_monitor(lm, monitor, task.split().test).auroc  # doctest: +SKIP
    """
    _check_unseen(monitor, task)
    x = features(lm, task, monitor.site, monitor.probe.read, batch_size, dictionaries)
    p, n = monitor.margin(x.reshape(*x.shape[:2], *monitor.probe.direction.shape))
    found, alarmed = monitor.flags(p).astype(float), monitor.flags(n).astype(float)
    error, by_chance = _calibration(monitor.probability(np.stack([p, n])), task.groups, bins)
    both = sides(lm, task)
    streamed = (_streamed(lm, monitor, side, batch_size, dictionaries) for side in (both.positive, both.negative))
    stream_found, stream_alarmed = (_rate(flagged, task.groups) for flagged in streamed)
    return MonitorReport(
        f"{monitor.probe.task} at {monitor.site}",
        task.name,
        p,
        n,
        _estimate(lambda rows: auroc(p[rows], n[rows]), task.groups),
        error,
        by_chance,
        _rate((1 + found - alarmed) / 2, task.groups),
        _rate(found, task.groups),
        _rate(alarmed, task.groups),
        stream_found,
        stream_alarmed,
        _by_group(task.groups, found, alarmed),
        bins,
        task.groups,
        provenance(lm, both.positive, "score_monitor", {"task": task.name, "bins": bins}),
    )


def _check_unseen(monitor: Monitor, task: Task) -> None:
    for text in dict.fromkeys(text for example in task.examples for text in texts_of(example)):
        if digest_of(text) in monitor.seen:
            shown = text if len(text) <= 60 else f"{text[:57]}…"
            raise TaskError(
                f"this monitor was fitted or calibrated on a text of {task.name}, {shown!r}: score it on the test part "
                "of task.split()"
            )


def _by_group(
    groups: tuple[str, ...], found: Float[np.ndarray, "example"], alarmed: Float[np.ndarray, "example"]
) -> tuple[GroupReport, ...]:
    """Each group alone, from whether the positive and the negative side of each example were flagged."""
    parts = []
    for group in dict.fromkeys(groups):
        which = np.array([own == group for own in groups])
        rates = float(found[which].mean()), float(alarmed[which].mean())
        parts.append(GroupReport(group, int(which.sum()), (1 + rates[0] - rates[1]) / 2, *rates))
    return tuple(parts)


def _streamed(
    lm: LM, monitor: Monitor, texts: Prompts, batch_size: int, dictionaries: Mapping[str, Dictionary] | None
) -> np.ndarray:
    """(text) 1 where it is flagged anywhere when it is looked at after every token, else 0; NaN where there is no
    threshold for that."""
    n = len(texts)
    if monitor.stream_threshold is None:
        return np.full(n, np.nan)
    weight = np.repeat(monitor.probe.direction.astype(float).reshape(1, -1), n, 0)
    bias = np.full(n, monitor.probe.bias)
    margins = token_margins(lm, texts, monitor, weight, bias, batch_size, dictionaries)
    return np.any(monitor.stream_flags(margins), axis=1).astype(float)


def _calibration(
    probability: Float[np.ndarray, "2 example"], groups: tuple[str, ...], bins: int, samples: int = 1000, seed: int = 0
) -> tuple[Estimate, float]:
    """The calibration error of both sides' probabilities, and what it would be on average if they were right.

    Sums of absolute gaps are biased up, and resampling adds as much again. What is resampled is therefore each bin's
    gap about the one found: |error − true error| is at most Σ |gap − true gap|, and the interval is as long as that.
    """
    from scipy.stats import t as student

    n, rng = probability.shape[1], np.random.default_rng(seed)
    error = calibration_error(probability.ravel(), true_labels(n).ravel(), bins)
    bin_of = bins_of(probability, bins).ravel()
    drawn = rng.random((samples, 2 * n)) < probability.ravel()
    chance = [calibration_error(probability.ravel(), labels, bins) for labels in drawn.astype(int)]
    names, members = np.unique(np.array(groups), return_inverse=True)
    g = len(names)
    if g < 2:
        return Estimate(error, np.nan, np.nan, n), float(np.mean(chance))
    sums = np.zeros((g, bins))  # of each group the gaps in each bin; a group weighs by its size
    np.add.at(sums, (np.tile(members, 2), bin_of), (probability - true_labels(n)).ravel())
    sizes = 2.0 * np.bincount(members)
    times = rng.multinomial(g, np.full(g, 1 / g), size=samples)
    moved = np.abs((times @ sums) / (times @ sizes)[:, None] - sums.sum(0) / sizes.sum()).sum(1)
    # so few groups scatter too little when they are resampled
    wider = np.sqrt(g / (g - 1)) * student.ppf(0.975, g - 1) / student.ppf(0.975, np.inf)
    reach = float(np.quantile(moved, 0.95) * wider)
    ends = (max(0.0, error - reach), min(1.0, error + reach)) if reach > ALIKE else share_interval(error * g, g)
    return Estimate(error, *ends, n), float(np.mean(chance))


def _rate(values: Float[np.ndarray, "example"], groups: tuple[str, ...]) -> Estimate:
    """The mean of numbers from 0 to 1; NaN where there are none."""
    if np.isnan(values).any():
        return Estimate(np.nan, np.nan, np.nan, 0)
    return _estimate(lambda rows: float(values[rows].mean()), groups)


def _estimate(statistic: Callable[[np.ndarray], float], groups: tuple[str, ...]) -> Estimate:
    """A share s, or an AUROC, of examples, given by their numbers, with its interval over whole groups.

    The variance that leaving out one group after the other shows is that of n* draws, s(1 − s)/n* (of n pairs of sides
    no AUROC has a larger one than s(1 − s)/n). n* is lessened for a variance that is known from few groups, is at most
    the number of examples, and is that of the groups where the variance is 0.
    """
    from scipy.stats import t as student

    labels, n = np.array(groups), len(groups)
    members = [np.flatnonzero(labels == name) for name in dict.fromkeys(groups)]
    every, g = np.arange(n), len(members)
    share = statistic(every)
    if g < 2:
        return Estimate(share, np.nan, np.nan, n)
    left_out = np.array([statistic(np.setdiff1d(every, part)) for part in members])
    variance = float((g - 1) / g * ((left_out - left_out.mean()) ** 2).sum())
    draws = float(g)
    if variance > ALIKE**2:
        fewer = student.ppf(0.975, n - 1) / student.ppf(0.975, g - 1)
        draws = float(min(n, share * (1 - share) / variance * fewer**2))
    return Estimate(share, *share_interval(share * draws, draws), n)
