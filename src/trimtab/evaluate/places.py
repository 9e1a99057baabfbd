"""Places: where an intervention is tried, as addresses are written; and the parts of a task that must not leak.

A place is one site as wide as a layer's stream, the units that one address names (`L*.head`), or several sites taken
together ("L8.resid_post + L9.resid_post").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.errors import EditError, PromptError, SiteError, TaskError
from trimtab.tasks.task import Parts, Task
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Spot = str | Site | Sequence[str | Site]
"""One entry of `sites`."""
TOGETHER = " + "
UNITS = ("head", "attn_neuron", "neuron", "q", "k", "v", "rot_q", "rot_k")
"""Sites of which a layer has several; an address of them is one place, of all that it names."""
MISFITS = (EditError, PromptError, SiteError, TaskError)
"""What a method raises of a place that it cannot do."""


@dataclass(frozen=True)
class Place:
    """Where a method is tried: its address as it is written, and the sites."""

    label: str
    sites: tuple[Site, ...]


def places(lm: LM, sites: Spot | Iterable[Spot]) -> list[Place]:
    """The places that entries name, in their order, each once. SiteError for an address that this model has not,
    EditError without any."""
    entries: list[Spot] = [sites] if isinstance(sites, str | Site) else list(sites)
    found: dict[str, Place] = {}
    for entry in entries:
        if isinstance(entry, str) and TOGETHER in entry:
            entry = entry.split(TOGETHER)
        if not isinstance(entry, str | Site):
            label = TOGETHER.join(map(str, entry))
            found.setdefault(label, Place(label, tuple(lm.sites(entry))))
            continue
        named = lm.sites(entry)
        if any(site.name in UNITS or site.view is not None for site in named):
            found.setdefault(str(entry), Place(str(entry), tuple(named)))
        else:
            for site in named:
                found.setdefault(str(site), Place(str(site), (site,)))
    if not found:
        raise EditError('no sites were given: give addresses such as "L8-20.resid_post"')
    return list(found.values())


def parts_of(task: Task | Parts, seed: int) -> Parts:
    """Parts that share no group: those given, or those of a split. TaskError where parts that were given leak."""
    if isinstance(task, Task):
        return task.split(seed)
    groups = {name: set(part.groups) for name, part in zip(Parts._fields, task, strict=True)}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(groups[one] & groups[other])
        if shared:
            raise TaskError(
                f"the {one} and the {other} part share {len(shared)} group(s), such as {shared[0]!r}: vectors would be "
                "made from what they are judged on; give parts that share none, as task.split() makes them"
            )
    return task
