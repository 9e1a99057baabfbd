"""Steering by the features of a dictionary (a sparse autoencoder): adding one, clamping one, or the difference of many.

On features as handles Templeton et al. 2024, https://transformer-circuits.pub/2024/scaling-monosemanticity. Any object
with the protocol's `encode` and `decode` serves; where it comes from is not known here. A feature's direction d is what
one more unit of it adds to what is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import SiteError, TrimtabError
from trimtab.model.protocols import Dictionary
from trimtab.steer.methods import scope_free
from trimtab.steer.recorded import recorded
from trimtab.tasks.means import mean_difference, pooled
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Texts = Task | Sequence[str] | None
Progress = Callable[[int, int], None]


@recorded
def add_feature(
    lm: LM,
    texts: Texts,
    sites: Reads,
    *,
    dictionaries: Mapping[str, Dictionary],
    strength: float = 1.0,
    where: str | Scope = "all",
    max_act: float | None = None,
    batch_size: int = 16,
) -> Intervention:
    """Adds α·max_act·d for each feature, α being `strength`: with 1, as much as the feature's largest activation.

    The dictionary is needed to make the vector and not to use it: the edit adds to the site itself.

    Args:
        texts: where the largest activation is looked for: a task (both its sides) or texts. None with `max_act`.
        sites: features, such as `"L5.resid_post.feature@name[4411]"`.
        dictionaries: by name, for the features that the sites name.
        where: the positions it is added at, for sites that name none.
        max_act: the largest activation of each feature, if it is known, instead of looking for it.
        batch_size: texts in a pass.

    Raises SiteError for a site that names no feature, EditError for one that names other positions than `where` does,
    TrimtabError where neither texts nor `max_act` are given, or a feature is never active on the texts.

    >>> add_feature(lm, task, "L5.resid_post.feature@sae[4411]", dictionaries={"sae": sae})  # doctest: +SKIP
    """
    single = _features(lm, sites, dictionaries)
    sizes = _sizes(lm, texts, single, dictionaries, max_act, batch_size)
    edits = []
    for site, size in zip(single, sizes, strict=True):
        vector = (size * feature_direction(lm, site, dictionaries)).astype(np.float32)
        edits.append(Edit(site.base, "add", vector, where=Scope.parse(where), strength=strength))
    return Intervention(tuple(edits), name=f"add {_named(single)}")


@recorded
def clamp_feature(
    lm: LM,
    texts: Texts,
    sites: Reads,
    *,
    dictionaries: Mapping[str, Dictionary],
    level: float = 1.0,
    strength: float = 1.0,
    where: str | Scope = "all",
    max_act: float | None = None,
    batch_size: int = 16,
) -> Intervention:
    """Holds each feature at α·max_act, α being `level`: h becomes h + (α·max_act − f)·d, so that what the dictionary
    does not explain stays. With level 0 the feature is taken out.

    The edit acts through the dictionary, which every run then needs: `lm.run(…, dictionaries=…)`. `strength` is how
    much of the way is gone. The other arguments, and the errors, are those of `add_feature`; with level 0 neither texts
    nor `max_act` are needed.

    >>> clamp_feature(lm, None, "L5.resid_post.feature@sae[7]", dictionaries={"sae": sae}, level=0)  # doctest: +SKIP
    """
    single = _features(lm, sites, dictionaries)
    sizes = [0.0] * len(single) if level == 0 else _sizes(lm, texts, single, dictionaries, max_act, batch_size)
    edits = [
        Edit(site, "set", float(level * size), where=Scope.parse(where), strength=strength)
        for site, size in zip(single, sizes, strict=True)
    ]
    return Intervention(tuple(edits), name=f"clamp {_named(single)} to {level:g}")


@scope_free
@recorded
def feature_difference(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    dictionaries: Mapping[str, Dictionary],
    strength: float = 1.0,
    where: str | Scope = "all",
    read: str | Scope | None = None,
    top: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Intervention:
    """Adds dec(f′) − dec(f), f being the mean features of the negative side of a task and f′ those of the positive one;
    with `top`, f′ differs from f in so many features alone, those that differ the most.

    The error of the dictionary stays as it is at each token. The edit adds to the site itself.

    Args:
        sites: dictionaries' views, such as `"L5.resid_post.feature@name"`.
        read: where features are averaged (the task's own `read` by default).

    Raises SiteError for a site that is no view of features, or that names some of them.

    >>> feature_difference(lm, task, "L5.resid_post.feature@sae", dictionaries={"sae": sae}, top=20)  # doctest: +SKIP
    """
    if top is not None and top < 1:
        raise TrimtabError(f"top is how many features may differ, at least 1, got {top}")
    wanted = lm.sites(sites)
    for site in wanted:
        if site.view != "feature" or site.index is not None:
            raise SiteError(f"{site}: give all features of a dictionary, such as L5.resid_post.feature@name")
    means = mean_difference(
        lm, task, wanted, read=read, batch_size=batch_size, dictionaries=dictionaries, progress=progress
    )
    edits = []
    for site in wanted:
        positive, negative = (side.mean(0, dtype=np.float64) for side in means.sides(site))
        if top is not None:
            kept = np.argsort(-np.abs(positive - negative), kind="stable")[:top]
            moved = negative.copy()
            moved[kept] = positive[kept]
            positive = moved
        vector = _decoded(lm, site, dictionaries, positive) - _decoded(lm, site, dictionaries, negative)
        edits.append(
            Edit(
                site.base.with_(at=None), "add", vector.astype(np.float32), where=Scope.parse(where), strength=strength
            )
        )
    return Intervention(tuple(edits), name=f"{task.name} features")


def feature_direction(lm: LM, site: Site | str, dictionaries: Mapping[str, Dictionary]) -> Float[np.ndarray, "..."]:
    """(*shape of the site) d = dec(e) − dec(0) of a feature's unit vector e: its column of a linear decoder."""
    site = Site.parse(site)
    if site.view != "feature" or site.index is None or len(site.index) != 1:
        raise SiteError(f"{site} names no single feature: write L5.resid_post.feature@name[4411]")
    unit = np.zeros(_count(lm, site, dictionaries))
    _check_range(site, len(unit))
    unit[site.index[0]] = 1.0
    return _decoded(lm, site, dictionaries, unit) - _decoded(lm, site, dictionaries, 0 * unit)


def largest_activations(
    lm: LM,
    texts: Task | Sequence[str],
    sites: Reads,
    dictionaries: Mapping[str, Dictionary],
    *,
    batch_size: int = 16,
) -> dict[Site, float]:
    """The largest activation of each feature at any token of texts, or of both sides of a task, but a row's very
    first; below zero where a dictionary's features can be."""
    single = list(dict.fromkeys(site.with_(at=None) for site in _features(lm, sites, dictionaries)))
    if isinstance(texts, Task):
        prompts = list(sides(lm, texts))
    else:
        made = lm.prompts(list(texts))
        prompts = [made.with_spans(text=tuple(tuple(range(1, n)) or (0,) for n in made.lengths.tolist()))]
    placed = {site: site.with_(at=Scope("span", name="text")) for site in single}
    most = dict.fromkeys(single, -np.inf)
    for part in prompts:
        found = pooled(lm, part, list(placed.values()), pool="max", batch_size=batch_size, dictionaries=dictionaries)
        for site, at in placed.items():
            most[site] = max(most[site], float(found[at].max()))
    return most


def _features(lm: LM, sites: Reads, dictionaries: Mapping[str, Dictionary]) -> list[Site]:
    """Single features, one site each, with the positions that they name."""
    found = []
    for site in lm.sites(sites):
        if site.view != "feature" or site.index is None:
            raise SiteError(f"{site} names no feature: write L5.resid_post.feature@name[4411]")
        _check_range(site, _count(lm, site, dictionaries))
        found += [site.with_(index=(unit,)) for unit in site.index]
    return list(dict.fromkeys(found))


def _sizes(
    lm: LM,
    texts: Texts,
    single: list[Site],
    dictionaries: Mapping[str, Dictionary],
    max_act: float | None,
    batch_size: int,
) -> list[float]:
    """The largest activation of each feature, given or looked for."""
    if max_act is not None:
        if not np.isfinite(max_act):
            raise TrimtabError(f"max_act is a feature's largest activation, a finite number, got {max_act}")
        return [float(max_act)] * len(single)
    if texts is None:
        raise TrimtabError("a feature's size is not known: give texts to look for its largest activation, or max_act")
    found = largest_activations(lm, texts, single, dictionaries, batch_size=batch_size)
    sizes = [found[site.with_(at=None)] for site in single]
    if silent := [site for site, size in zip(single, sizes, strict=True) if not size > 0]:
        raise TrimtabError(f"{silent[0]} is never active (above 0) on these texts: give others, or its max_act")
    return sizes


def _dictionary(site: Site, dictionaries: Mapping[str, Dictionary]) -> Dictionary:
    if site.dictionary is None or site.dictionary not in dictionaries:
        have = ", ".join(sorted(dictionaries)) or "none"
        raise SiteError(f'{site}: no dictionary named "{site.dictionary}" was given (dictionaries: {have})')
    return dictionaries[site.dictionary]


def _count(lm: LM, site: Site, dictionaries: Mapping[str, Dictionary]) -> int:
    """How many features the site's dictionary has."""
    x = torch.zeros(1, 1, int(np.prod(lm.shape(site.base))), dtype=_wide(lm), device=lm.device)
    with torch.no_grad():
        return int(_dictionary(site, dictionaries).encode(x).shape[-1])


def _check_range(site: Site, count: int) -> None:
    if wrong := [unit for unit in site.index or () if unit >= count]:
        raise SiteError(f"{site}: feature {wrong[0]} is out of range; there are features 0 to {count - 1}")


def _decoded(
    lm: LM, site: Site, dictionaries: Mapping[str, Dictionary], features: Float[np.ndarray, "feature"]
) -> Float[np.ndarray, "..."]:
    """(*shape of the site) what features explain of it."""
    given = torch.tensor(features[None, None], dtype=_wide(lm), device=lm.device)
    with torch.no_grad():
        out = _dictionary(site, dictionaries).decode(given)
    return out.double().cpu().numpy().reshape(lm.shape(site.base))


def _wide(lm: LM) -> torch.dtype:
    return torch.promote_types(lm.dtype, torch.float32)


def _named(sites: Sequence[Site]) -> str:
    shown = ", ".join(f"{site.base.whole}[{site.index[0]}]" for site in sites[:3] if site.index)
    return f"feature{'s' * (len(sites) > 1)} {shown}{' …' * (len(sites) > 3)}"
