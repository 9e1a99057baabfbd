"""One probe at one site, tested on groups that it has not seen, as a value whose direction can be intervened on.

What can be read is not what is used (Belinkov 2022, arXiv 2102.12452): `LinearProbe.edit` adds the direction and
`LinearProbe.erase` takes it out, and only what these do to the task's number says that the model reads it (Ravfogel et
al. 2020, arXiv 2004.07667; Elazar et al. 2021, arXiv 2006.00995).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.classifiers import Classifier, Kind, Linear, check_kind, fit
from trimtab.locate.folds import crossed, group_split, shuffled_labels, true_labels
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_fit
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import provenance
from trimtab.tasks.means import default_read, mean_difference
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.findings import Estimate
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.shares import share_of
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

LINEAR: tuple[str, ...] = ("logistic", "ridge", "difference", "mass_mean")
"""Kinds that have a direction."""


@planned_by(plan_fit)
def fit_probe(
    lm: LM,
    train: Task,
    site: Site | str,
    *,
    test: Task | None = None,
    read: str | None = None,
    kind: Kind = "logistic",
    C: float = 0.1,
    folds: int = 5,
    shuffles: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> LinearProbe:
    """A linear probe trained at one site on all of a task, as a value to save and to intervene with.

    Its `metrics` are "balanced accuracy" and "with shuffled labels": on `test`, which shares no group with `train`, or
    without one by cross-validation over whole groups of `train`. Arguments otherwise as in `probe`; `shuffles` is how
    many probes are trained with the sides of half of the examples swapped, and the interval of their mean accuracy is
    over these draws.

    Raises SiteError for several sites, TaskError where the tasks share a group or there are fewer than two,
    TrimtabError for "mlp", which has no direction.

    >>> found = fit_probe(lm, task, "L12.resid_post")  # doctest: +SKIP
    >>> lm.generate("The film was", found.edit(2.0))  # doctest: +SKIP
    """
    check_kind(kind, LINEAR)
    site = one_site(lm, site)
    read = default_read(train) if read is None else read
    x = features(lm, train, site, read, batch_size, dictionaries)
    if test is None:
        rng, true, split = np.random.default_rng(seed), true_labels(len(train)), group_split(train, folds, seed)
        labels = [true, *(shuffled_labels(len(train), rng) for _ in range(shuffles))]
        correct, *null = (crossed(x, y, true, split, lambda r, z: fit(r, z, kind, C=C))[:, 0] for y in labels)
        groups = train.groups
    else:
        check_apart(train, test)
        correct, null = _tested(x, features(lm, test, site, read, batch_size, dictionaries), kind, C, 1, shuffles, seed)
        groups = test.groups
    metrics = {"balanced accuracy": share_of(correct, groups)}
    if len(null):
        # all examples of a draw share one probe and err together: a draw is what is counted
        metrics["with shuffled labels"] = Estimate.of(np.mean(null, axis=1))
    made = linear_probe(lm, train, site, read, x, fit(*_rows(x), kind, C=C), kind)
    options = {"task": train.name, "site": site, "read": read, "kind": kind, "C": C, "seed": seed}
    known = provenance(lm, sides(lm, train).positive, "fit_probe", options, seed=seed)
    return made.with_(metrics=metrics, provenance=known)


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult:
    """A probe trained on one task and tested on another that shares no group with it.

    `correct` (example) is the share of each test example's two sides that it gets right, `groups` the groups of these.
    `shuffled` (draw) is the balanced accuracy on the same test examples of probes trained with shuffled labels. `probe`
    is what was trained; None where that has no direction: a network, or two sides that do not differ at the site.
    """

    site: Site
    kind: str
    read: str
    correct: np.ndarray
    groups: tuple[str, ...]
    shuffled: np.ndarray
    probe: LinearProbe | None

    @property
    def balanced_accuracy(self) -> float:
        """The mean over both sides; 0.5 is chance."""
        return float(self.correct.mean())

    @property
    def selectivity(self) -> float:
        """Balanced accuracy less that with shuffled labels."""
        return self.balanced_accuracy - float(self.shuffled.mean())

    @property
    def direction(self) -> np.ndarray:
        """(*shape) of length 1, towards the positive side: the value of an edit at `site`."""
        return self._linear().direction

    @property
    def bias(self) -> float:
        """The positive side is where x·direction + bias > 0."""
        return self._linear().bias

    def _linear(self) -> LinearProbe:
        if self.probe is not None:
            return self.probe
        if self.kind in LINEAR:
            raise TrimtabError(
                f"a probe of {self.site} has no direction: the two sides do not differ there at {self.read}; read "
                "another site, or other positions of it"
            )
        raise TrimtabError(f"a network has no direction: probe {self.site} with a linear kind, {', '.join(LINEAR)}")

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
    hidden: int = 16,
    shuffles: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> ProbeResult:
    """A probe trained at one site on one task, and how well it does on another, against shuffled labels.

    Arguments as in `probe`; `shuffles` is how many probes are trained with the labels of half of the training examples
    swapped. Raises TaskError where the two tasks share a group, SiteError for several sites.
    """
    check_kind(kind)
    check_apart(train, test)
    site = one_site(lm, site)
    read = default_read(train) if read is None else read
    ours, theirs = (features(lm, task, site, read, batch_size, dictionaries) for task in (train, test))
    correct, null = _tested(ours, theirs, kind, C, hidden, shuffles, seed)
    fitted = fit(*_rows(ours), kind, C=C, hidden=hidden, seed=seed)
    directed = isinstance(fitted, Linear) and fitted.weight.any()
    return ProbeResult(
        site=site,
        kind=kind,
        read=str(site.at or read),
        correct=correct,
        groups=test.groups,
        shuffled=np.mean(null, axis=1) if len(null) else np.full(1, np.nan),
        probe=linear_probe(lm, train, site, read, ours, fitted, kind) if directed else None,
    )


def one_site(lm: LM, site: Site | str) -> Site:
    """The one site that is named. SiteError for several."""
    found = lm.sites(site)
    if len(found) != 1:
        raise SiteError(f"one probe reads one site, and {site} names {len(found)}: use probe for a map")
    return found[0]


def check_apart(train: Task, test: Task) -> None:
    """TaskError where two tasks share a group."""
    if shared := sorted(set(train.groups) & set(test.groups)):
        raise TaskError(f"{train.name} and {test.name} share the group {shared[0]!r}: use parts of task.split()")


def features(
    lm: LM,
    task: Task,
    site: Site,
    read: str,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Float[np.ndarray, "2 example 1 d"]:
    """Mean activations of both sides of every example at one site."""
    means = mean_difference(lm, task, [site], read=read, batch_size=batch_size, dictionaries=dictionaries)
    return np.stack([side.reshape(len(task), 1, -1) for side in means.sides(site)])


def linear_probe(
    lm: LM, train: Task, site: Site, read: str, x: Float[np.ndarray, "2 example 1 d"], fitted: Classifier, kind: str
) -> LinearProbe:
    """A fitted direction as a value, in the shape of its site."""
    assert isinstance(fitted, Linear)
    weight = fitted.weight[0]
    length = float(np.linalg.norm(weight)) or 1.0
    positive, negative = fitted.margins(x.reshape(-1, *x.shape[2:])).reshape(2, -1) / length
    shape = (
        (-1,)
        if site.view is not None
        else lm.shape(site)
        if site.index is None
        else (len(site.index), *lm.shape(site)[1:])
    )
    return LinearProbe(
        site,
        (weight / length).reshape(shape).astype(np.float32),
        float(fitted.bias[0]) / length,
        float(positive.mean() - negative.mean()),
        kind=kind,
        read=str(site.at or read),
        task=train.name,
        poles=train.poles,
    )


def _tested(
    ours: np.ndarray, theirs: np.ndarray, kind: Kind, C: float, hidden: int, shuffles: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(example) and (shuffle example) what is right of the second features after training on the first."""
    rng, n = np.random.default_rng(seed), ours.shape[1]
    labels = [true_labels(n), *(shuffled_labels(n, rng) for _ in range(shuffles))]
    x, m = np.concatenate([ours, theirs], 1), theirs.shape[1]
    asked = true_labels(n + m)
    split = [(np.arange(n), np.arange(n, n + m))]
    found = []
    for taught in labels:
        padded = np.concatenate([taught, true_labels(m)], 1)
        correct = crossed(x, padded, asked, split, lambda r, y: fit(r, y, kind, C=C, hidden=hidden, seed=seed))
        found.append(correct[n:, 0])
    return found[0], np.array(found[1:])


def _rows(x: Float[np.ndarray, "2 example 1 d"]) -> tuple[np.ndarray, np.ndarray]:
    """(row 1 d) features and (row) labels."""
    return x.reshape(-1, *x.shape[2:]), true_labels(x.shape[1]).ravel()
