"""Watched: texts as a model read and wrote them, with what monitors made of every token.

The numbers are margins of tokens; a text's margin is their mean, or for a monitor of last tokens the last one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from trimtab.errors import TrimtabError, nearest
from trimtab.values.lens import visible
from trimtab.values.monitor import Monitor
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.figures.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Watched(Saved):
    """Prompts and what was generated after them, token by token, under some monitors.

    `tokens` (row, token) are the texts of all real tokens of each row, of which the first `prompt` (row) are the
    prompt's. `margins` gives for each monitor (row token), NaN behind a row's end; `read` for each (row token) the
    tokens of the prompt that are to it what the text was that it was fitted on: without a chat template around it.
    Without these a prompt is all its tokens but a row's very first.
    """

    KIND: ClassVar[str] = "watched"

    tokens: tuple[tuple[str, ...], ...]
    prompt: tuple[int, ...]
    monitors: Mapping[str, Monitor]
    margins: Mapping[str, np.ndarray]
    read: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(map(tuple, self.tokens)))
        object.__setattr__(self, "prompt", tuple(int(n) for n in self.prompt))
        longest = max(map(len, self.tokens), default=0)
        for field_, kind, names in (("margins", np.float64, self.monitors), ("read", np.bool_, self.read)):
            arrays = {}
            for name in names:
                values = np.array(getattr(self, field_)[name], dtype=kind)
                if values.shape != (len(self.tokens), longest):
                    shape = len(self.tokens), longest
                    raise TrimtabError(f"{field_} must be (row token), {shape} here, got {values.shape}")
                values.setflags(write=False)
                arrays[name] = values
            object.__setattr__(self, field_, arrays)

    def __len__(self) -> int:
        return len(self.tokens)

    def new(self, name: str) -> Float[np.ndarray, "row token"]:
        """The margins of the generated tokens alone, NaN behind a row's end."""
        margins = self._margins(name)
        most = max(len(row) - start for row, start in zip(self.tokens, self.prompt, strict=True))
        out = np.full((len(self), most), np.nan)
        for row, start in enumerate(self.prompt):
            end = len(self.tokens[row])
            out[row, : end - start] = margins[row, start:end]
        return out

    def running(self, name: str) -> Float[np.ndarray, "row token"]:
        """The margin of what is generated so far, after each new token: the mean, or the last one's (`pooled`)."""
        new = self.new(name)
        return self.monitors[name].running(new)

    def of_prompt(self, name: str) -> Float[np.ndarray, "row"]:
        """The margin of each prompt: the mean over the tokens that the monitor reads there (`read`), or the last one's
        where it reads last tokens; NaN where it reads none."""
        margins, pooled = self._margins(name), self.monitors[name].pooled
        out = np.full(len(self), np.nan)
        for row, n in enumerate(self.prompt):
            first = min(1, n - 1) if pooled else n - 1
            at = self.read[name][row, :n] if name in self.read else np.arange(n) >= first
            if at.any():
                out[row] = margins[row, :n][at].mean()
        return out

    def probability(self, name: str) -> Float[np.ndarray, "row token"]:
        """The calibrated probability of the positive side after each new token."""
        return self.monitors[name].probability(self.running(name))

    def flagged(self, name: str) -> tuple[int | None, ...]:
        """The first new token of each row (from 0) after which it is above the threshold for texts that are looked at
        after every token (`Monitor.stream_threshold`), or None."""
        new = self.new(name)
        above = self.monitors[name].stream_flags(new)
        return tuple(int(row.argmax()) if row.any() else None for row in above)

    def flagged_if_calibrated(self, name: str) -> tuple[int | None, ...]:
        """`flagged`, and None for every row where the monitor has no threshold for that."""
        known = self.monitors[name].stream_threshold is not None
        return self.flagged(name) if known else (None,) * len(self)

    def to_frame(self) -> pd.DataFrame:
        """A table with a row for each token and monitor: row, pos, token, part ("prompt" or "new"), monitor, margin."""
        import pandas as pd

        rows = [
            (row, pos, token, "prompt" if pos < self.prompt[row] else "new", name, self.margins[name][row, pos])
            for row, tokens in enumerate(self.tokens)
            for pos, token in enumerate(tokens)
            for name in self.monitors
        ]
        return pd.DataFrame(rows, columns=["row", "pos", "token", "part", "monitor", "margin"])

    def plot(self) -> Figure:
        """The running margin of every text, token by token, and where it is flagged; a drawing for each monitor."""
        from trimtab.values.monitor_figures import watched_figure

        return watched_figure(self)

    def _margins(self, name: str) -> np.ndarray:
        if name not in self.margins:
            raise TrimtabError(
                f'there is no monitor "{name}"{nearest(name, self.margins)}: there are {", ".join(self.margins)}'
            )
        return self.margins[name]

    def __repr__(self) -> str:
        parts = []
        for name in self.monitors:
            monitor = self.monitors[name]
            if monitor.stream_threshold is None:
                parts.append(name)
                continue
            hit = sum(at is not None for at in self.flagged(name))
            parts.append(f"{name} flags {hit} ({monitor.false_positive_rate:.0%} of negatives, at any token)")
        return f"<Watched {len(self)} texts: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        blocks = []
        for name in self.monitors:
            blocks.append(f"<p><b>{escape(name)}</b> ({escape(self.monitors[name].probe.poles[0])})</p>")
            for row, tokens in enumerate(self.tokens):
                spans = [self._token(name, row, pos, token) for pos, token in enumerate(tokens)]
                blocks.append(f'<p style="font-family:monospace">{"".join(spans)}</p>')
        return f"<div>{''.join(blocks)}{self.plot()._repr_html_()}</div>"

    def _token(self, name: str, row: int, pos: int, token: str) -> str:
        """A token on a ground that is the redder the likelier its own margin makes the positive side."""
        margin = self.margins[name][row, pos]
        p = float(self.monitors[name].probability(margin))
        style = f"background:rgba(214,69,65,{0.8 * p if np.isfinite(p) else 0:.2f})"
        style += "" if pos >= self.prompt[row] else ";opacity:0.6"
        return f'<span style="{style}" title="{margin:.3g}, p = {p:.2f}">{escape(visible(token))}</span>'
