"""Monitors: directions that are watched while a model reads and writes; fitted, judged on held-out groups, streamed.

A linear probe with a threshold at a chosen rate of false alarms and a calibration (Platt 1999; Zadrozny and Elkan 2002,
doi:10.1145/775047.775151); on probes that watch for deception and harm, Goldowsky-Dill et al. 2025, arXiv 2502.03407. A
monitor only looks: a text is the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack, cast

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import SiteError, TaskError, TrimtabError, nearest
from trimtab.locate.classifiers import Kind, Linear, check_kind, fit
from trimtab.locate.folds import group_split, true_labels
from trimtab.locate.probes import LINEAR, check_apart, features, linear_probe, one_site
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import provenance
from trimtab.tasks.means import batches, default_read
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.bootstrap import FEW
from trimtab.values.content import digest_of
from trimtab.values.findings import Estimate
from trimtab.values.monitor import (
    Calibration,
    GroupReport,
    Monitor,
    MonitorReport,
    auroc,
    bins_of,
    calibration_error,
)
from trimtab.values.scope import Scope
from trimtab.values.site import Site
from trimtab.values.watched import Watched

if TYPE_CHECKING:
    from trimtab.model.generate import Options
    from trimtab.model.lm import LM, Edits, Text

CalibrationKind = Literal["platt", "isotonic"]
ABOUT_PROMPTS = ("chat", "system", "spans", "bos")
"""Options of generation that say what the prompts are."""


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
    check_kind(kind, LINEAR)
    if calibration not in ("platt", "isotonic"):
        near = nearest(str(calibration), ("platt", "isotonic"))
        raise TrimtabError(f'calibration is "platt" or "isotonic", got {calibration!r}{near}')
    if not 0 <= false_positive_rate < 1:
        raise TrimtabError(f"false_positive_rate is a share of negatives, from 0 up to 1, got {false_positive_rate}")
    site = one_site(lm, site)
    if site.at is not None:
        raise SiteError(f"{site}: a monitor reads every token: leave the positions out and give read={str(site.at)!r}")
    read = default_read(train) if read is None else read
    x = features(lm, train, site, read, batch_size, dictionaries)
    fitted = fit(_flat(x), true_labels(len(train)).ravel(), kind, C=C)
    judged = train if validation is None else validation
    # which of the directions judges each example
    directions, which = [fitted], np.zeros(len(judged), dtype=int)
    if validation is None:
        margins = np.empty(x.shape[:2])
        for rest, part in group_split(train, folds, seed):
            other = fit(_flat(x[:, rest]), true_labels(len(rest)).ravel(), kind, C=C)
            margins[:, part], which[part] = _margins(other, x[:, part]), len(directions)
            directions.append(other)
    else:
        check_apart(train, validation)
        margins = _margins(fitted, features(lm, validation, site, read, batch_size, dictionaries))
    correct = (1 + np.sign(margins[0]) - np.sign(margins[1]) + 1) / 4
    probe = linear_probe(lm, train, site, read, x, fitted, kind)
    probe = probe.with_(metrics={"balanced accuracy": Estimate.of(correct, judged.groups)})
    options = {"task": train.name, "site": site, "read": read, "kind": kind, "calibration": calibration, "C": C}
    options |= {"false_positive_rate": false_positive_rate, "least_tokens": least_tokens}
    monitor = Monitor(
        probe,
        _calibrated(margins, calibration),
        _threshold(margins[1], false_positive_rate),
        false_positive_rate,
        provenance(lm, sides(lm, train).positive, "fit_monitor", options, seed=seed),
        least=least_tokens,
        seen=tuple(sorted({digest_of(group) for group in (*train.groups, *judged.groups)})),
    )
    weight, bias = (np.stack(parts)[which] for parts in zip(*map(_direction, directions), strict=True))
    negative = token_margins(lm, sides(lm, judged).negative, monitor, weight, bias, batch_size, dictionaries)
    largest = np.nanmax(monitor.looked_at(negative), axis=1)
    return monitor.with_(stream_threshold=_threshold(largest, false_positive_rate))


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
    over whole groups: the bootstrap for 30 groups or more, Student's with a delete-one-group jackknife for fewer; that
    of the calibration error is wide enough to have 0 in it for a monitor whose probabilities are right.

    Raises TaskError for a group that the monitor was fitted or calibrated on.

    >>> score_monitor(lm, monitor, task.split().test).auroc  # doctest: +SKIP
    """
    if known := sorted(group for group in set(task.groups) if digest_of(group) in monitor.seen):
        raise TaskError(
            f"this monitor was fitted or calibrated on the group {known[0]!r} of {task.name}: "
            "score it on the test part of task.split()"
        )
    x = features(lm, task, monitor.site, monitor.probe.read, batch_size, dictionaries)
    p, n = monitor.margin(x.reshape(*x.shape[:2], *monitor.probe.direction.shape))
    found, alarmed = monitor.flags(p).astype(float), monitor.flags(n).astype(float)
    parts = []
    for group in dict.fromkeys(task.groups):
        which = np.array([own == group for own in task.groups])
        rates = float(found[which].mean()), float(alarmed[which].mean())
        parts.append(GroupReport(group, int(which.sum()), (1 + rates[0] - rates[1]) / 2, *rates))

    error, by_chance = _calibration(monitor.probability(np.stack([p, n])), task.groups, bins)
    weight = np.repeat(monitor.probe.direction.astype(float).reshape(1, -1), len(task), 0)
    bias = np.full(len(task), monitor.probe.bias)
    both = sides(lm, task)
    streamed: list[np.ndarray] = [np.full(len(task), np.nan)] * 2
    if monitor.stream_threshold is not None:
        streamed = [
            np.any(
                monitor.stream_flags(token_margins(lm, side, monitor, weight, bias, batch_size, dictionaries)), axis=1
            )
            for side in (both.positive, both.negative)
        ]

    return MonitorReport(
        f"{monitor.probe.task} at {monitor.site}",
        task.name,
        p,
        n,
        _estimate(lambda rows: auroc(p[rows], n[rows]), task.groups),
        error,
        by_chance,
        Estimate.of((1 + found - alarmed) / 2, task.groups),
        Estimate.of(found, task.groups),
        Estimate.of(alarmed, task.groups),
        Estimate.of(streamed[0], task.groups),
        Estimate.of(streamed[1], task.groups),
        tuple(parts),
        bins,
        task.groups,
        provenance(lm, both.positive, "score_monitor", {"task": task.name, "bins": bins}),
    )


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


@dataclass(frozen=True)
class WatchedPiece:
    """One token of every row, once the model has read it: its id (None once a row has ended), the text that it
    completes, and for each monitor its margin (row), NaN once a row has ended."""

    ids: tuple[int | None, ...]
    texts: tuple[str, ...]
    margins: Mapping[str, Float[np.ndarray, "row"]]


def watch(
    lm: LM,
    prompts: Text,
    monitors: Monitor | Mapping[str, Monitor],
    edit: Edits = None,
    *,
    on_token: Callable[[WatchedPiece], None] | None = None,
    **options: Unpack[Options],
) -> Watched:
    """Generates, with monitors on every token of the prompts and of what is said, under the key-value cache.

    `monitors` is one, or several by name; `edit` and `options` are those of `lm.generate`. `on_token` is called with
    each token and its margins as it comes. The margins equal those of a second pass over the finished text, with the
    same edits on; the tokens are those of `lm.generate`.

    >>> watch(lm, "You are such a", monitor, max_new_tokens=20).flagged("toxicity")  # doctest: +SKIP
    """
    named = _named(monitors)
    about = {name: value for name, value in options.items() if name in ABOUT_PROMPTS}
    made = lm.prompts(prompts, **about, **_whole_text(prompts, about.get("spans")))
    rest = cast("Options", {name: value for name, value in options.items() if name not in ABOUT_PROMPTS})
    real = made.pad("left").mask.bool().cpu().numpy()
    rows: list[list[int]] = [ids[mask.bool()].tolist() for ids, mask in zip(made.ids, made.mask, strict=True)]
    lengths = tuple(map(len, rows))
    kept: dict[str, list[list[float]]] = {name: [[] for _ in rows] for name in named}
    for piece in _pieces(lm, made, named, edit, rest):
        if isinstance(piece, Mapping):  # the prompts
            for name, margins in piece.items():
                for row, mask in enumerate(real):
                    kept[name][row] = margins[row, mask].tolist()
            continue
        if on_token is not None:
            on_token(piece)
        for row, token in enumerate(piece.ids):
            if token is not None:
                rows[row].append(token)
                for name, margins in piece.margins.items():
                    kept[name][row].append(float(margins[row]))
    longest = max(map(len, rows))
    tokens = tuple(tuple(str(lm.tokenizer.decode([token])) for token in row) for row in rows)
    padded = {name: np.array([m + [np.nan] * (longest - len(m)) for m in kept[name]]) for name in named}
    return Watched(tokens, lengths, named, padded, _read(made, named, longest))


def _whole_text(prompts: Text, spans: object) -> dict[str, object]:
    """The span "text" of texts: what a template puts around them is not what a monitor of texts was fitted on."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    if spans is not None or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        return {}
    return {"spans": {"text": list(texts)}}


def _read(prompts: Prompts, monitors: Mapping[str, Monitor], longest: int) -> dict[str, np.ndarray]:
    """(row token) for each monitor: which real tokens of the prompts it reads, a row's very first apart where there are
    others; nothing for a monitor of a span that these prompts lack."""
    found = {}
    for name, monitor in monitors.items():
        scope = Scope.parse(monitor.probe.read)
        if scope.kind == "span" and scope.name not in prompts.spans:
            continue
        at = np.zeros((len(prompts), longest), dtype=bool)
        for row, (start, columns) in enumerate(zip(prompts.start.tolist(), prompts.positions(scope), strict=True)):
            own = [column - start for column in columns]
            at[row, [p for p in own if p or len(own) == 1]] = True
        found[name] = at
    return found


def watch_stream(
    lm: LM,
    prompts: Text,
    monitors: Monitor | Mapping[str, Monitor],
    edit: Edits = None,
    **options: Unpack[Options],
) -> Iterator[WatchedPiece]:
    """Like `watch`, one piece for each token, a step after it was picked: closing it early ends the generation.

    >>> for piece in watch_stream(lm, "You are such a", monitor):  # doctest: +SKIP
    ...     print(piece.texts[0], piece.margins["toxicity"][0])
    """
    for piece in _pieces(lm, prompts, _named(monitors), edit, options):
        if isinstance(piece, WatchedPiece):
            yield piece


def _pieces(
    lm: LM, prompts: Text, monitors: Mapping[str, Monitor], edit: Edits, options: Options
) -> Iterator[WatchedPiece | Mapping[str, np.ndarray]]:
    """First the margins of the prompts (row column), padded on the left, then each token with its own."""
    if "read" in options:
        raise TrimtabError("what is read is the monitors' sites: leave read out, or use lm.stream")
    sites = list(dict.fromkeys(monitor.site for monitor in monitors.values()))
    before = None
    for piece in lm.stream(prompts, edit, **{**options, "read": sites}):
        margins = {name: _watched(piece.read[monitor.site], monitor) for name, monitor in monitors.items()}
        if before is None:
            yield margins
        else:
            ended = np.array([token is None for token in before.ids])
            own = {name: np.where(ended, np.nan, values[:, 0]) for name, values in margins.items()}
            yield WatchedPiece(before.ids, before.texts, own)
        before = piece


def _watched(x: torch.Tensor, monitor: Monitor) -> np.ndarray:
    """(row column) margins, worked out where the activations are."""
    direction = torch.tensor(monitor.probe.direction, device=x.device)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[2:] != direction.shape:
        raise SiteError(
            f"{monitor.site} has activations of shape {tuple(x.shape[2:])} here, and the monitor was fitted on "
            f"{tuple(direction.shape)}: use it with the model that it was fitted on"
        )
    return (
        (torch.einsum("bpd,d->bp", x.flatten(2), direction.flatten().to(x.dtype)) + monitor.probe.bias)
        .double()
        .cpu()
        .numpy()
    )


def _named(monitors: Monitor | Mapping[str, Monitor]) -> dict[str, Monitor]:
    named = {monitors.probe.task or "monitor": monitors} if isinstance(monitors, Monitor) else dict(monitors)
    if not named:
        raise TrimtabError("there is no monitor to watch with: give one, or several by name")
    return named


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def _margins(fitted: object, x: Float[np.ndarray, "2 example 1 d"]) -> Float[np.ndarray, "2 example"]:
    """Margins along a direction of length 1: those of probes of different folds are comparable."""
    weight, bias = _direction(fitted)
    return x[:, :, 0].astype(np.float64) @ weight + bias


def _direction(fitted: object) -> tuple[Float[np.ndarray, "d"], float]:
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
    return Estimate(error, max(0.0, error - reach), min(1.0, error + reach), n), float(np.mean(chance))


def _estimate(
    statistic: Callable[[np.ndarray], float], groups: tuple[str, ...], samples: int = 1000, seed: int = 0
) -> Estimate:
    """A statistic of examples, given by their numbers, with its interval over whole groups."""
    from scipy.stats import t as student

    labels = np.array(groups)
    members = [np.flatnonzero(labels == name) for name in dict.fromkeys(groups)]
    every, g = np.arange(len(groups)), len(members)
    whole = statistic(every)
    if g < 2:
        return Estimate(whole, np.nan, np.nan, len(groups))
    if g >= FEW:
        draws = np.random.default_rng(seed).integers(0, g, size=(samples, g))
        values = [statistic(np.concatenate([members[i] for i in draw])) for draw in draws]
        low, high = np.quantile(values, [0.025, 0.975])
        return Estimate(whole, float(low), float(high), len(groups))
    left_out = np.array([statistic(np.setdiff1d(every, part)) for part in members])
    error = np.sqrt((g - 1) / g * ((left_out - left_out.mean()) ** 2).sum())
    reach = float(student.ppf(0.975, g - 1)) * error
    return Estimate(whole, float(max(0.0, whole - reach)), float(min(1.0, whole + reach)), len(groups))
