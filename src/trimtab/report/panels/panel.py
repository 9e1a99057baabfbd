"""Panel and Table: a drawing with its words, and the numbers behind it, ready for a page to lay out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimtab.figures.numbers import NONE


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `words` columns hold words and the others numbers; those in `code` hold addresses.

    `why` says what a missing number means.
    """

    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    code: tuple[int, ...] = ()
    why: str = "no value"

    @property
    def lacks(self) -> bool:
        """Whether a number is missing."""
        return any(NONE in cell.split() for row in self.rows for cell in row)


@dataclass(frozen=True)
class Panel:
    """A drawing (`svg`, empty where there is nothing to draw), its title and caption, some facts (address, text), and
    the table behind it.

    `span` is how many columns of the page it takes, where there are several.
    """

    title: str
    caption: str
    svg: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    span: Literal["one", "two", "all"] = "one"
