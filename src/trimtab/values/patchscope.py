"""Patchscope: what a model says of its own activations when they are put into another prompt.

It holds texts and next tokens for each source site. How they are made it does not know (`trimtab.locate.patchscopes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.lens import Guess
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.site import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Patchscope(Saved):
    """Readings of one prompt's activations by way of a target prompt.

    `sites` (site) are read at `at` in the prompt of `tokens`, and set at `into` (site) in the prompt of `target`, at
    its position `target_at`. `texts` (site) are what the model then writes; `top_ids` and `top_probabilities` (site k)
    the likeliest next tokens, and `words` spells every id that occurs.

    >>> made = Patchscope(
    ...     ("Hi",), ("L0.resid_post",), "-1", ("?",), ("L0.resid_post",), "-1", (" Hi",), [[3]], [[0.5]], {"3": " Hi"}
    ... )
    >>> made.top("L0.resid_post")
    [Guess(token=' Hi', id=3, probability=0.5)]
    """

    KIND: ClassVar[str] = "patchscope"

    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    at: str
    target: tuple[str, ...]
    into: tuple[str, ...]
    target_at: str
    texts: tuple[str, ...]
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    words: Mapping[str, str]
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "sites", "target", "into", "texts"):
            object.__setattr__(self, name, tuple(str(part) for part in getattr(self, name)))
        object.__setattr__(self, "words", {str(number): str(word) for number, word in self.words.items()})
        n, k = len(self.sites), np.shape(self.top_ids)[-1] if np.ndim(self.top_ids) else 0
        if not n or {len(self.into), len(self.texts)} != {n}:
            raise TrimtabError(
                f"a patchscope has one target site and one text for each site, got {n} sites, {len(self.into)} target "
                f"sites and {len(self.texts)} texts"
            )
        for name, dtype in (("top_ids", np.int64), ("top_probabilities", np.float64)):
            array = np.array(getattr(self, name), dtype=dtype, order="C")
            if array.shape != (n, k):
                raise TrimtabError(f"{name} of this patchscope must have shape {(n, k)}, got {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def row(self, site: str | Site) -> int:
        """The row of a source site. SiteError for one that was not read."""
        name = str(Site.parse(site))
        if name not in self.sites:
            raise SiteError(f'"{name}" was not read by this patchscope{nearest(name, self.sites)}')
        return self.sites.index(name)

    def top(self, site: str | Site) -> list[Guess]:
        """The likeliest next tokens with this site's activation in the target prompt."""
        row = self.row(site)
        pairs = zip(self.top_ids[row].tolist(), self.top_probabilities[row].tolist(), strict=True)
        return [Guess(self.words[str(token)], token, p) for token, p in pairs]

    def text(self, site: str | Site) -> str:
        """What the model writes with this site's activation in the target prompt."""
        return self.texts[self.row(site)]

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each site: site, into, guess, p (of the likeliest next token), text."""
        import pandas as pd

        best = [self.top(site)[0] for site in self.sites]
        return pd.DataFrame(
            {
                "site": self.sites,
                "into": self.into,
                "guess": [guess.token for guess in best],
                "p": [guess.probability for guess in best],
                "text": self.texts,
            }
        )

    def __repr__(self) -> str:
        last = self.top(self.sites[-1])[0]
        return (
            f"<Patchscope of {''.join(self.tokens)[:40]!r}@{self.at} in {''.join(self.target)[:40]!r}: "
            f"{len(self.sites)} sites, {self.sites[-1]} says {last.token!r} {last.probability:.1%}>"
        )
