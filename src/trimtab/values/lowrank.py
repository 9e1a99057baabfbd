"""LowRank: a matrix kept as the product of a tall and a wide one, as the circuits of a head are.

A head's circuits are d_model × d_model matrices of rank d_head; their products with embeddings would be vocabulary ×
vocabulary. Nothing here forms them: norms, singular values and eigenvalues come from matrices of the rank's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Complex, Float

from trimtab.errors import TrimtabError
from trimtab.values.saved import Saved


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Saved):
    """left @ right, with `left` (rows, rank) and `right` (rank, columns); `name` says what it is of.

    >>> one = LowRank(np.array([[2.0], [0.0]]), np.array([[1.0, 1.0]]))
    >>> one.matrix.tolist(), one.eigenvalues.real.tolist()
    ([[2.0, 2.0], [0.0, 0.0]], [2.0])
    """

    KIND: ClassVar[str] = "low-rank matrix"

    left: np.ndarray
    right: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            array = np.array(getattr(self, side), dtype=np.float64, order="C")
            array.setflags(write=False)
            object.__setattr__(self, side, array)
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise TrimtabError(
                f"left must be (rows, rank) and right (rank, columns), got {self.left.shape} and {self.right.shape}"
            )

    @property
    def rank(self) -> int:
        """The width of the factors, which the matrix's rank does not exceed."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def matrix(self) -> Float[np.ndarray, "rows columns"]:
        """The matrix itself, written out."""
        return self.left @ self.right

    @property
    def singular_values(self) -> Float[np.ndarray, "rank"]:
        """The singular values that may differ from zero, the largest first."""
        a, b = np.linalg.qr(self.left).R, np.linalg.qr(self.right.T).R
        return np.linalg.svd(a @ b.T, compute_uv=False)

    @property
    def eigenvalues(self) -> Complex[np.ndarray, "rank"]:
        """The eigenvalues of a square matrix that may differ from zero, those of right @ left, the largest first."""
        if self.shape[0] != self.shape[1]:
            raise TrimtabError(f"only a square matrix has eigenvalues, and this one is {self.shape}")
        values = np.linalg.eigvals(self.right @ self.left).astype(np.complex128)
        return values[np.argsort(-np.abs(values), kind="stable")]

    @property
    def frobenius(self) -> float:
        """The root of the sum of all squared entries."""
        return float(np.sqrt(np.sum((self.left.T @ self.left) * (self.right @ self.right.T))))

    def __repr__(self) -> str:
        return f"<LowRank {self.name or 'matrix'}: {self.shape[0]} × {self.shape[1]} of rank {self.rank} at most>"
