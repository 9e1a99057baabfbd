"""MassiveActivations: the few entries of the residual stream that are thousands of times larger than the rest.

It holds where they are and how large; `trimtab.locate.massive` finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class MassiveActivations(Saved):
    """Entries larger than `absolute` and at least `ratio` times the median of their text's entries at that site.

    Of each entry: `sites` its tensor, `channels` its channel, `examples` and `positions` its token (positions count
    from 0), `tokens` that token as text, `values` the activation and `ratios` |a| over the median. `found` counts all
    of them, where only the largest are listed. `scores` holds for every example and layer the largest |a| over the
    median.
    """

    KIND: ClassVar[str] = "massive activations"

    sites: tuple[str, ...]
    channels: np.ndarray
    examples: np.ndarray
    positions: np.ndarray
    tokens: tuple[str, ...]
    values: np.ndarray
    ratios: np.ndarray
    found: int
    absolute: float
    ratio: float
    scores: Scores
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        object.__setattr__(self, "tokens", tuple(self.tokens))
        for name in ("channels", "examples", "positions", "values", "ratios"):
            kind = np.float64 if name in ("values", "ratios") else np.int64
            array = np.array(getattr(self, name), dtype=kind)
            if array.shape != (len(self.sites),) or len(self.tokens) != len(self.sites):
                raise TrimtabError(f"{name} must have one entry for each of {len(self.sites)} activations")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return self.found

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each entry, the largest ratio first: site, channel, example, position, token, value,
        ratio."""
        import pandas as pd

        columns = {
            "site": self.sites,
            "channel": self.channels,
            "example": self.examples,
            "position": self.positions,
            "token": self.tokens,
            "value": self.values,
            "ratio": self.ratios,
        }
        return pd.DataFrame(columns).sort_values("ratio", ascending=False, ignore_index=True, kind="stable")

    def by_channel(self) -> pd.DataFrame:
        """A table of channels, the most frequent first: channel, entries, sites, examples, first_tokens (the share at a
        text's first token), value (the median)."""
        frame = self.to_frame()
        first = frame.assign(first=frame["position"] == 0).groupby("channel", as_index=False)
        made = first.agg(
            entries=("value", "count"),
            sites=("site", "nunique"),
            examples=("example", "nunique"),
            first_tokens=("first", "mean"),
            value=("value", "median"),
        )
        return made.sort_values("entries", ascending=False, ignore_index=True, kind="stable")

    def __repr__(self) -> str:
        channels = sorted(set(self.channels.tolist()))
        listed = ", ".join(map(str, channels[:6])) + (" …" if len(channels) > 6 else "")
        where = f" in channels {listed}" if channels else ""
        return f"<MassiveActivations: {self.found}{where}, of {len(self.scores)} examples>"

    def _repr_html_(self) -> str:
        return f"<div>{self.found} massive activations{self.by_channel().head(20).to_html(index=False)}</div>"
