"""The two sides of a task at each site as rows of vectors, and a direction found in them as an edit of the site.

What the vector methods share: they differ in which direction they make of these rows. Units that one address names
together (`L3.head[1,4]`) are one vector; `L3.head[*]` names them apart. Nothing here knows how a direction is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import EditError
from trimtab.model.protocols import Dictionary
from trimtab.tasks.means import mean_difference
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Value
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

ROUNDING = 1e-6
"""A difference smaller than this share of the activations themselves is rounding of float32, and no difference."""


@dataclass(frozen=True, eq=False)
class BothSides:
    """What both sides of every example look like at one site: (example d), d the units of the site side by side.

    `shape` is that of the site's units, (d_model,) or for heads (head, d_head).
    """

    site: Site
    positive: Float[np.ndarray, "example d"]
    negative: Float[np.ndarray, "example d"]
    shape: tuple[int, ...]

    @property
    def differences(self) -> Float[np.ndarray, "example d"]:
        """Positive minus negative of each example."""
        return self.positive - self.negative

    @property
    def difference(self) -> Float[np.ndarray, "d"]:
        """The raw mean difference."""
        return self.differences.mean(0)

    @property
    def rows(self) -> Float[np.ndarray, "row d"]:
        """The positive sides, then the negative ones."""
        return np.concatenate([self.positive, self.negative])

    @property
    def rounding(self) -> float:
        """The length below which a difference at this site is none."""
        return ROUNDING * float(np.sqrt((self.rows**2).sum(1).mean()))

    def check_apart(self) -> None:
        """EditError where the means of the two sides are the same."""
        if np.linalg.norm(self.difference) <= self.rounding:
            raise EditError(
                f"{self.site}: the means of the two sides are the same there, so no direction tells them apart; read "
                "them where they differ (read=), or leave the site out"
            )

    def along(self, direction: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
        """A direction as long as the means of the two sides lie apart along it.

        EditError where they lie in the same place along it.
        """
        unit = direction / np.linalg.norm(direction)
        distance = abs(float(self.difference @ unit))
        if distance <= self.rounding:
            raise EditError(
                f"{self.site}: the means of the two sides do not differ along this direction, so it has no length in "
                "units of their difference; take another component, or leave the site out"
            )
        return unit * distance

    def edit(
        self, value: Float[np.ndarray, "d"] | Value, op: str = "add", *, strength: float, where: str | Scope
    ) -> Edit:
        """An edit of the site; a vector is given the shape of its units."""
        if isinstance(value, np.ndarray):
            value = value.reshape(self.shape).astype(np.float32)
        return Edit(self.site.with_(at=None), op, value, where=Scope.parse(where), strength=strength)


def both_sides(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    read: str | Scope | None = None,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[BothSides]:
    """Both sides at every site, from one forward pass over each prompt; arguments as in `tasks.means.mean_difference`.

    Raises EditError without sites.
    """
    wanted = lm.sites(sites)
    if not wanted:
        raise EditError('no sites were given to make vectors at: give some, such as "L12.resid_post"')
    means = mean_difference(
        lm, task, wanted, read=read, batch_size=batch_size, dictionaries=dictionaries, progress=progress
    )
    found = []
    for site in means:
        flat = [side.reshape(len(means), -1).astype(np.float64) for side in means.sides(site)]
        found.append(BothSides(site, flat[0], flat[1], means.sides(site)[0].shape[1:]))
    return found


def one_vector(both: BothSides, what: str) -> None:
    """EditError for a site of several heads, where an operation needs one vector."""
    if len(both.shape) > 1 and both.shape[0] > 1:
        site = both.site
        raise EditError(
            f"{site}: {what} acts on one vector, and these are {both.shape[0]} heads; name them one by one, as in "
            f"L{site.layer}.{site.name}[*]"
        )
