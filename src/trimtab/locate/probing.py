"""Probes: linear classifiers that read from a place which of its two sides an example shows.

Logistic regression (Alain and Bengio 2016, arXiv 1610.01644) on standardised features, difference of means, and
mass-mean (Marks and Tegmark 2023, arXiv 2310.06824). A probe tells what can be read at a place, not what the model
reads there (Belinkov 2022, arXiv 2102.12452): its control is shuffled labels (Hewitt and Liang 2019, arXiv 1909.03368),
its test an intervention along its direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import SiteError, TaskError, TrimtabError, nearest
from trimtab.locate.units import Spans, places, side_means
from trimtab.model.protocols import Dictionary
from trimtab.tasks.means import MeanDifference, default_read, mean_difference
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Kind = Literal["logistic", "difference", "mass_mean"]
Progress = Callable[[int, int], None]
Linear = tuple[np.ndarray, np.ndarray]
"""Directions (unit d) and biases (unit): positive where x·direction + bias > 0."""


def probe(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    read: Spans | None = None,
    kind: Kind = "logistic",
    folds: int = 5,
    C: float = 0.1,
    seed: int = 0,
    differences: MeanDifference | None = None,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """How well a linear probe tells the two sides apart at each place, on groups that it was not trained on.

    Every example gives two activations, one for each side; the score of an example is the share of its two that the
    probe of its fold gets right, so the mean over examples is balanced accuracy and 0.5 is chance. "logistic": features
    are scaled by the training folds' mean and deviation, with L2 penalty 1/`C`. "difference": along the difference of
    the means, cut half way. "mass_mean": along Σ⁻¹ of that, Σ the covariance within the sides (Ledoit–Wolf).

    Args:
        sites: a map such as `"L*.resid_post"`, each of whose units has its own probe, or a list of candidates. For maps
            of neurons "difference" is the fast kind.
        read: positions whose mean activation is a feature vector: by default the task's `read`, and the last token for
            counterfactual tasks.
        folds: of whole groups, at most as many as there are groups.
        seed: of the deal of groups to folds.
        differences: the means of both sides, where they have been made already, at the spans that are asked for.

    Returns:
        `Scores`, unit "accuracy".

    Raises TaskError with fewer than two groups.

    >>> probe(lm, task, "L*.resid_post").mean()  # doctest: +SKIP
    """
    from sklearn.model_selection import GroupKFold

    _check(kind)
    where = places(lm, sites, read, mapped=default_read(task), alone=default_read(task), dictionaries=dictionaries)
    means = side_means(lm, task, where, differences, batch_size, dictionaries)
    groups = np.array(task.groups)
    parts = min(folds, len(set(task.groups)))
    if parts < 2:
        raise TaskError(
            f"a probe is tested on groups that it was not trained on, so two groups and two folds are needed: "
            f"{task.name} has {len(set(task.groups))} group(s), and folds is {folds}"
        )
    split = list(GroupKFold(parts, shuffle=True, random_state=seed).split(groups, groups=groups))
    columns = []
    for done, block in enumerate(where.blocks, 1):
        p, n = (where.vectors(side) for side in means.sides(block))
        correct = np.empty(p.shape[:2])
        for train, test in split:
            correct[test] = _correct(fit(p[train], n[train], kind, C), p[test], n[test])
        columns.append(correct)
        if progress is not None:
            progress(done, len(where.blocks))
    options = {"kind": kind, "folds": parts, "seed": seed} | ({"C": C} if kind == "logistic" else {})
    return where.scores(where.array(columns), lm, task, sides(lm, task).positive, "probe", "accuracy", options)


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult:
    """A probe trained on one task and tested on another that shares no group with it.

    `correct` (example) is the share of each test example's two sides that it gets right, `groups` the groups of these.
    `direction` (*shape), of length 1, points to the positive side, and is the value of an edit at `site`; the positive
    side is where x·direction + `bias` > 0. `shuffled` (draw) is the balanced accuracy on the same test examples of
    probes trained with shuffled labels.
    """

    site: Site
    kind: str
    read: str
    correct: np.ndarray
    groups: tuple[str, ...]
    direction: np.ndarray
    bias: float
    shuffled: np.ndarray

    @property
    def balanced_accuracy(self) -> float:
        """The mean over both sides; 0.5 is chance."""
        return float(self.correct.mean())

    @property
    def selectivity(self) -> float:
        """Balanced accuracy less that with shuffled labels."""
        return self.balanced_accuracy - float(self.shuffled.mean())

    def __repr__(self) -> str:
        return (
            f"<ProbeResult {self.kind} at {self.site}: balanced accuracy {self.balanced_accuracy:.2f} on "
            f"{len(self.correct)} examples, {self.shuffled.mean():.2f} with shuffled labels>"
        )


def probe_accuracy(
    lm: LM,
    train: Task,
    test: Task,
    site: Site | str,
    *,
    read: str | None = None,
    kind: Kind = "logistic",
    C: float = 0.1,
    shuffles: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> ProbeResult:
    """A probe trained at one site on one task, and how well it does on another, against shuffled labels.

    Arguments as in `probe`; `shuffles` is how many probes are trained with the labels of half of the training examples
    swapped. Raises TaskError where the two tasks share a group, SiteError for several sites.
    """
    _check(kind)
    if shared := sorted(set(train.groups) & set(test.groups)):
        raise TaskError(f"{train.name} and {test.name} share the group {shared[0]!r}: use parts of task.split()")
    found = lm.sites(site)
    if len(found) != 1:
        raise SiteError(f"one probe reads one site, and {site} names {len(found)}: use probe for a map")
    read = default_read(train) if read is None else read
    options = {"read": read, "batch_size": batch_size, "dictionaries": dictionaries}
    ours, theirs = (mean_difference(lm, task, found, **options) for task in (train, test))
    shape = ours.positive[found[0]].shape[1:]
    p, n, test_p, test_n = (
        side[found[0]].reshape(len(side[found[0]]), 1, -1)
        for side in (ours.positive, ours.negative, theirs.positive, theirs.negative)
    )
    weight, bias = fit(p, n, kind, C)
    length = float(np.linalg.norm(weight)) or 1.0
    rng = np.random.default_rng(seed)
    shuffled = []
    for _ in range(shuffles):
        flip = rng.permutation(np.arange(len(train)) % 2 == 0)[:, None, None]
        probe_ = fit(np.where(flip, n, p), np.where(flip, p, n), kind, C)
        shuffled.append(_correct(probe_, test_p, test_n).mean())
    return ProbeResult(
        site=found[0],
        kind=kind,
        read=str(found[0].at or read),
        correct=_correct((weight, bias), test_p, test_n)[:, 0],
        groups=test.groups,
        direction=(weight[0] / length).reshape(shape).astype(np.float32),
        bias=float(bias[0]) / length,
        shuffled=np.array(shuffled),
    )


def fit(
    positive: Float[np.ndarray, "example unit d"], negative: Float[np.ndarray, "example unit d"], kind: Kind, C: float
) -> Linear:
    """A probe for each unit, from both sides of the training examples."""
    p, n = positive.astype(np.float64), negative.astype(np.float64)
    if kind == "logistic":
        fitted = [_logistic(p[:, unit], n[:, unit], C) for unit in range(p.shape[1])]
        return np.stack([w for w, _ in fitted]), np.array([b for _, b in fitted])
    weight = p.mean(0) - n.mean(0)
    if kind == "mass_mean":
        weight = np.stack([_whitened(p[:, unit], n[:, unit], w) for unit, w in enumerate(weight)])
    return weight, -np.einsum("ud,ud->u", (p.mean(0) + n.mean(0)) / 2, weight)


def _logistic(p: np.ndarray, n: np.ndarray, C: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.concatenate([p, n]))
    x = scaler.transform(np.concatenate([p, n]))
    model = LogisticRegression(C=C, max_iter=2000).fit(x, np.repeat([1, 0], [len(p), len(n)]))
    weight = model.coef_[0] / scaler.scale_
    return weight, float(model.intercept_[0] - weight @ scaler.mean_)


def _whitened(p: np.ndarray, n: np.ndarray, difference: np.ndarray) -> np.ndarray:
    from sklearn.covariance import LedoitWolf

    within = np.concatenate([p - p.mean(0), n - n.mean(0)])
    covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
    return np.linalg.lstsq(covariance, difference, rcond=None)[0]


def _correct(probe_: Linear, p: np.ndarray, n: np.ndarray) -> Float[np.ndarray, "example unit"]:
    """The share of each example's two sides that is on its side; on the line counts half."""
    weight, bias = probe_
    right, wrong = (np.sign(np.einsum("eud,ud->eu", side.astype(np.float64), weight) + bias) for side in (p, n))
    return (2 + right - wrong) / 4


def _check(kind: str) -> None:
    kinds: Sequence[str] = ("logistic", "difference", "mass_mean")
    if kind not in kinds:
        raise TrimtabError(f'no probe "{kind}"{nearest(str(kind), kinds)}: there are {", ".join(kinds)}')
