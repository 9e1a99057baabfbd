"""TokenScores: a number for every token of some prompts, shown as coloured text.

It holds what was computed and knows nothing of how. Plain HTML, no script; a token's number is its tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved

MOST = 20
"""Prompts that are shown in a notebook."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenScores(Saved):
    """Numbers (prompt, token), NaN beyond a prompt's last token; `tokens` are the texts of each prompt's tokens.

    `site` is where they are read, `unit` what they are in, `method` what made them. `completeness_error` (prompt) is
    how far each prompt's numbers are from adding up to the change that they explain, None where they need not.
    """

    KIND: ClassVar[str] = "token scores"

    array: np.ndarray
    tokens: tuple[tuple[str, ...], ...]
    site: str = ""
    unit: str = ""
    method: str = ""
    completeness_error: tuple[float, ...] | None = None
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        array = np.array(self.array, dtype=np.float64)
        array.setflags(write=False)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "tokens", tuple(tuple(row) for row in self.tokens))
        longest = max(map(len, self.tokens), default=0)
        if array.shape != (len(self.tokens), longest):
            raise TrimtabError(
                f"numbers must have shape {(len(self.tokens), longest)}, a row for each prompt and a column for each "
                f"token of the longest, got {array.shape}"
            )
        errors = self.completeness_error
        if errors is not None:
            object.__setattr__(self, "completeness_error", tuple(map(float, errors)))
            if len(errors) != len(self.tokens):
                raise TrimtabError(f"completeness_error has one number for each of the {len(self.tokens)} prompts")

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], tokens: Sequence[Sequence[str]], **facts: object) -> TokenScores:
        """From as many numbers as each prompt has tokens."""
        array = np.full((len(rows), max(map(len, tokens), default=0)), np.nan)
        for i, row in enumerate(rows):
            array[i, : len(row)] = row
        return cls(array, tuple(tuple(row) for row in tokens), **facts)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self.tokens)

    def row(self, i: int) -> list[tuple[str, float]]:
        """Each token of a prompt with its number."""
        return [(token, float(value)) for token, value in zip(self.tokens[i], self.array[i], strict=False)]

    def html(self, most: int = MOST) -> str:
        """The first `most` prompts as coloured text, each on a scale of its own."""
        off = "" if not self.completeness_error else f"sums off by up to {max(self.completeness_error):.2g}"
        facts = [self.site, self.unit, off, "" if len(self) <= most else f"first {most} of {len(self)} prompts"]
        title = f"<b>{escape(self.method or 'token scores')}</b> " + escape(", ".join(fact for fact in facts if fact))
        lines = [
            tokens_html(row, values[: len(row)])
            for row, values in zip(self.tokens[:most], self.array[:most], strict=True)
        ]
        return f"<div>{title}{''.join(lines)}</div>"

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        best = ""
        if len(self) and np.isfinite(self.array).any():
            i, t = np.unravel_index(int(np.nanargmax(np.abs(self.array))), self.array.shape)
            best = f", strongest {self.tokens[i][t]!r} of prompt {i}"
        return f"<TokenScores {self.method}: {len(self)} prompts{f' ({self.unit})' if self.unit else ''}{best}>"


def tokens_html(tokens: Sequence[str], values: Sequence[float] | np.ndarray, largest: float | None = None) -> str:
    """One prompt as coloured text: red for positive, blue for negative, the stronger the larger; NaN is left bare.

    `largest`: the size at which the colour is full, by default that of the largest value.

    >>> tokens_html(["a", " b"], [1.0, -0.5]).count("<span")
    2
    """
    if len(tokens) != len(values):
        raise TrimtabError(f"each of the {len(tokens)} tokens needs a value, got {len(values)}")
    sizes = np.abs(np.asarray(values, dtype=np.float64))
    full = largest or (float(np.nanmax(sizes)) if np.isfinite(sizes).any() else 0.0)
    parts = []
    for token, value in zip(tokens, values, strict=True):
        text = escape(token.replace("\n", "↵"))
        if not np.isfinite(value):
            parts.append(f"<span>{text}</span>")
            continue
        strength = min(1.0, abs(float(value)) / full) if full else 0.0
        colour = f"rgba({'214,69,65' if value > 0 else '52,101,164'},{0.8 * strength:.2f})"
        parts.append(f'<span style="background:{colour}" title="{float(value):.4g}">{text}</span>')
    return f'<p style="white-space:pre-wrap;line-height:1.8">{"".join(parts)}</p>'
