"""Plan: what a list of counterfactuals will cost, before anything runs.

A cell is one variant on one row of the prompts. The plan knows where each cell starts (its first edited layer and
column) from the edits' scopes alone; a patch from a run of aligned prompts changes nothing before the first token that
differs, so those cells are left out. Cells whose activations turn out equal are found only when the base run is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """One variant on one row: computed from `layer`, entered at `entry`, from absolute column `column` on."""

    variant: int
    row: int
    layer: int
    entry: str
    column: int


@dataclass(frozen=True)
class Plan:
    """Which cells are computed, how, and at what cost next to one forward pass for each cell."""

    variants: int
    rows: int
    n_layers: int
    width: int
    cells: tuple[Cell, ...]
    naive: tuple[int, ...]
    """Variants that run as whole forward passes, because a shortcut would not be exact for them."""
    chunk: int
    """Most rows in one batch at the widest suffix."""
    bytes_each: int
    """Peak bytes of one row at the widest suffix."""
    base_bytes: int
    """Bytes of the base run that are kept."""
    exact: str
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Cells asked for."""
        return self.variants * self.rows

    @property
    def computed(self) -> int:
        """Cells computed; the others equal the base run."""
        return len(self.cells) + len(self.naive) * self.rows

    @property
    def passes(self) -> float:
        """Cost in forward passes of one row: token-layers over those of a whole pass, the base run included."""
        whole = self.n_layers * self.width
        part = sum((self.n_layers - c.layer) * (self.width - c.column) for c in self.cells) / whole
        return part + len(self.naive) * self.rows + self.rows

    def __str__(self) -> str:
        starts = Counter(c.column for c in self.cells)
        batches = _size(self.chunk * self.bytes_each)
        lines = [
            f"{self.total} cells ({self.variants} variants, {self.rows} rows), {self.computed} computed ({self.exact})",
            f"about {self.passes:.1f} forward passes of work instead of {self.total}, in {len(starts)} suffix groups",
            f"memory: {_size(self.base_bytes)} for the base run, {batches} for batches of {self.chunk} rows",
        ]
        return "\n".join([*lines, *self.notes])


def merge_columns(columns: Sequence[int], work: Sequence[Sequence[int]], width: int, idle: float) -> dict[int, int]:
    """Which suffix groups to run together: first column of a cell -> first column of the pass that serves it.

    Each pass loads every layer's weights, which costs as much as `idle` tokens; running a later suffix with an earlier
    one computes tokens that need not be. `work[i]` is, for each layer, how many rows of column `columns[i]` run in it.
    The cheapest split of the sorted columns into runs is found by dynamic programming.
    """
    n = len(columns)
    cost = [0.0] + [float("inf")] * n
    cut = [0] * (n + 1)
    for stop in range(1, n + 1):
        rows = [0] * len(work[0]) if work else []
        for start in range(stop - 1, -1, -1):
            rows = [a + b for a, b in zip(rows, work[start], strict=True)]
            suffix = width - columns[start]
            price = sum(idle + r * suffix for r in rows if r) + cost[start]
            if price < cost[stop]:
                cost[stop], cut[stop] = price, start
    merged: dict[int, int] = {}
    stop = n
    while stop:
        start = cut[stop]
        merged |= {columns[i]: columns[start] for i in range(start, stop)}
        stop = start
    return merged


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def first_columns(moved: Tensor) -> list[int | None]:
    """The first true column of each row (row column), None where there is none."""
    some, first = moved.any(1).tolist(), moved.byte().argmax(1).tolist()
    return [f if s else None for s, f in zip(some, first, strict=True)]
