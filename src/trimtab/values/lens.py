"""Lens: what a model would say next at every layer and position of one prompt, were it to stop there.

It holds the most likely tokens of each cell and a few numbers about the whole distribution, and shows them. How the
distributions are read off a model it does not know (see `trimtab.locate.lens`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.site import Site

if TYPE_CHECKING:
    import pandas as pd

_CELLS = ("rank", "probability", "entropy", "kl")


class Guess(NamedTuple):
    """A token that may come next, and its probability."""

    token: str
    id: int
    probability: float


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Saved):
    """Next-token distributions read off the residual stream at some sites and every position of one prompt.

    `tokens` are the prompt's tokens as text and `token_ids` (pos) their ids; `sites` (layer) name the tensor that each
    row was read from, in the order of computation. Of each cell `top_ids` and `top_probabilities` (layer pos k) are the
    most likely next tokens; `words` spells every id that occurs. `targets` (pos) is the token that is followed through
    the layers: the chosen `answer`, or where that is None what the model itself says at that position. `rank` (layer
    pos) is the target's rank, 1 for the most likely, `probability` its probability, `entropy` that of the cell in nats,
    and `kl` the divergence KL(model's output ‖ cell) in nats. `edits` are those that were on, as text.

    >>> one = np.ones((1, 1))
    >>> lens = Lens(
    ...     ("Hi",), [7], ("L0.resid_post",), [[[3]]], [[[0.5]]], {"3": " there"}, None, [3], one, one / 2, one, 0 * one
    ... )
    >>> lens.top("L0.resid_post", 0)
    [Guess(token=' there', id=3, probability=0.5)]
    """

    KIND: ClassVar[str] = "lens"

    tokens: tuple[str, ...]
    token_ids: np.ndarray
    sites: tuple[str, ...]
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    words: Mapping[str, str]
    answer: str | None
    targets: np.ndarray
    rank: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    edits: tuple[str, ...] = ()
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(str(token) for token in self.tokens))
        object.__setattr__(self, "sites", tuple(str(Site.parse(site)) for site in self.sites))
        object.__setattr__(self, "edits", tuple(str(edit) for edit in self.edits))
        object.__setattr__(self, "words", {str(number): str(word) for number, word in self.words.items()})
        grid = (len(self.sites), len(self.tokens))
        if 0 in grid:
            raise TrimtabError(f"a lens needs at least one site and one position, got {grid[0]} and {grid[1]}")
        depth = np.shape(self.top_ids)[-1] if np.ndim(self.top_ids) else 0
        shapes = {"token_ids": grid[1:], "targets": grid[1:], "top_ids": (*grid, depth), "rank": grid}
        for name, shape in shapes.items():
            self._hold(name, shape, np.int64)
        for name in ("top_probabilities", "probability", "entropy", "kl"):
            self._hold(name, (*grid, depth) if name == "top_probabilities" else grid, np.float64)
        seen = set(np.unique(np.concatenate([self.top_ids.ravel(), self.targets])).tolist())
        if lacking := sorted(seen - {int(number) for number in self.words}):
            raise TrimtabError(f"words must spell every token id of a lens, and {lacking[0]} is missing")

    def _hold(self, name: str, shape: tuple[int, ...], dtype: type) -> None:
        array = np.array(getattr(self, name), dtype=dtype, order="C")
        if array.shape != shape:
            raise TrimtabError(f"{name} of this lens must have shape {shape}, got {array.shape}")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def method(self) -> str:
        """ "tuned lens" where streams were translated before they were read, else "logit lens"."""
        tuned = self.provenance is not None and self.provenance.options.get("lens")
        return "tuned lens" if tuned else "logit lens"

    @property
    def k(self) -> int:
        """How many tokens are kept of each cell."""
        return self.top_ids.shape[-1]

    @property
    def prompt(self) -> str:
        """The tokens of the prompt, joined."""
        return "".join(self.tokens)

    def word(self, token: int) -> str:
        """The text of a token id that occurs in this lens."""
        return self.words[str(int(token))]

    def row(self, site: str | Site | int) -> int:
        """The row of a site, or of a number counted as in a list. SiteError for one that is not in this lens."""
        if isinstance(site, int):
            if not -len(self.sites) <= site < len(self.sites):
                raise SiteError(f"row {site} is out of range: this lens has rows 0 to {len(self.sites) - 1}")
            return site % len(self.sites)
        name = str(Site.parse(site))
        if name not in self.sites:
            first, last = self.sites[0], self.sites[-1]
            raise SiteError(f'"{name}" is not in this lens{nearest(name, self.sites)}: it has {first} to {last}')
        return self.sites.index(name)

    def top(self, site: str | Site | int, pos: int = -1) -> list[Guess]:
        """The most likely next tokens at a site and position, the likeliest first."""
        row = self.row(site)
        pairs = zip(self.top_ids[row, pos], self.top_probabilities[row, pos], strict=True)
        return [Guess(self.word(token), int(token), float(p)) for token, p in pairs]

    def first_at(self, pos: int = -1) -> str | None:
        """The site from which on the target is the most likely token up to the last site; None where it is not."""
        behind = np.flatnonzero(self.rank[:, pos] != 1)
        start = 0 if not len(behind) else int(behind[-1]) + 1
        return self.sites[start] if start < len(self.sites) else None

    def cells(self) -> Iterator[dict[str, object]]:
        """Every cell as plain values, site by site: what the table and the JSON of the command line show."""
        for i, site in enumerate(self.sites):
            for pos, token in enumerate(self.tokens):
                numbers = {name: getattr(self, name)[i, pos].item() for name in _CELLS}
                top = [guess._asdict() for guess in self.top(i, pos)]
                yield {
                    "site": site,
                    "pos": pos,
                    "token": token,
                    "target": self.word(self.targets[pos]),
                    **numbers,
                    "top": top,
                }

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each site, position and kept token, the likeliest first.

        Columns: site, pos, token (of the prompt), order (from 1), guess, id, p (of the guess), target, rank,
        probability (of the target), entropy, kl.
        """
        import pandas as pd

        rows = []
        for cell in self.cells():
            top = cell.pop("top")
            assert isinstance(top, list)
            for order, guess in enumerate(top, 1):
                named = {"order": order, "guess": guess["token"], "id": guess["id"], "p": guess["probability"]}
                rows.append({**cell, **named})
        columns = ["site", "pos", "token", "order", "guess", "id", "p", "target", *_CELLS]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        guess = self.top(-1)[0]
        grid = f"{len(self.sites)} sites × {len(self.tokens)} positions"
        return f"<Lens {grid}, {self.sites[0]} to {self.sites[-1]}, next {guess.token!r} {guess.probability:.1%}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(visible(token))}</th>" for token in self.tokens)
        rows = [f"<tr><th></th>{head}</tr>"]
        for i in reversed(range(len(self.sites))):
            cells = "".join(self._cell(i, pos) for pos in range(len(self.tokens)))
            rows.append(f"<tr><th>{escape(self.sites[i])}</th>{cells}</tr>")
        return f'<table style="border-collapse:collapse;font-size:small">{"".join(rows)}</table>'

    def _cell(self, row: int, pos: int) -> str:
        guess = self.top(row, pos)[0]
        colour = f"rgba(52,101,164,{0.6 * guess.probability:.2f})"
        title = f"{guess.token!r} {guess.probability:.1%}"
        style = f"background:{colour};padding:1px 4px"
        return f'<td style="{style}" title="{escape(title)}">{escape(visible(guess.token))}</td>'


MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
"""What stands for white space where a token is shown."""


def marked(token: str) -> list[tuple[str, bool]]:
    """A token in parts to be shown: text, and whether it is a mark for something that cannot be seen.

    >>> marked(" a\\n")
    [('·', True), ('a', False), ('↵', True)]
    """
    if not token:
        return [("∅", True)]
    parts: list[tuple[str, bool]] = []
    for char in token:
        mark = MARKS.get(char)
        if mark is None and not char.isprintable():
            mark = f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
        new = (mark or char, mark is not None)
        if parts and parts[-1][1] == new[1]:
            new = (parts.pop()[0] + new[0], new[1])
        parts.append(new)
    return parts


def visible(token: str) -> str:
    """A token on one line, with white space and control characters as marks.

    >>> visible(" Paris"), visible("\\n\\n"), visible("")
    ('·Paris', '↵↵', '∅')
    """
    return "".join(text for text, _ in marked(token))
