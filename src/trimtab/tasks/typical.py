"""Typical activations: what stands at first tokens on average, and what stands at all others.

First tokens draw attention and have activations like no other's (Xiao et al. 2024, arXiv 2309.17453; Sun et al. 2024,
arXiv 2402.17762), so the two means never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import TaskError
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.tasks.means import pooled
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

FIRST = Scope.parse(0)


@dataclass(frozen=True, eq=False)
class Typical:
    """The mean activations (*shape) of sites with positions.

    `first` is that of the first tokens of all prompts. `later` is the mean over prompts of the mean over the site's
    positions but the first token; sites that cover first tokens alone are not in it.
    """

    first: Mapping[Site, np.ndarray]
    later: Mapping[Site, np.ndarray]

    def of_later(self, site: Site) -> np.ndarray:
        """`later` of a site. TaskError where it covers first tokens alone."""
        if site not in self.later:
            raise TaskError(
                f"{site.with_(at=None)}: the mean of tokens that are not the first of their prompt is asked for, and "
                f'"{site.at}" covers first ones alone in the prompts that it is taken over, whose activations are '
                "like no other's: take it over prompts (a reference) that have words in front of these tokens"
            )
        return self.later[site]


def typical(
    lm: LM,
    prompts: Prompts,
    sites: Sequence[Site],
    *,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Typical:
    """The means of sites with positions over these prompts, from one forward pass over each.

    Raises SiteError for attention scores, TaskError where the positions of a site cover no token of a prompt.
    """
    scopes = {site: Scope("all") if site.at is None else site.at for site in sites}
    names = {at: f"typical_{number}" for number, at in enumerate(dict.fromkeys(scopes.values()))}
    spans: dict[str, tuple[tuple[int, ...], ...]] = {}
    counted: dict[Scope, np.ndarray] = {}
    for at, name in names.items():
        rows = from_first(prompts, at)
        if not all(rows):
            text = " ".join(prompts.tokens[rows.index([])])
            raise TaskError(f'"{at}" covers no token of {text[:80]!r}: read another span')
        later = [tuple(p for p in row if p) for row in rows]
        spans[name] = tuple(row or (0,) for row in later)  # a prompt with none is read somewhere, and not counted
        counted[at] = np.array([bool(row) for row in later])
    reads = {site: site.with_(at=Scope.parse(names[at])) for site, at in scopes.items()}
    firsts = {site: site.with_(at=FIRST) for site in sites}
    found = pooled(
        lm,
        prompts.with_spans(**spans),
        list(dict.fromkeys([*reads.values(), *firsts.values()])),
        batch_size=batch_size,
        dictionaries=dictionaries,
        progress=progress,
    )
    some = [site for site in reads if counted[scopes[site]].any()]
    return Typical(
        {site: found[at].mean(0, dtype=np.float64) for site, at in firsts.items()},
        {site: found[reads[site]][counted[scopes[site]]].mean(0, dtype=np.float64) for site in some},
    )


def from_first(prompts: Prompts, at: Scope) -> list[list[int]]:
    """The positions that a scope covers in each row, counted from the row's first token, which is 0."""
    starts = prompts.start.tolist()
    return [[column - start for column in row] for row, start in zip(prompts.positions(at), starts, strict=True)]
