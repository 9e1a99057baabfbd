"""Compiled edits as steps for hooks, with a step before them for each condition that they wait for."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.anatomy import Anatomy
from trimtab.model.edits import Compiled, evaluate
from trimtab.model.frame import Frame
from trimtab.model.hooks import Step
from trimtab.values.edit import Condition


def edit_steps(compiled: Iterable[Compiled], anatomy: Anatomy) -> list[Step]:
    """Compiled edits as steps, with a step before them for each condition that they wait for."""
    steps: list[Step] = []
    seen: set[Condition] = set()
    for edit in compiled:
        when = edit.weight.condition
        if when is not None and when not in seen:
            seen.add(when)
            steps.append(condition_step(when, anatomy))
        steps.append(Step(edit.site.whole, change=edit.apply))
    return steps


def condition_step(condition: Condition, anatomy: Anatomy) -> Step:
    """A step that decides a condition at its site and leaves the tensor as it is. `EditError` where they do not fit."""
    site = anatomy.resolve(condition.site)
    if site.index is not None or anatomy.units(site) != len(condition.direction):
        raise EditError(
            f"a condition at {site} needs a direction of {anatomy.units(site)} entries and no index, got "
            f"{len(condition.direction)}"
        )

    def change(x: Tensor, frame: Frame) -> Tensor:
        evaluate(condition, x, frame)
        return x

    return Step(site.whole, change=change)
