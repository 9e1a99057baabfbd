"""Probes: classifiers that read from a place which of its two sides an example shows.

Logistic regression (Alain and Bengio 2016, arXiv 1610.01644) on standardised features, ridge, difference of means,
mass-mean (Marks and Tegmark 2023, arXiv 2310.06824) and a small network. A probe tells what can be read at a place, not
what the model reads there (Belinkov 2022, arXiv 2102.12452): its controls are shuffled labels, labels that can only be
memorised (Hewitt and Liang 2019, arXiv 1909.03368) and an untrained twin of the model (Zhang and Bowman 2018, arXiv
1809.10040), its test an intervention along its direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np
from jaxtyping import Float

from trimtab.errors import TrimtabError, nearest
from trimtab.locate.classifiers import Kind, check_kind, fit
from trimtab.locate.folds import Control, Drawn, Labels, Score, parts_of
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_sides
from trimtab.locate.units import Spans, places, side_means
from trimtab.model.protocols import Dictionary
from trimtab.model.untrained import untrained
from trimtab.tasks.means import MeanDifference, default_read
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Label, Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Progress = Callable[[int, int], None]


@planned_by(plan_sides)
def probe(
    lm: LM,
    task: Task,
    sites: Reads = "L*.resid_post",
    *,
    read: Spans | None = None,
    kind: Kind = "logistic",
    score: Score = "correct",
    control: Control | None = None,
    draws: int = 2,
    folds: int = 5,
    C: float = 0.1,
    hidden: int = 16,
    seed: int = 0,
    differences: MeanDifference | None = None,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """How well a probe tells the two sides apart at each place, on groups that it was not trained on.

    Every example gives two activations, one for each side. Scores are "correct", the share of its two that the probe of
    its fold gets right, so that the mean over examples is balanced accuracy and 0.5 is chance; or "margin", how far the
    two lie on their own sides of the border, on average, in standard deviations of the training margins.

    Args:
        sites: a map such as `"L*.resid_post"`, each of whose units has its own probe, or a list of candidates. For maps
            of neurons "difference" is the fast kind.
        read: positions whose mean activation is a feature vector, one or several: by default the task's `read`, and the
            last token for counterfactual tasks.
        kind: as in `classifiers.fit`: "logistic", "ridge", "difference", "mass_mean", "mlp".
        control: what to compare with. "shuffled": trained with the sides of half of the examples swapped. "groups",
            "tokens": trained for and tested on a label that is drawn for each group, or each last token of `read`, and
            on other examples of the groups or tokens that it was trained on: what this probe can memorise (NaN where
            the group or token is in no training example). Both drawn labels weigh alike however often each occurs, so
            that the mean is balanced accuracy; single examples may then score above 1. "untrained": on an untrained
            twin of the model.
        draws: of labels, for each of up to ten sets of whole groups, whose scores are averaged. These sets are the
            control's `groups`: its interval is over sets that were drawn for independently, so it has the scatter
            between draws in it.
        folds: of whole groups (of examples for "groups" and "tokens"), at most as many as there are.
        seed: of the deal to folds, of draws, of the twin and of the network.
        differences: the means of both sides, where they have been made already, at the spans that are asked for.

    Returns:
        `Scores`, unit "accuracy" or "sd"; `selectivity` sets them against those of a control.

    Raises TaskError with fewer than two groups.

    >>> probe(lm, task, "L*.resid_post").mean()  # doctest: +SKIP
    """
    check_kind(kind)
    _check_options(score, control, draws, differences)
    options = {"kind": kind, "score": score, "folds": parts_of(task, folds), "seed": seed, "C": C}
    options |= {"hidden": hidden} if kind == "mlp" else {}
    where = places(lm, sites, read, mapped=default_read(task), alone=default_read(task), dictionaries=dictionaries)
    model = untrained(lm, seed) if control == "untrained" else lm
    means = side_means(model, task, where, differences, batch_size, dictionaries)
    labels = Labels(task, sides(lm, task), control, draws, folds, seed)
    columns = []
    for done, block in enumerate(where.blocks, 1):
        x = np.stack([where.vectors(side) for side in means.sides(block)])
        drawn = [_together(x, made, kind, C, hidden, seed, score) for made in labels.of(block)]
        columns.append(np.mean(drawn, axis=0))
        if progress is not None:
            progress(done, len(where.blocks))
    if control is not None:
        undefined = int(np.isnan(np.stack(columns)).any(axis=(0, 2)).sum())
        options |= {"control": control, "draws": draws if labels.is_drawn else 1, "undefined": undefined}
    array, unit = where.array(columns), "accuracy" if score == "correct" else "sd"
    found = where.scores(array, lm, task, sides(lm, task).positive, "probe", unit, options)
    return found.with_(groups=tuple(f"part {part}" for part in labels.parts)) if labels.is_drawn else found


def selectivity(scores: Scores, control: Scores) -> Scores:
    """How much better a probe does than its control, example by example (Hewitt and Liang 2019, arXiv 1909.03368).

    Both are of `probe`, the second with a `control`; NaN where either is. The result has the control's groups: where
    labels were drawn these are the sets of groups that share a draw, so that its interval counts both the examples and
    the draws. TrimtabError where they are not of the same examples and places.

    >>> selectivity(probe(lm, task), probe(lm, task, control="groups")).interval()  # doctest: +SKIP
    """
    apart = [name for name in ("dims", "coords", "site", "unit") if getattr(scores, name) != getattr(control, name)]
    if not apart and scores.groups != control.groups and not _nested(scores.groups, control.groups):
        apart = ["groups"]
    if apart:
        raise TrimtabError(
            f"scores and control differ in {', '.join(apart)}: probe the same task, sites and read twice"
        )
    options = {**scores.options, "against": dict(control.options)}
    array = scores.array - control.array
    return scores.with_(array=array, method="selectivity", options=options, groups=control.groups)


def _nested(fine: Sequence[Label] | None, coarse: Sequence[Label] | None) -> bool:
    """Whether every group of the first lies whole in one of the second."""
    return fine is not None and coarse is not None and len(set(zip(fine, coarse, strict=True))) == len(set(fine))


def _together(
    x: np.ndarray, made: Sequence[Drawn], kind: Kind, C: float, hidden: int, seed: int, score: Score
) -> Float[np.ndarray, "example unit"]:
    """One draw: every example under the labels of its part."""
    out = np.full(x.shape[1:3], np.nan)
    for drawn in made:
        rows = np.concatenate([test for _, test in drawn.split])
        out[rows] = drawn.scores(x, lambda r, y: fit(r, y, kind, C=C, hidden=hidden, seed=seed), score)[rows]
    return out


def _check_options(score: str, control: str | None, draws: int, differences: MeanDifference | None) -> None:
    for name, value, known in (("score", score, get_args(Score)), ("control", control, get_args(Control))):
        if value is not None and value not in known:
            raise TrimtabError(f'{name} is one of {", ".join(known)}, got "{value}"{nearest(str(value), known)}')
    if draws < 1:
        raise TrimtabError(f"draws is how many times labels are drawn, at least 1, got {draws}")
    if control == "untrained" and differences is not None:
        raise TrimtabError(
            "these differences are of the model itself, and an untrained one is asked for: leave them out"
        )
