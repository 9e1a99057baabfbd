"""TunedLens: for each site an affine map into the basis of the last layer, and what it was trained on.

It holds numbers and says how good they are; training and reading with it are in `trimtab.locate.tuned_lens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.provenance import Provenance, plain
from trimtab.values.saved import Saved
from trimtab.values.site import Site

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens(Saved):
    """Translators of residual streams: at each site x becomes x + A x + b before the final norm and the unembedding.

    `sites` (site) name the streams, `weight` (site d_model d_model) holds A and `bias` (site d_model) b, in the
    stream's own unit; both float32, zero for a site that is left as it is. `model` and `model_hash` are those it was
    trained on. `before` and `after` (site) are the divergences KL(model's output ‖ lens) in nats per token on
    `held_out` positions that were not trained on, as the plain logit lens and as this one; NaN where that was not
    measured. `trained` says on what: positions drawn, how many of them were different, steps, rows of text. `losses`
    (step site) are the divergences of the training batches.

    >>> TunedLens.identity(["L0.resid_post", "L1.resid_post"], 4).row("L1.resid_post")
    1
    """

    KIND: ClassVar[str] = "tuned lens"

    sites: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    model: str = ""
    model_hash: str = ""
    before: np.ndarray = field(default_factory=lambda: np.zeros(0))
    after: np.ndarray = field(default_factory=lambda: np.zeros(0))
    held_out: int = 0
    trained: Mapping[str, object] = field(default_factory=dict)
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(str(Site.parse(site)) for site in self.sites))
        object.__setattr__(self, "trained", plain(self.trained))
        n = len(self.sites)
        if not n or len(set(self.sites)) < n:
            raise TrimtabError(f"a tuned lens needs at least one site, each of them once, got {', '.join(self.sites)}")
        d = np.shape(self.bias)[-1] if np.ndim(self.bias) else 0
        self._hold("weight", self.weight, (n, d, d), np.float32)
        self._hold("bias", self.bias, (n, d), np.float32)
        for name in ("before", "after"):
            given = getattr(self, name)
            self._hold(name, given if np.size(given) else np.full(n, np.nan), (n,), np.float64)
        losses = self.losses if np.size(self.losses) else np.zeros((0, n))
        self._hold("losses", losses, (len(losses), n), np.float64)

    def _hold(self, name: str, value: object, shape: tuple[int, ...], dtype: type) -> None:
        array = np.array(value, dtype=dtype, order="C")
        if array.shape != shape:
            raise TrimtabError(f"{name} of this tuned lens must have shape {shape}, got {array.shape}")
        if name in ("weight", "bias") and not np.isfinite(array).all():
            raise TrimtabError(f"{name} of this tuned lens is not finite: train it with a smaller lr")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @classmethod
    def identity(cls, sites: Sequence[str | Site], d_model: int, *, model: str = "", model_hash: str = "") -> Self:
        """The lens that leaves every site as it is: the logit lens."""
        names = tuple(map(str, sites))
        n = len(names)
        return cls(names, np.zeros((n, d_model, d_model)), np.zeros((n, d_model)), model, model_hash)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.bias.shape[1]

    def row(self, site: str | Site) -> int:
        """The row of a site. SiteError for one that this lens has no translator for."""
        name = str(Site.parse(site).with_(at=None))
        if name not in self.sites:
            raise SiteError(
                f'"{name}" has no translator in this lens{nearest(name, self.sites)}: it has {self.sites[0]} to '
                f"{self.sites[-1]}; read these, or train a lens with that site"
            )
        return self.sites.index(name)

    def to_frame(self) -> pd.DataFrame:
        """A table with one row for each site: site, logit_lens and tuned_lens, its held-out divergences in nats."""
        import pandas as pd

        return pd.DataFrame({"site": self.sites, "logit_lens": self.before, "tuned_lens": self.after})

    def __repr__(self) -> str:
        about = f"{len(self.sites)} sites, {self.sites[0]} to {self.sites[-1]}, of {self.model or 'no model'}"
        if np.isnan(self.after).all():
            return f"<TunedLens {about}>"
        falls = f"{np.nanmean(self.before):.3g} to {np.nanmean(self.after):.3g}"
        seen = self.trained.get("positions", 0)
        return f"<TunedLens {about}: mean held-out KL {falls} nats, trained on {seen} positions>"
