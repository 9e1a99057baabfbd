"""Fitting monitors: directions that are watched while a model reads and writes, with thresholds and a calibration.

A linear probe with a threshold at a chosen rate of false alarms and a calibration (Platt 1999; Zadrozny and Elkan 2002,
doi:10.1145/775047.775151); on probes that watch for deception and harm, Goldowsky-Dill et al. 2025, arXiv 2502.03407.
What a monitor is worth is for `monitor_report`, what it sees while a model writes for `watching`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.locate.classifiers import Classifier, Kind, Linear, check_kind, fit
from trimtab.locate.folds import group_split, true_labels
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_fit
from trimtab.locate.probes import LINEAR, check_apart, features, linear_probe, one_site
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import provenance
from trimtab.tasks.groups import texts_of
from trimtab.tasks.means import batches, default_read
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.content import digest_of
from trimtab.values.monitor import Calibration, Monitor
from trimtab.values.scope import Scope
from trimtab.values.shares import share_of
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

CalibrationKind = Literal["platt", "isotonic"]


@planned_by(plan_fit)
def fit_monitor(
    lm: LM,
    train: Task,
    site: Site | str,
    *,
    validation: Task | None = None,
    read: str | None = None,
    kind: Kind = "logistic",
    calibration: CalibrationKind = "platt",
    false_positive_rate: float = 0.05,
    least_tokens: int = 8,
    C: float = 0.1,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Monitor:
    """A monitor of one site for the positive side of a contrast task, such as "toxicity", "refusal" or "truth".

    Args:
        site: one site without positions; every token that is generated is read there.
        validation: the examples that threshold and calibration come from, of other groups; without them each group of
            `train` is judged by a probe that was trained without it.
        read: the positions of a text whose mean activation is its feature: by default the task's `read`.
        kind: of the direction, as in `classifiers.fit`: "logistic", "ridge", "difference" or "mass_mean".
        calibration: "platt" for a few dozen examples, "isotonic" for many hundreds.
        false_positive_rate: the largest share of negative sides (of those examples) above the threshold. A second
            threshold, for texts that are looked at after every token, is set by the largest running margin of each:
            so many looks pass the first one far more often.
        least_tokens: after how many tokens such a text is first looked at; a shorter one is at its end.

    Raises SiteError for several sites or one with positions, TaskError where the tasks share a group.

    >>> fit_monitor(lm, builtin.task("toxicity").split().train, "L15.resid_post")  # doctest: +SKIP
    """
    _check_asked(kind, calibration, false_positive_rate, least_tokens)
    site = _site_of_every_token(lm, site)
    read = default_read(train) if read is None else read

    def trained(x: Float[np.ndarray, "2 example 1 d"]) -> Classifier:
        return fit(x.reshape(-1, *x.shape[2:]), true_labels(x.shape[1]).ravel(), kind, C=C)

    x = features(lm, train, site, read, batch_size, dictionaries)
    fitted = trained(x)
    if validation is None:
        judged = _crossed(train, x, group_split(train, folds, seed), trained)
    else:
        check_apart(train, validation)
        judged = _held_out(validation, features(lm, validation, site, read, batch_size, dictionaries), fitted)
    probe = linear_probe(lm, train, site, read, x, fitted, kind)
    probe = probe.with_(metrics={"balanced accuracy": share_of(judged.correct, judged.task.groups)})
    options = {"task": train.name, "site": site, "read": read, "kind": kind, "calibration": calibration, "C": C}
    options |= {"false_positive_rate": false_positive_rate, "least_tokens": least_tokens}
    monitor = Monitor(
        probe,
        _calibrated(judged.margins, calibration),
        _threshold(judged.margins[1], false_positive_rate),
        false_positive_rate,
        provenance(lm, sides(lm, train).positive, "fit_monitor", options, seed=seed),
        least=least_tokens,
        seen=_texts_of(train, judged.task),
    )
    negative = sides(lm, judged.task).negative
    streamed = token_margins(lm, negative, monitor, judged.weight, judged.bias, batch_size, dictionaries)
    largest = np.nanmax(monitor.looked_at(streamed), axis=1)
    return monitor.with_(stream_threshold=_threshold(largest, false_positive_rate))


def _texts_of(*tasks: Task) -> tuple[str, ...]:
    """Digests of every text of some tasks."""
    return tuple(sorted({digest_of(text) for task in tasks for example in task.examples for text in texts_of(example)}))


def token_margins(
    lm: LM,
    prompts: Prompts,
    monitor: Monitor,
    weight: Float[np.ndarray, "row d"],
    bias: Float[np.ndarray, "row"],
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Float[np.ndarray, "row token"]:
    """The margin of every token that a monitor reads of each text, under a direction for each, NaN behind the last.

    A monitor of last tokens looks at every token of the text when it watches, so here too.
    """
    scope = Scope.parse(monitor.probe.read if monitor.pooled else "text" if "text" in prompts.spans else "1:")
    columns = prompts.positions(scope)
    out = np.full((len(prompts), max(map(len, columns))), np.nan)
    for rows in batches(prompts, weight.shape[1], batch_size):
        part = prompts.rows(rows, trim=True)
        x = lm.run(part, monitor.site, logits=False, dictionaries=dictionaries)[monitor.site].flatten(2)
        for number, (row, at) in enumerate(zip(rows, part.positions(scope), strict=True)):
            out[row, : len(at)] = x[number, at].double().cpu().numpy() @ weight[row] + bias[row]
    return out


@dataclass(frozen=True, eq=False)
class _Judged:
    """Examples that threshold and calibration come from: the margins of their two sides, and the direction of length 1
    and the bias that judge each of them, which were trained without it."""

    task: Task
    margins: Float[np.ndarray, "2 example"]
    weight: Float[np.ndarray, "example d"]
    bias: Float[np.ndarray, "example"]

    @property
    def correct(self) -> Float[np.ndarray, "example"]:
        """The share of each example's two sides on the right side of the border; on it counts half."""
        return (1 + np.sign(self.margins[0]) - np.sign(self.margins[1]) + 1) / 4


def _crossed(
    task: Task,
    x: Float[np.ndarray, "2 example 1 d"],
    split: Sequence[tuple[np.ndarray, np.ndarray]],
    trained: Callable[[np.ndarray], Classifier],
) -> _Judged:
    """Each fold of a task judged by a direction trained on the others."""
    directions, which = [], np.zeros(len(task), dtype=int)
    margins = np.empty(x.shape[:2])
    for rest, part in split:
        weight, bias = _direction(trained(x[:, rest]))
        margins[:, part], which[part] = _margins(x[:, part], weight, bias), len(directions)
        directions.append((weight, bias))
    weights, biases = (np.stack(parts)[which] for parts in zip(*directions, strict=True))
    return _Judged(task, margins, weights, biases)


def _held_out(task: Task, x: Float[np.ndarray, "2 example 1 d"], fitted: Classifier) -> _Judged:
    """A task of other groups judged by the direction itself."""
    weight, bias = _direction(fitted)
    n = len(task)
    return _Judged(task, _margins(x, weight, bias), np.repeat(weight[None], n, 0), np.full(n, bias))


def _margins(
    x: Float[np.ndarray, "2 example 1 d"], weight: Float[np.ndarray, "d"], bias: float
) -> Float[np.ndarray, "2 example"]:
    """Margins along a direction of length 1: those of probes of different folds are comparable."""
    return x[:, :, 0].astype(np.float64) @ weight + bias


def _direction(fitted: Classifier) -> tuple[Float[np.ndarray, "d"], float]:
    """A direction of length 1, and its bias."""
    assert isinstance(fitted, Linear)
    length = float(np.linalg.norm(fitted.weight)) or 1.0
    return fitted.weight[0] / length, float(fitted.bias[0]) / length


def _threshold(negative: Float[np.ndarray, "example"], rate: float) -> float:
    """The lowest of the negative margins above which at most `rate` of them lie."""
    allowed = int(np.floor(rate * len(negative) + 1e-9))
    return float(np.sort(negative)[len(negative) - 1 - allowed])


def _calibrated(margins: Float[np.ndarray, "2 example"], kind: CalibrationKind) -> Calibration:
    x, labels = margins.ravel(), true_labels(margins.shape[1]).ravel()
    if kind == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, labels)
        return Calibration("isotonic", knots=np.stack([found.X_thresholds_, found.y_thresholds_]))
    from sklearn.linear_model import LogisticRegression

    # Platt's targets, (n + 1)/(n + 2) and 1/(n + 2), as weights: each row counts for both labels
    n, spread = margins.shape[1], float(x.std()) or 1.0
    weight = np.where(labels == 1, (n + 1) / (n + 2), 1 / (n + 2))
    model = LogisticRegression(C=1e8, max_iter=1000)
    model.fit(
        np.tile(x / spread, 2)[:, None],
        np.repeat([1, 0], len(x)),
        sample_weight=np.concatenate([weight, 1 - weight]),
    )
    slope, offset = (float(np.ravel(part)[0]) for part in (model.coef_, model.intercept_))
    return Calibration("platt", slope=slope / spread, offset=offset)


def _check_asked(kind: Kind, calibration: CalibrationKind, false_positive_rate: float, least_tokens: int) -> None:
    check_kind(kind, LINEAR)
    if calibration not in ("platt", "isotonic"):
        near = nearest(str(calibration), ("platt", "isotonic"))
        raise TrimtabError(f'calibration is "platt" or "isotonic", got {calibration!r}{near}')
    if not 0 <= false_positive_rate < 1:
        raise TrimtabError(f"false_positive_rate is a share of negatives, from 0 up to 1, got {false_positive_rate}")
    if least_tokens < 1:
        raise TrimtabError(
            f"least_tokens is after how many tokens a text is first looked at, at least 1, got {least_tokens}"
        )


def _site_of_every_token(lm: LM, site: Site | str) -> Site:
    site = one_site(lm, site)
    if site.at is not None:
        raise SiteError(f"{site}: a monitor reads every token: leave the positions out and give read={str(site.at)!r}")
    return site
