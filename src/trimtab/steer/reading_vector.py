"""Reading vectors: the first principal component of the differences between the two sides, added to a site.

Representation engineering (Zou et al. 2023, arXiv 2310.01405) pairs texts, orders each pair by chance and takes the
first component of the differences. By chance means that signs do not count: that is the component of ±differences,
without a mean taken off. Taking the mean off pairs that are all ordered alike takes away what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from trimtab.errors import EditError
from trimtab.model.protocols import Dictionary
from trimtab.steer.both_sides import BothSides, both_sides
from trimtab.steer.methods import scope_free
from trimtab.steer.recorded import recorded
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.scope import Scope

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

CONSTANT = 1e-5
"""Differences that vary by less than this share of their size are constant."""


@scope_free
@recorded
def reading_vector(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
    read: str | Scope | None = None,
    component: int = 0,
    centred: bool = False,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Intervention:
    """Adds the first principal component of ±(h⁺ − h⁻) at each site: RepE (Zou et al. 2023, arXiv 2310.01405).

    It points where most pairs do (a vote, one pair one voice), and is as long as the means of the two sides lie apart
    along it, so that strength 1 takes the one mean to where the other is, seen along the component. Where the
    differences are all the same it is the mean difference.

    Args:
        sites: sites or selections; units that one address names together are one vector.
        strength: how much of the vector is added, in units of the raw mean difference along it.
        where: positions at which it is added.
        read: where activations are averaged, by default the task's own `read`.
        component: which one; 0 is that of largest variance.
        centred: take the mean of the differences off first. What remains is how pairs differ from each other, which is
            rarely what is wanted.
        batch_size: prompts that go through the model together.

    Returns:
        One edit for each site, its value of the shape of the site's units, (d_model) or (head, d_head).

    Raises EditError where the two sides do not differ, where there is no such component, and, if `centred`, where the
    differences are constant: nothing is left of them.

    >>> reading_vector(lm, task, "L12.resid_post", strength=2)  # doctest: +SKIP
    """
    found = both_sides(lm, task, sites, read=read, batch_size=batch_size, dictionaries=dictionaries, progress=progress)
    vectors = [both.along(principal_direction(both, component, centred)) for both in found]
    edits = [both.edit(v, strength=strength, where=where) for both, v in zip(found, vectors, strict=True)]
    return Intervention(tuple(edits), name=f"{task.name} reading vector")


def principal_direction(both: BothSides, component: int = 0, centred: bool = False) -> Float[np.ndarray, "d"]:
    """(d) of length 1: a principal component of the differences, towards the positive side of most of them."""
    differences = both.differences
    size = float(np.linalg.norm(differences))
    if size <= both.rounding * np.sqrt(len(differences)):
        both.check_apart()
    taken = differences - differences.mean(0) if centred else differences
    if centred and np.linalg.norm(taken) <= CONSTANT * size + both.rounding * np.sqrt(len(differences)):
        raise EditError(
            f"{both.site}: the differences between the two sides are constant, and centring takes their mean off, "
            "which is all there is; leave centred out, or use difference_of_means"
        )
    _, sizes, components = np.linalg.svd(taken, full_matrices=False)
    known = int((sizes > CONSTANT * sizes[0]).sum())
    if isinstance(component, bool) or not 0 <= component < known:
        raise EditError(
            f"{both.site}: there is no component {component}; the differences of {len(differences)} examples have "
            f"{known} here, 0 to {known - 1}"
        )
    found = components[component]
    votes = float(np.sign(differences @ found).sum())
    return found if (votes or float(both.difference @ found)) >= 0 else -found
