"""The search for an intervention: every proposal at every coefficient, its effect against its side effect.

The result is a Pareto front. Which point is picked is decided by a rule that is fixed before anything is measured:
`largest_effect_within` takes the point of largest effect among those whose KL stays within a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import EditError
from trimtab.evaluate.effect import effects
from trimtab.evaluate.side_effects import side_effects
from trimtab.evaluate.texts import Passage
from trimtab.tasks.measure import Measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.findings import Estimate, Point, Search

if TYPE_CHECKING:
    from trimtab.model.lm import LM


@dataclass(frozen=True, eq=False)
class Proposal:
    """An intervention at strength 1, what it is, and the coefficients to try it at.

    `at` makes the intervention of a coefficient: strength for a vector, factor for a scaling.
    """

    method: str
    site: str
    scope: str
    coefficients: tuple[float, ...]
    at: Callable[[float], Intervention]


def grid(
    lm: LM,
    task: Task | Measure,
    proposals: Iterable[Proposal],
    passages: Sequence[Passage],
    *,
    limit: float,
    length: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Search:
    """Every proposal at every coefficient: the change of the task's number, and KL per token on neutral passages.

    A point is allowed when its KL (nats per token) is at most `limit`; the allowed point of largest mean effect
    is picked where its interval lies above zero. `progress(done, total)` is called with points.

    Raises EditError without proposals.
    """
    tried = [(p, c, p.at(c)) for p in proposals for c in p.coefficients]
    if not tried:
        raise EditError("no proposals were given to search: give at least one intervention and coefficient")
    variants = [intervention for _, _, intervention in tried]
    total = 2 * len(variants)

    def halfway(start: int) -> Callable[[int, int], None]:
        def report(done: int, of: int) -> None:
            if progress is not None:
                progress(start + round(done / of * len(variants)), total)

        return report

    found = effects(lm, task, variants, progress=halfway(0))
    cost = side_effects(lm, variants, passages, length=length, progress=halfway(len(variants)))
    gains, kl = [Estimate.of(change, found.groups) for change in found.changes], cost.kl.mean(1)
    front = pareto_front(np.array([gain.mean for gain in gains]), kl)
    points = tuple(
        Point(p.method, p.site, p.scope, float(c), gains[i], float(kl[i]), i in front, bool(kl[i] <= limit))
        for i, (p, c, _) in enumerate(tried)
    )
    picked = largest_effect_within(points)
    return Search(
        points,
        f"the largest mean effect on the validation part among points of at most {limit:g} nats of KL per token on "
        "neutral text, if its interval lies above zero",
        limit,
        found.unit,
        picked,
        Intervention() if picked is None else variants[picked],
        len(found.groups),
    )


def largest_effect_within(points: Sequence[Point]) -> int | None:
    """The number of the allowed point of largest mean effect whose interval lies above zero, the cheaper one of equals;
    None without one."""
    fit = [i for i, point in enumerate(points) if point.allowed and point.effect.low > 0]
    return max(fit, key=lambda i: (points[i].effect.mean, -points[i].kl), default=None)


def pareto_front(effect: np.ndarray, cost: np.ndarray) -> set[int]:
    """The points than which no other has at least as much effect at no more cost, and more of the one or less of the
    other. A point whose effect or cost is NaN is not one of them.

    >>> sorted(pareto_front(np.array([1.0, 2.0, 1.5]), np.array([0.1, 0.3, 0.4])))
    [0, 1]
    """
    as_good = (effect >= effect[:, None]) & (cost <= cost[:, None])
    better = as_good & ((effect > effect[:, None]) | (cost < cost[:, None]))
    return {int(i) for i in np.flatnonzero(~(better.any(1) | np.isnan(effect) | np.isnan(cost)))}
