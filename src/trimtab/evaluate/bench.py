"""A bench: the task, the neutral text and the unrelated items on which many interventions are measured alike.

What is tried, and which of it is picked, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from trimtab.evaluate.capabilities import capabilities
from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.side_effects import side_effects
from trimtab.evaluate.texts import Passage
from trimtab.tasks.measure import Measure
from trimtab.values.edit import Intervention
from trimtab.values.estimate import Estimate

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Progress = Callable[[int, int], None]


class Found(NamedTuple):
    """What an intervention comes to: the change of the task's number, nats of KL per token, and the accuracy that is
    lost on unrelated items; None where it was not measured."""

    effect: Estimate
    kl: float
    capability: Estimate | None


class Bench(NamedTuple):
    """Where interventions are measured: a task's number, neutral passages of `length` tokens each, and items or None
    (`measured_items`)."""

    lm: LM
    measured: Measure
    passages: Sequence[Passage]
    items: Measure | None
    length: int

    def effects(self, variants: Sequence[Intervention], progress: Progress | None = None) -> Effects:
        """The task's number without and with each intervention."""
        return effects(self.lm, self.measured, variants, progress=progress)

    def kl(self, variants: Sequence[Intervention], progress: Progress | None = None) -> Float[np.ndarray, "variant"]:
        """Nats of KL per token of each intervention, the mean over the passages."""
        return side_effects(self.lm, variants, self.passages, length=self.length, progress=progress).kl.mean(1)

    def lost(self, variants: Sequence[Intervention], progress: Progress | None = None) -> list[Estimate | None]:
        """The accuracy on the items that each intervention loses; None without items."""
        if self.items is None:
            return [None] * len(variants)
        right = capabilities(self.lm, variants, self.items, progress=progress)
        return [Estimate.of(right.base - values, right.groups) for values in right.values]

    def found(self, variants: Sequence[Intervention], progress: Progress | None = None) -> list[Found]:
        """All numbers of each intervention; a step of progress is one of them at one of the measures."""
        total = (2 if self.items is None else 3) * len(variants)

        def at(step: int) -> Progress:
            def report(done: int, of: int) -> None:
                if progress is not None:
                    progress(step * len(variants) + round(done / of * len(variants)), total)

            return report

        changed = self.effects(variants, at(0))
        gains = [Estimate.of(change, changed.groups) for change in changed.changes]
        cost, lost = self.kl(variants, at(1)), self.lost(variants, at(2))
        return [Found(gain, float(kl), part) for gain, kl, part in zip(gains, cost, lost, strict=True)]
