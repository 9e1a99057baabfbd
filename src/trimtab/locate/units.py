"""The places that a map covers: each layer, unit and span of a selection, or a list of single candidates.

A text such as `"L*.head"` is a map with an axis for layers, units and spans. A list, or a text that names units, is one
candidate for each of its sites, whatever they are, along one axis `site`. Both become addresses to edit or to read, and
arrays of effects become `Scores`. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from trimtab.errors import SiteError, TaskError
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.provenance import provenance
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.means import MeanDifference, mean_difference
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.scores import Label, Scores
from trimtab.values.site import Selection, Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Spans = str | Scope | Sequence[str | Scope]

PARTED = ("head", "neuron", "expert", "feature")
"""Units that a map has an axis for; the others are as wide as the residual stream and stay whole."""


@dataclass(frozen=True, eq=False)
class Places:
    """Addresses with positions, and the axes along which their effects are laid out.

    `blocks` are what is computed at once: a tensor at a span, taken apart into `units` (None: not taken apart), or one
    candidate. `dims`, `coords` and `site` are those of the `Scores` made of them. `spans` says at which positions.
    """

    blocks: tuple[Site, ...]
    units: int | None
    dims: tuple[str, ...]
    coords: Mapping[str, tuple[Label, ...]]
    site: str
    spans: tuple[str, ...]

    @property
    def tensors(self) -> list[Site]:
        """The model's own tensors that have to be looked at: for features, what they are features of."""
        return list(dict.fromkeys(block.base.whole for block in self.blocks))

    @property
    def sites(self) -> list[Site]:
        """One address for each place, in the order of `array`'s cells."""
        if self.units is None:
            return list(self.blocks)
        spans = len(self.spans)
        layers = [self.blocks[i : i + spans] for i in range(0, len(self.blocks), spans)]
        return [b.with_(index=(unit,)) for layer in layers for unit in range(self.units) for b in layer]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many labels each axis after "example" has."""
        return tuple(len(self.coords[dim]) for dim in self.dims[1:])

    def vectors(self, values: np.ndarray) -> np.ndarray:
        """(example unit d) from a block's values (example, *shape): what each of its places is, as a vector."""
        return values.reshape(len(values), self.units or 1, -1)

    def array(self, columns: Iterable[np.ndarray]) -> np.ndarray:
        """(example …) along the axes, from numbers (example unit) of each block, or (example) where units are none."""
        stacked = np.stack([column.reshape(len(column), -1) for column in columns], axis=1)
        if self.units is not None:
            stacked = stacked.reshape(len(stacked), -1, len(self.spans), self.units).swapaxes(2, 3)
        return stacked.reshape(len(stacked), *self.shape)

    def scores(
        self,
        array: np.ndarray,
        lm: LM,
        task: Task,
        prompts: Prompts,
        method: str,
        unit: str,
        options: Mapping[str, object],
        direction: Literal["denoise", "noise"] | None = None,
    ) -> Scores:
        """The result of a method: effects (example …), or (example, place), with all there is to say about them."""
        options = {"task": task.name, "spans": list(self.spans), **options}
        return Scores(
            array.reshape(len(array), *self.shape),
            self.dims,
            self.coords,
            self.site,
            unit=unit,
            method=method,
            options=options,
            direction=direction,
            groups=task.groups,
            provenance=provenance(lm, prompts, method, options),
        )


def places(
    lm: LM,
    sites: Reads,
    spans: Spans | None,
    *,
    mapped: Spans,
    alone: str | Scope = "all",
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Places:
    """The places of a selection at each of the spans.

    A text of whole tensors of one kind becomes a map over layers, units (heads, neurons, features) and spans, by
    default those of `mapped`. Everything else is candidates: a list, or a text with units, one place for each site;
    those without positions of their own are taken at the one span given, by default `alone`.

    Raises SiteError for attention scores, and for candidates at several spans.
    """
    found = lm.sites(sites)
    if wrong := [site for site in found if site.name in ("scores", "pattern")]:
        raise SiteError(f"{wrong[0]}: attention has a number for each key and no units; take the head's output")
    if wrong := [site for site in found if site.name.startswith("expert") and site.expert is None]:
        raise SiteError(f"{wrong[0]}: name the expert, as in L{wrong[0].layer}.expert[0], or all of them: expert[*]")
    if isinstance(sites, str | Site):
        given = Selection.parse(sites).site.at
        whole = [site.with_(at=None) for site in found]
        if all(site == site.whole for site in whole) and len({_kind(site) for site in whole}) == 1:
            chosen = given if given is not None else mapped if spans is None else spans
            return _map(lm, whole, _labels(chosen), dictionaries or {})
    labels = _labels(alone if spans is None else spans)
    if len(labels) != 1:
        raise SiteError(
            f"candidates are taken at one span, got {', '.join(labels)}: write positions on the sites, as in "
            f"{found[0].with_(at=None)}@{labels[0]}"
        )
    blocks = tuple(site if site.at else site.with_(at=Scope.parse(labels[0])) for site in found)
    return Places(blocks, None, ("example", "site"), {"site": tuple(map(str, found))}, "{site}", labels)


def mean_differences(
    lm: LM, task: Task, source: Task, where: Places, *, batch_size: int, dictionaries: Mapping[str, Dictionary] | None
) -> MeanDifference:
    """The mean difference of the two sides of `source` at every place.

    On counterfactual tasks it is read at the place's own positions. The positions of a contrast task are those of its
    questions, so there its texts are averaged over the task's `read`.
    """
    aligned = task.shape == source.shape == "counterfactual"
    wanted = where.blocks if aligned else [block.with_(at=None, index=None) for block in where.blocks]
    return mean_difference(lm, source, list(dict.fromkeys(wanted)), batch_size=batch_size, dictionaries=dictionaries)


def side_means(
    lm: LM,
    task: Task,
    where: Places,
    given: MeanDifference | None,
    batch_size: int,
    dictionaries: Mapping[str, Dictionary] | None,
    progress: Callable[[int, int], None] | None = None,
) -> MeanDifference:
    """The means of both sides of a task at every place: those given, after a look that they are these, or new ones."""
    if given is None:
        return mean_difference(
            lm, task, where.blocks, batch_size=batch_size, dictionaries=dictionaries, progress=progress
        )
    if given.groups != task.groups:
        raise TaskError(f"these differences are of {len(given)} other examples than the {len(task)} of {task.name}")
    for block in where.blocks:
        at = block.at
        exact = block in given.positive or block.with_(index=None) in given.positive
        if not exact and at != Scope.parse(given.read):
            raise SiteError(f"{block} is asked for and these differences were read at {given.read}: read them at {at}")
    return given


def default_spans(task: Task) -> tuple[str, ...]:
    """Where activations of a task are compared: for counterfactual tasks their own spans and "end", for contrast tasks
    the task's `read`."""
    if task.shape == "contrast":
        return (task.read,)
    examples: Sequence[Counterfactual] = task.examples  # pyright: ignore[reportAssignmentType]
    shared = [name for name in examples[0].spans if all(name in e.spans for e in examples)]
    return tuple(dict.fromkeys([*shared, "end"]))


def _labels(spans: Spans) -> tuple[str, ...]:
    return (str(spans),) if isinstance(spans, str | Scope) else tuple(map(str, spans))


def _map(lm: LM, tensors: list[Site], labels: tuple[str, ...], dictionaries: Mapping[str, Dictionary]) -> Places:
    first = tensors[0]
    dims: list[str] = ["example"]
    coords: dict[str, tuple[Label, ...]] = {"span": labels}
    text = str(first)
    if first.layer is not None:
        dims.append("layer")
        coords["layer"] = tuple(site.layer for site in tensors if site.layer is not None)
        text = "L{layer}" + text.removeprefix(f"L{first.layer}")
    units = None
    if first.unit in PARTED and first.name != "expert":
        sizes = {_units(lm, site, dictionaries) for site in tensors}
        if len(sizes) > 1:
            raise SiteError(f"layers have {sorted(sizes)} {first.unit}s, which make no map: take them one by one")
        units = sizes.pop()
        dims.append(first.unit)
        coords[first.unit] = tuple(range(units))
        text += f"[{{{first.unit}}}]"
    blocks = tuple(site.with_(at=Scope.parse(label)) for site in tensors for label in labels)
    return Places(blocks, units, (*dims, "span"), coords, text + "@{span}", labels)


def _units(lm: LM, site: Site, dictionaries: Mapping[str, Dictionary]) -> int:
    if site.view != "feature":
        return lm.shape(site)[0]
    if site.dictionary is None or site.dictionary not in dictionaries:
        have = ", ".join(sorted(dictionaries)) or "none"
        raise SiteError(f'{site}: no dictionary named "{site.dictionary}" was given (dictionaries: {have})')
    d = int(np.prod(lm.shape(site)))
    return dictionaries[site.dictionary].encode(torch.zeros(1, 1, d, dtype=lm.dtype, device=lm.device)).shape[-1]


def _kind(site: Site) -> tuple[object, ...]:
    return site.name, site.expert, site.view, site.dictionary
