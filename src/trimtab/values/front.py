"""The Pareto front, and the rules by which one point of a search is picked. Numbers only: no model, no task.

A rule is fixed before anything is measured. It never makes one number of several objectives by weights: it bounds some
and takes the best of another, or finds the bend of the front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import TrimtabError, nearest

if TYPE_CHECKING:
    from trimtab.values.search import Point

RULES = {"largest_effect_within": "KL", "least_cost_for": "effect", "knee": ""}
"""The rules, and the number that each is written with."""


def pareto_front(values: Float[np.ndarray, "point objective"]) -> set[int]:
    """The points than which no other is at least as good in every objective and better in one; larger is better.

    A point with a NaN is not one of them, and beats none.

    >>> sorted(pareto_front(np.array([[1.0, -0.1], [2.0, -0.3], [1.5, -0.4]])))
    [0, 1]
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values).any(1))
    front = []
    for i in known:
        others = values[known]
        beaten = (others >= values[i]).all(1) & (others > values[i]).any(1)
        if not beaten.any():
            front.append(int(i))
    return set(front)


def objectives(points: Sequence[Point]) -> Float[np.ndarray, "point objective"]:
    """Effect, −KL and, where it was measured, −loss of capability: of each point, larger is better."""
    columns = [[p.effect.mean for p in points], [-p.kl for p in points]]
    if any(p.capability is not None for p in points):
        columns.append([math.nan if p.capability is None else -p.capability.mean for p in points])
    return np.array(columns, dtype=np.float64).T.reshape(len(points), len(columns))


@dataclass(frozen=True)
class Rule:
    """How one point is picked: a name of `RULES`, and its number where it has one.

    "largest_effect_within:0.3": the largest mean effect among points of at most 0.3 nats of KL per token.
    "least_cost_for:1.5": the smallest KL among points whose mean effect is at least 1.5, in the task's unit.
    "knee": where the front bends: with effect and KL of the front's points each spread over 0 to 1, the point whose
    effect is furthest above its KL (Satopää et al. 2011, doi:10.1109/ICDCSW.2011.20, as "kneedle").

    Only points whose interval lies above zero are picked. Of equal points the cheaper one is, then the one that loses
    less capability, then the first.

    >>> Rule.parse("largest_effect_within:0.3")
    Rule(name='largest_effect_within', number=0.3)
    """

    name: str
    number: float | None = None

    @classmethod
    def parse(cls, text: str | Rule) -> Rule:
        """Read a rule from its text. TrimtabError, with the nearest name, for another."""
        if isinstance(text, Rule):
            return text
        name, colon, number = str(text).strip().partition(":")
        name = name.strip().replace("-", "_")
        if name not in RULES:
            written = ", ".join(f"{known}:{what}" if what else known for known, what in RULES.items())
            raise TrimtabError(f'no rule "{text}"{nearest(name, RULES)}: there are {written}')
        try:
            value = float(number) if colon else None
        except ValueError:
            value = math.nan
        if (value is None) != (not RULES[name]) or (value is not None and not math.isfinite(value)):
            wanted = f"a number: {name}:0.3 ({RULES[name]})" if RULES[name] else f"no number: {name}"
            raise TrimtabError(f'the rule "{name}" is written with {wanted}, got "{text}"')
        return cls(name, value)

    @property
    def limit(self) -> float:
        """The most KL that the rule allows."""
        return math.inf if self.number is None or self.name != "largest_effect_within" else self.number

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number:g}"

    @property
    def sentence(self) -> str:
        """The rule in words."""
        above = "if its interval lies above zero"
        if self.name == "largest_effect_within":
            return (
                f"the largest mean effect on the validation part among points of at most {self.number:g} nats of KL "
                f"per token on neutral text, {above}"
            )
        if self.name == "least_cost_for":
            return (
                f"the smallest KL per token on neutral text among points of a mean effect of at least {self.number:g} "
                f"on the validation part, {above}"
            )
        return f"the knee of the front of effect against KL per token on neutral text, {above}"

    def choose(self, points: Sequence[Point]) -> int | None:
        """The number of the point that the rule picks; None where none qualifies."""
        fit = [i for i, p in enumerate(points) if p.effect.low > 0 and math.isfinite(p.kl)]
        if self.name == "largest_effect_within":
            within = [i for i in fit if points[i].kl <= self.limit]
            return max(within, key=lambda i: (points[i].effect.mean, *_cheap(points[i])), default=None)
        if self.name == "least_cost_for":
            enough = [i for i in fit if points[i].effect.mean >= (self.number or 0.0)]
            return max(enough, key=lambda i: (-points[i].kl, points[i].effect.mean, _cheap(points[i])[1]), default=None)
        front = [i for i in fit if points[i].front]
        if not front:
            return None
        effect, kl = (_spread([f(points[i]) for i in front]) for f in (lambda p: p.effect.mean, lambda p: p.kl))
        above = effect - kl
        return max(zip(above.tolist(), front, strict=True), key=lambda pair: (pair[0], *_cheap(points[pair[1]])))[1]


def _cheap(point: Point) -> tuple[float, float]:
    """What is compared among equals: less KL, then less capability lost."""
    lost = 0.0 if point.capability is None else point.capability.mean
    return -point.kl, -lost if math.isfinite(lost) else -math.inf


def _spread(values: list[float]) -> np.ndarray:
    """Values from 0 (the smallest) to 1 (the largest); 0 where all are the same."""
    array = np.array(values)
    size = array.max() - array.min()
    return (array - array.min()) / size if size > 0 else np.zeros(len(array))
