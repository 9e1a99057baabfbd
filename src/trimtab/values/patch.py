"""WeightPatch: a change of a parameter, as a frozen value. Applying it to a model is `trimtab.model`'s business."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.errors import EditError
from trimtab.values.content import Content
from trimtab.values.operands import array_of, number_of


@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch(Content):
    """A change of a parameter: parameter += left @ right, or += delta, in the parameter's own orientation.

    `left` has shape (rows, k) and `right` (k, columns) of the parameter (rows, columns); `delta` has the parameter's
    shape. Exactly one of the two forms is given.
    """

    parameter: str
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    delta: np.ndarray | None = None

    def __post_init__(self) -> None:
        name = f'of the patch of "{self.parameter}"'
        if not isinstance(self.parameter, str) or not self.parameter:
            raise EditError(f"a patch names its parameter, got {self.parameter!r}")
        low_rank = self.left is not None and self.right is not None and self.delta is None
        full = self.delta is not None and self.left is None and self.right is None
        if not low_rank and not full:
            raise EditError(f"the value {name} must be left and right, or delta, and not both")
        for field, ndim in (("left", 2), ("right", 2), ("delta", None)):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, array_of(getattr(self, field), f"{field} {name}", ndim))
        if self.left is not None and self.right is not None and self.left.shape[1] != self.right.shape[0]:
            raise EditError(
                f"left (rows, k) and right (k, columns) {name} differ in k: {self.left.shape}, {self.right.shape}"
            )

    @property
    def matrix(self) -> np.ndarray:
        """What is added to the parameter, in full."""
        if self.left is not None and self.right is not None:
            return self.left @ self.right
        assert self.delta is not None  # one of the two forms is there
        return self.delta

    def scaled(self, factor: float) -> WeightPatch:
        """The same patch, `factor` times as large."""
        factor = number_of(factor, f'the factor for the patch of "{self.parameter}"')
        field = "delta" if self.left is None else "left"
        return self.with_(**{field: getattr(self, field) * factor})

    def __str__(self) -> str:
        parts = [part for part in (self.left, self.right, self.delta) if part is not None]
        return f"{self.parameter} += {' @ '.join(f'array{part.shape}' for part in parts)}"
