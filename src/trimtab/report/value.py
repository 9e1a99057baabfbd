"""Any saved value as one HTML page: what a notebook shows of it, and what it was made from.

Scores, lenses and studies have pages of their own; this is for all others. It needs no model and no network.
"""

from __future__ import annotations

from markupsafe import Markup, escape

from trimtab.report.made import made, page
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved, frame_of

ROWS = 200
"""Rows of a table that a page shows."""


def value_html(value: Saved) -> str:
    """The page, as text: its own HTML where it has some, its table, else its words.

    >>> from trimtab.values.token_scores import TokenScores
    >>> "gradient" in value_html(TokenScores.of([[1.0]], [["a"]], method="gradient"))
    True
    """
    provenance = getattr(value, "provenance", None)
    return page(
        "value.html",
        title=value.KIND,
        words="" if own_words(value) is None else str(value),
        body=Markup(body(value)),
        made=made(provenance if isinstance(provenance, Provenance) else None),
    )


def own_words(value: Saved) -> str | None:
    """What a value says of itself where it says more than its repr does."""
    return None if type(value).__str__ is object.__str__ else str(value)


def body(value: Saved) -> str:
    """What shows a value in a page."""
    own, frame = getattr(value, "_repr_html_", None), frame_of(value)
    parts = [str(own())] if callable(own) else []
    if frame is not None:
        parts.append(f"<h2>The first {ROWS} of {len(frame):,} rows</h2>" if len(frame) > ROWS else "<h2>Every row</h2>")
        parts.append(frame.head(ROWS).to_html(index=False))
    if not parts and own_words(value) is None:
        parts.append(f"<pre>{escape(repr(value))}</pre>")
    return "".join(parts)
