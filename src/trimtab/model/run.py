"""One forward pass: read these sites, apply these edits, stop after the last tensor that is read.

The Hugging Face model is called as it is. `Run` holds what was read, addressed by site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.errors import SiteError, nearest
from trimtab.model.anatomy import Anatomy
from trimtab.model.frame import Frame
from trimtab.model.hooks import Step
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import Call
from trimtab.model.taps import Tap
from trimtab.values.provenance import Provenance
from trimtab.values.site import Site


class Stop(Exception):
    """Raised inside a forward pass once everything that was asked for has been read."""


@dataclass(frozen=True, eq=False)
class Run:
    """Activations of prompts at chosen sites, and the logits.

    `run["L5.resid_post"]` is (batch pos d_model), `run["L5.head[7]"]` (batch pos 1 d_head), `run["L5.pattern"]` (batch
    head query key): the shape of the site's row in the table, one dimension shorter where a single position is named
    (`run["L5.resid_post@-1"]` is (batch d_model)). A span keeps its position axis; rows of different length raise.
    """

    prompts: Prompts
    logits: Tensor | None = None
    activations: Mapping[Site, Tensor] = field(default_factory=dict)
    """By whole site, (batch pos unit …), or by site with positions, (batch, positions, unit …)."""
    edited: bool = False
    """Whether edits were on: only unedited runs of equal prompts have equal activations."""
    origin: object = field(default=None, repr=False)
    """The model that was run; None for a run made by hand."""
    made: Call | None = field(default=None, repr=False)

    @property
    def provenance(self) -> Provenance | None:
        """Where this comes from, worked out when it is first asked for; None for a run made by hand."""
        return None if self.made is None else self.made.provenance

    def __getitem__(self, site: str | Site) -> Tensor:
        site = Site.parse(site)
        if site.name == "logits" and site.view is None and self.logits is not None:
            values = self.logits
        elif site.with_(index=None) in self.activations:
            return _shown(site, _pick(self.activations[site.with_(index=None)], site), site.at is not None)
        elif site in self.activations:
            return _shown(site, self.activations[site], site.at is not None)
        elif site.with_(at=None) in self.activations:
            return _shown(site, _at(self.activations[site.with_(at=None)], self.prompts, site), True)
        elif site.whole in self.activations:
            values = self.activations[site.whole]
        else:
            have = [str(s) for s in self.activations]
            raise SiteError(f'"{site}" was not read in this run{nearest(str(site), have)}; read: {_listed(have)}')
        values = _pick(values, site)
        if site.at is None:
            return _shown(site, values, False)
        return _shown(site, _at(values, self.prompts, site), True)

    def __contains__(self, site: object) -> bool:
        if not isinstance(site, str | Site):
            return False
        site = Site.parse(site)
        if site.name == "logits" and site.view is None and self.logits is not None:
            return True
        forms = (site, site.with_(index=None), site.with_(at=None), site.whole)
        return any(form in self.activations for form in forms)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        logits = "" if self.logits is None else ", with logits"
        return f"Run({self.prompts!r}: {_listed([str(s) for s in self.activations])}{logits})"

    def whole(self, site: Site) -> Tensor:
        """A whole site as (batch pos unit …), attention scores as (batch query head key), for an edit to take from."""
        if site in self.activations:
            return self.activations[site]
        values = self[site]
        return values.transpose(1, 2) if site.name in ("scores", "pattern") else values

    def tokens(self, site: str | Site) -> Tensor:
        """(token unit …): every real token of every row, pads left out."""
        site = Site.parse(site)
        if site.at is not None:
            raise SiteError(f"{site}: tokens are those of all positions; run[site] gives those of one")
        return self.whole(site)[self.prompts.mask.bool()]


def reader(
    site: Site,
    anatomy: Anatomy,
    prompts: Prompts,
    dictionaries: Mapping[str, Dictionary],
    into: dict[Site, Tensor],
    todo: set[Site],
) -> Step:
    """A step that puts a site's tensor, or the named positions of it, into `into`; `todo` empties as sites come in."""
    columns = None if site.at is None else _columns(prompts, site)
    if site.view is not None and site.dictionary not in dictionaries:
        have = ", ".join(sorted(dictionaries)) or "none"
        raise SiteError(f'{site}: no dictionary named "{site.dictionary}" was given (dictionaries: {have})')

    def look(raw: Tensor, tap: Tap, frame: Frame) -> Tensor | None:
        x = tap.layout.read(raw, frame.batch, raw.shape[2] if site.name == "rot_k" else frame.length)
        if site.view is not None:
            dictionary = dictionaries[site.dictionary or ""]
            x = x.flatten(2)  # the heads side by side
            features = dictionary.encode(x)
            x = features if site.view == "feature" else x - dictionary.decode(features)
        if site.index is not None:
            if max(site.index) >= x.shape[2]:
                last = x.shape[2] - 1
                raise SiteError(
                    f"{site}: {site.unit} {max(site.index)} is out of range; there are {site.unit}s 0 to {last}"
                )
            x = x[:, :, torch.as_tensor(site.index, device=x.device)]
        if columns is not None:
            x = x[torch.arange(len(x), device=x.device)[:, None], columns.to(x.device)]
        elif tap.copy:
            x = x.clone()
        into[site] = x
        todo.discard(site)
        return None

    return Step(anatomy.resolve(site.base.whole), look=look)


def _columns(prompts: Prompts, site: Site) -> Tensor:
    assert site.at is not None
    positions = prompts.positions(site.at)
    counts = sorted({len(p) for p in positions})
    if len(counts) > 1:
        raise SiteError(
            f"{site} has {counts[0]} to {counts[-1]} tokens in different rows, which make no rectangle; read "
            f"{site.with_(at=None)} and use run.tokens or prompts.positions, or name one position"
        )
    return torch.tensor(positions, dtype=torch.long)


def _pick(values: Tensor, site: Site) -> Tensor:
    if site.index is None:
        return values
    if max(site.index) >= values.shape[2]:
        last = values.shape[2] - 1
        raise SiteError(f"{site}: {site.unit} {max(site.index)} is out of range; there are {site.unit}s 0 to {last}")
    return values[:, :, torch.as_tensor(site.index, device=values.device)]


def _at(values: Tensor, prompts: Prompts, site: Site) -> Tensor:
    columns = _columns(prompts, site).to(values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], columns]


def _shown(site: Site, values: Tensor, positioned: bool) -> Tensor:
    """Kept as (batch pos unit …); shown as in the table, and without a position axis where one position was named."""
    assert site.at is not None or not positioned
    if site.at is not None and site.at.kind == "index":
        return values.squeeze(1)
    return values.transpose(1, 2) if site.name in ("scores", "pattern") else values


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else ", ".join(names[:5]) + f", … ({len(names)} sites)"
