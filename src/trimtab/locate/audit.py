"""How far to trust a screen: its best places are patched exactly, and so is a random sample of the others.

The check of Kramár et al. 2024, arXiv 2403.00745, section 4.3: a method that looks at every place only to first order
may overlook some, and no list of its best ones can show it; a sample of the rest can. It takes any `Scores` that
estimate `patching`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.evaluate.intervening import direction_of, window_of
from trimtab.locate.patching import patching
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_audit
from trimtab.locate.sweep import Exact, Progress
from trimtab.tasks.task import Task
from trimtab.values.audit import Audit
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM


@planned_by(plan_audit)
def audit_scores(
    lm: LM,
    task: Task,
    scores: Scores,
    *,
    k: int = 10,
    sample: int = 50,
    seed: int = 0,
    exact: Exact = "fast",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Audit:
    """Patch the `k` places of largest mean exactly, and `sample` of the others drawn at random.

    A place counts as missed where its exact effect is larger than the smallest exact effect in the top: with a sample,
    the share of all others that are.

    Args:
        scores: of `attribution_patching`, `atp_star` or another method that estimates `patching` of this task, in
            whose `direction` the places are patched ("denoise" where they have none).
        k: places verified, at least 1.
        sample: places drawn; all of the others where there are fewer.

    Raises TrimtabError where `k` is below 1 or no place has a value; as `patching` otherwise.

    >>> audit_scores(lm, task, attribution_patching(lm, task, "L*.head")).missed  # doctest: +SKIP
    """
    if k < 1 or sample < 0:
        raise TrimtabError(f"an audit needs at least 1 place to verify and a sample of 0 or more, got {k} and {sample}")
    if (window := window_of(scores)) > 1:
        raise TrimtabError(
            f"these scores are of windows of {window} layers and an audit patches single places: use evaluate.verify, "
            f"which patches the windows, or make the scores with window=1"
        )
    means = scores.mean().ravel()
    order = [int(i) for i in np.argsort(-scores.strength().ravel(), kind="stable") if not np.isnan(means[i])]
    if not order:
        raise TrimtabError("these scores have no place with a value, so there is nothing to verify")
    sites = list(scores.sites())
    best, others = order[:k], order[k:]
    drawn = sorted(np.random.default_rng(seed).permutation(others)[:sample].tolist()) if others else []
    found = patching(
        lm,
        task,
        [sites[i] for i in (*best, *drawn)],
        direction=direction_of(scores),
        exact=exact,
        batch_size=batch_size,
        progress=progress,
    )
    return Audit(
        _part(found, range(len(best))),
        _part(found, range(len(best), len(best) + len(drawn))) if drawn else None,
        means[best],
        means[drawn],
        len(others),
        scores.options.get("grad_drop") is True,
    )


def _part(scores: Scores, which: range) -> Scores:
    labels = scores.coords["site"]
    return scores.with_(array=scores.array[:, list(which)], coords={"site": tuple(labels[i] for i in which)})
