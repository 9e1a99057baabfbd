"""Probe directions: the weight of a linear classifier of the two sides, added to a site.

A direction that tells two sides apart best is not always the one that moves the model: a probe gives large weights to
small, reliable deviations. Marks and Tegmark 2023 (arXiv 2310.06824) compare the kinds that are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float

from trimtab.errors import EditError, nearest
from trimtab.model.protocols import Dictionary
from trimtab.steer.both_sides import BothSides, both_sides
from trimtab.steer.methods import scope_free
from trimtab.steer.probes import logistic, whitened
from trimtab.steer.recorded import recorded
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

ProbeKind = Literal["logistic", "mass_mean", "lda"]


@scope_free
@recorded
def probe_direction(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
    read: str | Scope | None = None,
    probe: ProbeKind = "logistic",
    C: float = 0.1,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Intervention:
    """Adds the weight of a linear probe of the two sides at each site (Marks and Tegmark 2023, arXiv 2310.06824).

    The vector is û·(û·(μ⁺ − μ⁻)), û the weight at length 1: added once, it takes the mean of the negative side to where
    that of the positive side lies along û. It is never longer than the raw mean difference, and points to the positive
    side.

    Args:
        sites: sites or selections; units that one address names together are one vector.
        strength: how much of the vector is added, in units of the raw mean difference along it.
        where: positions at which it is added.
        read: where activations are averaged, by default the task's own `read`.
        probe: "logistic": logistic regression, L2 penalty 1/C, on standardised features. "mass_mean": μ⁺ − μ⁻ itself,
            the paper's θ, and so the same as `difference_of_means`. "lda": Σ⁻¹(μ⁺ − μ⁻), Σ the covariance within
            the sides, shrunk (Ledoit–Wolf): the paper's probe for data of one distribution, the kind that
            `locate.probe` calls "mass_mean".
        C: inverse penalty of "logistic".
        batch_size: prompts that go through the model together.

    Returns:
        One edit for each site, its value of the shape of the site's units, (d_model) or (head, d_head).

    Raises EditError where the two sides do not differ.

    >>> probe_direction(lm, task, "L12.resid_post", probe="lda")  # doctest: +SKIP
    """
    if probe not in get_args(ProbeKind):
        kinds = get_args(ProbeKind)
        raise EditError(f'no probe "{probe}"{nearest(str(probe), kinds)}: there are {", ".join(kinds)}')
    found = both_sides(lm, task, sites, read=read, batch_size=batch_size, dictionaries=dictionaries, progress=progress)
    vectors = [both.along(weight_of(both, probe, C)) for both in found]
    edits = [both.edit(v, strength=strength, where=where) for both, v in zip(found, vectors, strict=True)]
    return Intervention(tuple(edits), name=f"{task.name} {probe} direction")


def weight_of(both: BothSides, probe: ProbeKind, C: float = 0.1) -> Float[np.ndarray, "d"]:
    """(d) the weight of a probe that is positive on the positive side. EditError where the two sides do not differ."""
    both.check_apart()
    if probe == "mass_mean":
        return both.difference
    if probe == "lda":
        return whitened(both.positive, both.negative)
    weight, _ = logistic(both.rows, np.repeat([1, 0], len(both.positive)), C)
    return weight[1] - weight[0]


def from_probe(
    probe: LinearProbe,
    site: Site | str | None = None,
    *,
    strength: float = 1.0,
    where: str | Scope = "all",
) -> Intervention:
    """Adds the direction of a fitted probe, at its own site or at another of the same shape.

    The vector is `probe.vector`: as long as the means of the two sides that it was trained on lie apart along it.
    Positions on the site come before `where`.

    >>> probe = LinearProbe("L3.resid_post", [3.0, 4.0], 0.0, 2.0, task="truth")
    >>> print(from_probe(probe, "L4.resid_post", strength=1.5))
    truth probe:
    L4.resid_post add array(2,) x 1.5
    """
    at = probe if site is None else probe.with_(site=Site.parse(site))
    name = f"{probe.task} probe".strip()
    return Intervention((at.edit(strength, where),), name=name, provenance=probe.provenance)
