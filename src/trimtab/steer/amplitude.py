"""Amplitude manipulation: what a located part puts out, times a factor: 0 removes it, 2 doubles it, −1 turns it."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.errors import EditError
from trimtab.values.edit import Edit, Intervention
from trimtab.values.scope import Scope
from trimtab.values.site import Site


def scale(sites: Iterable[Site | str] | Site | str, factor: float, *, where: str | Scope = "all") -> Intervention:
    """Each site's activation times `factor`, at the positions of `where` (or those that a site names).

    Units of one layer are one edit; where the whole site is named too, it is scaled whole. Raises EditError without
    sites.

    >>> print(scale(["L3.head[1]", "L3.head[4]", "L5.neuron[17]"], 0))
    scale x 0:
    L3.head[1,4] scale 0
    L5.neuron[17] scale 0
    """
    listed = [sites] if isinstance(sites, str | Site) else list(sites)
    if not listed:
        raise EditError("no sites were given to scale: give those of a Scores, such as scores.top(5)")
    together: dict[Site, set[int] | None] = {}
    for site in map(Site.parse, listed):
        at = site.at or Scope.parse(where)
        whole = site.with_(index=None, at=at)
        units = together.setdefault(whole, set())
        together[whole] = None if site.index is None or units is None else units | set(site.index)
    edits = [
        Edit(site.with_(index=None if units is None else tuple(sorted(units))), "scale", factor)
        for site, units in together.items()
    ]
    return Intervention(tuple(edits), name=f"scale x {factor:g}")
