"""What every stage of a study is given: the model, the parts of the task, the settings, and someone to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trimtab.evaluate.texts import Passage, part
from trimtab.studies.settings import Settings
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Parts

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Report = Callable[[str, float], None]
"""Told what is being done and which share of the stage is done."""

WIDE = ("resid_post", "attn_out", "mlp_out")
"""Kinds of object that are as wide as the residual stream, one to a layer; the others have units."""


@dataclass(frozen=True)
class Context:
    """A study under way. Stages before the evaluation use `parts.train` and `parts.validation` alone."""

    lm: LM
    parts: Parts
    settings: Settings
    report: Report

    @cached_property
    def validation(self) -> Measure:
        """Where the effect is read while candidates and points are compared."""
        return measure(self.lm, self.parts.validation, on="gap")

    @cached_property
    def passages(self) -> tuple[Passage, ...]:
        """The neutral text of the search."""
        return part("search")[: self.settings.search_passages]

    def step(self, what: str, start: float, stop: float) -> Callable[[int, int], None]:
        """A `progress(done, total)` for one step, which takes the stage from one share to another."""
        self.report(what, start)
        return lambda done, total: self.report(what, start + (stop - start) * done / max(total, 1))
