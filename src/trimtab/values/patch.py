"""WeightPatch: a change of a parameter, as a frozen value. Applying it to a model is `trimtab.model`'s business.

Where a token embedding is also the unembedding (tied weights), a patch of it changes both, unless it is marked
`untie`: then the unembedding keeps the weights that it had. `steer.orthogonalise` marks its patches so; whoever writes
weights for good (a folder, a checkpoint) must write two parameters where any patch has the mark, which
`Intervention.untie` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trimtab.errors import EditError
from trimtab.values.content import Content
from trimtab.values.operands import array_of, number_of


@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch(Content):
    """A change of a parameter: parameter += left @ right, or += delta, in the parameter's own orientation.

    `left` has shape (rows, k) and `right` (k, columns) of the parameter (rows, columns); `delta` has the parameter's
    shape. Exactly one of the two forms is given. Where a parameter is a stack of matrices (expert, rows, columns),
    either factor or both may have the stack's axis in front. `untie`: a token embedding is changed, and an unembedding
    that shares its weights is not.
    """

    LATER: ClassVar[Mapping[str, object]] = {"untie": False}

    parameter: str
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    delta: np.ndarray | None = None
    untie: bool = False

    def __post_init__(self) -> None:
        name = f'of the patch of "{self.parameter}"'
        if not isinstance(self.parameter, str) or not self.parameter:
            raise EditError(f"a patch names its parameter, got {self.parameter!r}")
        low_rank = self.left is not None and self.right is not None and self.delta is None
        full = self.delta is not None and self.left is None and self.right is None
        if not low_rank and not full:
            raise EditError(f"the value {name} must be left and right, or delta, and not both")
        for field in ("left", "right", "delta"):
            value = getattr(self, field)
            if value is not None:
                ndim = None if field == "delta" or np.ndim(value) == 3 else 2
                object.__setattr__(self, field, array_of(value, f"{field} {name}", ndim))
        if self.left is not None and self.right is not None and (apart := _apart(self.left.shape, self.right.shape)):
            raise EditError(
                f"left (rows, k) and right (k, columns) {name} differ in {apart}: {self.left.shape}, {self.right.shape}"
            )
        if not isinstance(self.untie, bool):
            raise EditError(f"untie {name} is True or False, got {self.untie!r}")

    @property
    def matrix(self) -> np.ndarray:
        """What is added to the parameter, in full."""
        if self.left is not None and self.right is not None:
            return self.left @ self.right
        assert self.delta is not None  # one of the two forms is there
        return self.delta

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter that it changes."""
        if self.left is None or self.right is None:
            return np.shape(self.delta)  # type: ignore[arg-type]
        stack = max(self.left.shape[:-2], self.right.shape[:-2], key=len)
        return (*stack, self.left.shape[-2], self.right.shape[-1])

    def scaled(self, factor: float) -> WeightPatch:
        """The same patch, `factor` times as large."""
        factor = number_of(factor, f'the factor for the patch of "{self.parameter}"')
        field = "delta" if self.left is None else "left"
        return self.with_(**{field: getattr(self, field) * factor})

    def __str__(self) -> str:
        parts = [part for part in (self.left, self.right, self.delta) if part is not None]
        added = " @ ".join(f"array{part.shape}" for part in parts)
        return f"{self.parameter} += {added}{' untied' if self.untie else ''}"


def _apart(left: tuple[int, ...], right: tuple[int, ...]) -> str:
    """What the shapes of two factors differ in, in words; nothing where they fit."""
    if left[-1] != right[-2]:
        return "k"
    stacks = {shape[0] for shape in (left, right) if len(shape) == 3}
    return "how many matrices there are" if len(stacks) > 1 else ""
