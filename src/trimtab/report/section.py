"""Section: one result as a page lays it out, and pages of one or several of them.

It holds words, drawings and tables; what a result is belongs to the files that make sections of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.errors import TrimtabError
from trimtab.figures.figure import Figure
from trimtab.figures.numbers import NONE, counted, fixed, number
from trimtab.report.made import made, page
from trimtab.report.panels.panel import Panel, Table
from trimtab.values.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "command"
"""The option of a provenance that holds the command line that made a result."""


@dataclass(frozen=True)
class Section:
    """A title, what was asked (name, text), drawings, tables, what was left out (what, why), and what the numbers do
    not say."""

    title: str
    asked: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...]
    limits: tuple[str, ...]
    note: str = ""
    left_out: tuple[tuple[str, str], ...] = ()
    provenance: Provenance | None = None

    @property
    def command(self) -> str:
        """The command line that made the result, where it was one."""
        return "" if self.provenance is None else str(self.provenance.options.get(COMMAND, ""))

    @property
    def made(self) -> list[tuple[str, str]]:
        """What the result was made from."""
        if self.provenance is None:
            return []
        options = {name: value for name, value in self.provenance.options.items() if name != COMMAND}
        return made(self.provenance.with_(options=options))


def sections_html(sections: Sequence[Section], *, kind: str, title: str = "") -> str:
    """The page, as text: complete in itself, nothing fetched."""
    if not sections:
        raise TrimtabError("a page needs at least one section")
    more = "" if len(sections) == 1 else f" and {counted(len(sections) - 1, 'other')}"
    return page("sections.html", title=title or sections[0].title + more, kind=kind, sections=sections, dash=NONE)


def panels_of(figure: Figure) -> tuple[Panel, ...]:
    """The drawings of a figure as panels."""
    span = "two" if len(figure.drawings) == 1 else "one"
    return tuple(Panel(d.title, d.caption, d.svg, span=span) for d in figure.drawings)


def asked_of(pairs: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Pairs to be read, those without a text left out."""
    return tuple((name, str(value)) for name, value in pairs.items() if str(value))


def table_of(
    frame: pd.DataFrame, about: str, *, words: int, code: tuple[int, ...] = (), why: str = "not measured"
) -> Table:
    """A frame as a table: the first `words` columns hold words, the others numbers to three digits."""
    rows = [
        tuple(str(cell) if i < words else _cell(cell) for i, cell in enumerate(row))
        for row in frame.itertuples(index=False)
    ]
    columns = tuple(str(name).replace("_", " ") for name in frame.columns)
    return Table(about, columns, tuple(rows), words, code, why)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "yes" if value else ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or float(value).is_integer():
        return fixed(float(value), 0) if math.isfinite(float(value)) else number(float(value))
    return number(float(value))
