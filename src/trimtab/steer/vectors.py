"""Vector arithmetic: directions made from contrasting texts, added to a site.

The strength of an added vector is in units of the raw mean difference, whose norm stays in the edit's value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.model.protocols import Dictionary
from trimtab.steer.methods import scope_free
from trimtab.steer.recorded import recorded
from trimtab.tasks.means import MeanDifference, mean_difference
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads


@scope_free
@recorded
def difference_of_means(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
    read: str | Scope | None = None,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Intervention:
    """Adds v = mean(h⁺ − h⁻) at each site: contrastive activation addition (Rimsky et al. 2023, arXiv 2312.06681).

    `read` is where activations are averaged (the task's own `read` by default), `where` the positions at which
    v is added, `strength` in units of v. The edit's value has the shape of the site's units: (d_model) or, for heads,
    (head, d_head).

    Raises SiteError for sites without units, TaskError for a span without tokens.
    """
    means = mean_difference(
        lm, task, sites, read=read, batch_size=batch_size, dictionaries=dictionaries, progress=progress
    )
    return Intervention(tuple(vector_edits(means, means, strength=strength, where=where)), name=f"{task.name} vector")


def vector_edits(
    means: MeanDifference,
    sites: Iterable[Site | str],
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
    signs: Float[np.ndarray, "example"] | None = None,
) -> list[Edit]:
    """Edits that add the mean difference at sites that were read; `signs` of −1 swap the two sides of an example."""
    return [
        Edit(
            Site.parse(site).with_(at=None),
            "add",
            means.difference(site, signs),
            where=Scope.parse(where),
            strength=strength,
        )
        for site in sites
    ]
