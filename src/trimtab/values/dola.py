"""Dola: next-token probabilities contrasted between a model's output and an early layer.

It holds numbers and words. How they are made it does not know (`trimtab.locate.layer_contrast`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.values.lens import Guess
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Dola(Saved):
    """What comes next after some prompts (rows), by DoLa (Chuang et al. 2023, arXiv 2309.03883).

    `log_probs` (row vocab) are normalised, −inf where the output itself finds a token implausible. `sites` (site) are
    the candidates for the early layer, `divergence` (row site) their Jensen–Shannon divergence from the output in nats,
    and `chosen` (row) the site that each row was contrasted with. `tokens` (row) are the prompts'. `top_ids` and
    `top_probabilities` (row k) are the likeliest next tokens, and `words` spells every id that occurs.

    >>> made = Dola((("Hi",),), np.log([[0.25, 0.75]]), ("embed",), [[0.1]], ("embed",), [[1]], [[0.75]], {"1": " you"})
    >>> made.top()
    [Guess(token=' you', id=1, probability=0.75)]
    """

    KIND: ClassVar[str] = "dola"

    tokens: tuple[tuple[str, ...], ...]
    log_probs: np.ndarray
    sites: tuple[str, ...]
    divergence: np.ndarray
    chosen: tuple[str, ...]
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    words: Mapping[str, str]
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(tuple(map(str, row)) for row in self.tokens))
        for name in ("sites", "chosen"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        object.__setattr__(self, "words", {str(number): str(word) for number, word in self.words.items()})
        rows, k = len(self.tokens), np.shape(self.top_ids)[-1] if np.ndim(self.top_ids) else 0
        if not rows or len(self.chosen) != rows:
            raise TrimtabError(f"each row has one early layer that was chosen, got {rows} and {len(self.chosen)}")
        if other := [site for site in self.chosen if site not in self.sites]:
            raise TrimtabError(f"{other[0]} was chosen and is not among the candidates, {', '.join(self.sites)}")
        if k < 1:
            raise TrimtabError(
                f"each row names at least its likeliest token, got top_ids of shape {np.shape(self.top_ids)}"
            )
        vocab = np.shape(self.log_probs)[-1] if np.ndim(self.log_probs) else 0
        shapes = {"log_probs": vocab, "divergence": len(self.sites), "top_ids": k, "top_probabilities": k}
        for name, width in shapes.items():
            array = np.array(getattr(self, name), dtype=np.int64 if name == "top_ids" else None, order="C")
            if array.shape != (rows, width):
                raise TrimtabError(f"{name} must have shape {(rows, width)} here, got {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if unspelt := sorted(set(map(str, self.top_ids.ravel().tolist())) - self.words.keys()):
            raise TrimtabError(f"words spells every id of top_ids, and {', '.join(unspelt[:3])} is missing")

    def top(self, row: int = 0) -> list[Guess]:
        """The likeliest next tokens of a row, the likeliest first; fewer where fewer are plausible."""
        pairs = zip(self.top_ids[row].tolist(), self.top_probabilities[row].tolist(), strict=True)
        return [Guess(self.words[str(token)], token, p) for token, p in pairs if p > 0]

    def to_frame(self) -> pd.DataFrame:
        """A table with a row for each prompt and likely token: prompt, against, divergence, token, p."""
        import pandas as pd

        rows = []
        for row, (tokens, against) in enumerate(zip(self.tokens, self.chosen, strict=True)):
            apart = float(self.divergence[row, self.sites.index(against)])
            rows += [("".join(tokens), against, apart, guess.token, guess.probability) for guess in self.top(row)]
        return pd.DataFrame(rows, columns=["prompt", "against", "divergence", "token", "p"])

    def __repr__(self) -> str:
        guess = self.top()[0]
        return (
            f"<Dola of {len(self.chosen)} rows, {len(self.sites)} candidates: next {guess.token!r} "
            f"{guess.probability:.1%} against {self.chosen[0]}>"
        )
