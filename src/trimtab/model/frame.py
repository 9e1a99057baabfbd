"""Frame: which rows and which columns of the prompts a forward pass is about to compute.

A full pass covers every row and every column; a decode step covers one new column; the engine's passes cover a suffix
of some rows, several times over. Edits, reads and conditions are written against prompts, so each of them looks at the
frame to know what it is being shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from trimtab.model.prompts import Prompts
from trimtab.values.edit import Condition


@dataclass
class Frame:
    """What one forward pass covers.

    `rows` (batch) is the row of the prompts for each row of the batch, None for the same order; `variants` (batch) is
    the engine's number of the counterfactual. Columns are absolute: 0 is the first column of the padded prompt,
    columns from `prompts.width` on are generated tokens. `ids` (batch stop) are the token ids of all columns so far,
    needed beyond the prompt only. `held` keeps what conditions decided on the prompt for the generated tokens that
    follow.
    """

    prompts: Prompts
    batch: int
    start: int
    length: int
    rows: Tensor | None = None
    variants: Tensor | None = None
    ids: Tensor | None = None
    held: dict[Condition, Tensor] = field(default_factory=dict)
    given: Prompts | None = None
    """The prompts as the caller has them, where they were padded anew: values for each column follow their columns."""

    @classmethod
    def whole(cls, prompts: Prompts) -> Frame:
        """Every row and column of the prompts."""
        return cls(prompts, prompts.batch, 0, prompts.width, ids=prompts.ids)

    @property
    def stop(self) -> int:
        """The column behind the last one."""
        return self.start + self.length

    def pick(self, batch_rows: Tensor) -> Frame:
        """The frame of some rows of the batch."""
        rows = batch_rows if self.rows is None else self.rows[batch_rows]
        ids = None if self.ids is None else self.ids[batch_rows]
        return Frame(self.prompts, len(batch_rows), self.start, self.length, rows, None, ids, self.held)

    def of_rows(self, table: Tensor) -> Tensor:
        """A table with one entry per row of the prompts, per row of the batch."""
        return table if self.rows is None else table[self.rows.to(table.device)]

    def real(self) -> Tensor:
        """(batch pos) whether a column of the prompt holds a real token, for columns inside the prompt."""
        stop = min(self.stop, self.prompts.width)
        return self.of_rows(self.prompts.mask[:, self.start : stop].bool())
