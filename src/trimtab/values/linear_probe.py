"""LinearProbe: a direction at a site that tells the two sides of a task apart, and the edits that test it.

`locate.fit_probe` makes one and `steer` uses one: this is how the two rooms meet. Nothing here knows how a probe is
trained, nor of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from trimtab.errors import EditError, SiteError
from trimtab.values.edit import Affine, Edit
from trimtab.values.findings import Estimate
from trimtab.values.operands import array_of, number_of
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.scope import Scope
from trimtab.values.site import Site


@dataclass(frozen=True, eq=False, repr=False)
class LinearProbe(Saved):
    """A direction at a site, and where along it the sides of a task part.

    `direction` (*shape), of length 1, has the shape of the site's units, (d_model,) or for heads (head, d_head), and
    points to the positive side, which is where `margin` = x·direction + `bias` is above 0. `scale` is how far apart the
    two sides' means lie along it, in the activation's units. `kind` names the classifier, `read` the positions whose
    mean activation it was trained on, `task` the task and `poles` its sides. `metrics` has what is known of it, such as
    its balanced accuracy on held-out groups.

    Raises SiteError for several sites, EditError for a direction that is zero or not finite.

    >>> probe = LinearProbe("L3.resid_post", [3.0, 4.0], -5.0, 2.0)
    >>> probe.direction, probe.bias, float(probe.margin(np.array([0.6, 0.8])))
    (array([0.6, 0.8]), -1.0, 0.0)
    >>> print(probe.edit(1.5, where="last"))
    L3.resid_post@-1 add array(2,) x 1.5
    """

    KIND: ClassVar[str] = "probe"

    site: Site
    direction: np.ndarray
    bias: float
    scale: float
    kind: str = ""
    read: str = "text"
    task: str = ""
    poles: tuple[str, str] = ("positive", "negative")
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.parse(self.site))
        given = array_of(self.direction, f"the direction at {self.site}")
        length = float(np.linalg.norm(given.astype(np.float64)))
        if not length:
            raise EditError(f"the direction at {self.site} is zero: its two sides do not differ there")
        if abs(length - 1) > 1e-6:  # a direction of another length is taken with its bias
            given = array_of((given / length).astype(given.dtype), "the direction")
            object.__setattr__(self, "bias", self.bias / length)
        object.__setattr__(self, "direction", given)
        for name in ("bias", "scale"):
            object.__setattr__(self, name, number_of(getattr(self, name), f"the {name} of a probe"))
        object.__setattr__(self, "poles", tuple(self.poles))

    @property
    def vector(self) -> np.ndarray:
        """(*shape) from the negative side's mean to the positive one's, along the direction: what `edit` adds."""
        return (self.direction * self.scale).astype(np.float32)

    def margin(self, x: Float[np.ndarray, "..."]) -> np.ndarray:
        """(…) x·direction + bias of activations (… *shape): above 0 on the positive side, in the activation's units."""
        shape = self.direction.shape
        x = np.asarray(x, dtype=np.float64)
        if x.shape[x.ndim - len(shape) :] != shape:
            raise SiteError(f"{self.site} has activations of shape (… {', '.join(map(str, shape))}), got {x.shape}")
        flat = x.reshape(*x.shape[: x.ndim - len(shape)], -1)
        return flat @ self.direction.astype(np.float64).ravel() + self.bias

    def edit(self, strength: float = 1.0, where: str | Scope = "all") -> Edit:
        """Adds `strength` times `vector`: at 1, as far as the two sides are apart, towards the positive side."""
        return Edit(self.site, "add", self.vector, where=self._where(where), strength=strength)

    def erase(self, where: str | Scope = "all") -> Edit:
        """Moves every activation along the direction on to the border of the two sides, so that `margin` is 0.

        EditError for a direction over several heads: name a single one.
        """
        if self.direction.size != self.direction.shape[-1]:
            raise EditError(f"{self.site} has {self.direction.shape[0]} heads: a direction is erased in a single one")
        d = self.direction.reshape(-1)
        return Edit(self.site, "affine", Affine(d, -d, -self.bias * d), where=self._where(where))

    def _where(self, where: str | Scope) -> Scope:
        return Scope.parse(where) if self.site.at is None else self.site.at

    def __repr__(self) -> str:
        known = "".join(f", {name} {estimate}" for name, estimate in self.metrics.items())
        return f"<LinearProbe {self.kind} at {self.site} for {self.task or 'no task'}{known}>"
