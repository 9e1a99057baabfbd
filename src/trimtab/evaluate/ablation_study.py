"""Controlled ablation: located parts taken away, growing in number, beside random parts of the same kind and layer.

Three numbers are read each time: the behaviour, the likelihood of neutral text and accuracy on unrelated items. Parts
are ablated at every position: set to zero, to their mean (first tokens, which draw attention, have one of their own),
or to what they were in another prompt (Chan et al. 2022, causal scrubbing,
https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.evaluate import texts
from trimtab.evaluate.capabilities import measured_search_items
from trimtab.evaluate.effect import memory
from trimtab.evaluate.resampling import donors, resampled
from trimtab.evaluate.side_effects import PROMPT, passage_prompts
from trimtab.evaluate.texts import Item, Passage
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure, measure_alone
from trimtab.tasks.metrics import Choice, sequence_log_prob
from trimtab.tasks.task import Task
from trimtab.tasks.typical import typical
from trimtab.values.ablation_study import BEHAVIOUR, CAPABILITY, NLL, AblatedNumber, AblationStudy
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.scores import AnyScores, By, Scores
from trimtab.values.site import Edge, Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Kind = Literal["zero", "mean", "resample"]
KINDS: tuple[Kind, ...] = ("zero", "mean", "resample")
FIRST, REST = Scope("index", index=0), Scope("slice", start=1)


def ablation_study(
    lm: LM,
    task: Task,
    located: AnyScores | Sequence[str | Site],
    *,
    k: Sequence[int] = (1, 2, 4, 8),
    kinds: Sequence[Kind] = KINDS,
    draws: int = 5,
    by: By | None = None,
    passages: Sequence[Passage] | None = None,
    items: Sequence[Item] | None = None,
    length: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AblationStudy:
    """What becomes of the behaviour and of general performance without the first `k` located parts.

    Args:
        task: measured on its clean prompts, or after its questions; best a part that the places were not located on.
        located: scores, whose first places by `by` are taken, or places in the order in which they are to go. Positions
            are left out of them: neutral text has no such spans.
        k: how many are ablated at once, growing.
        kinds: "zero", "mean" over the tokens of the task's prompts, "resample" from another prompt.
        draws: random sets for each k. A unit is replaced by another unit of its layer, a site of which a layer has one
            by the same site of another layer.
        passages, items: neutral text and capability items; by default ours for searching. `length` tokens of each
            passage are read.
        seed: of random sets and of the prompts that are resampled from.
        progress: called with steps done and in all.

    Raises SiteError for edges, features and places without others like them, TrimtabError for an unknown kind or more
    parts than there are.

    >>> ablation_study(lm, parts.test, locate.attribution_patching(lm, parts.train, "L*.head")).plot()  # doctest: +SKIP
    """
    sets = ablated_sets(lm, located, k=k, kinds=kinds, draws=draws, by=by, seed=seed)
    wanted, sites = sorted(set(k)), sets[0]
    measures = _measures(lm, task, passages, items, length, seed)
    prompts = measures[BEHAVIOUR].prompts
    means = _means(lm, prompts, [site for one in sets for site in one], batch_size) if "mean" in kinds else {}
    numbers = []
    for i, (name, measured) in enumerate(measures.items()):
        values = []
        for j, kind in enumerate(kinds, 1):
            variants = [_edits(kind, one[:n], means) for one in sets for n in wanted]
            values.append(_values(lm, measured, variants, kind, batch_size, seed))
            if progress is not None:
                progress(i * len(kinds) + j, len(measures) * len(kinds))
        numbers.append(_number(name, measured, values, (len(sets), len(wanted))))
    method = "" if not isinstance(located, Scores) else located.method
    options = {"task": task.name, "k": wanted, "kinds": list(kinds), "draws": draws, "sites": [str(s) for s in sites]}
    made = provenance(lm, prompts, "ablation_study", options, seed=seed)
    names = tuple(str(site) for site in sites)
    return AblationStudy(task.name, names, tuple(kinds), tuple(wanted), draws, tuple(numbers), method, made)


def ablated_sets(
    lm: LM,
    located: AnyScores | Sequence[str | Site],
    *,
    k: Sequence[int],
    kinds: Sequence[Kind],
    draws: int,
    by: By | None = None,
    seed: int = 0,
) -> list[list[Site]]:
    """What `ablation_study` would ablate: the located parts in their order, then `draws` random sets of parts like
    them. Nothing is run. Raises what the study raises of these arguments."""
    for kind in kinds:
        if kind not in KINDS:
            raise TrimtabError(f'no ablation "{kind}"{nearest(str(kind), KINDS)}: there are {", ".join(KINDS)}')
    if not k or min(k) < 1 or draws < 1 or not kinds:
        raise TrimtabError(
            f"k and draws are at least 1 and there is one kind at least, got {tuple(k)}, {draws}, {kinds}"
        )
    sites = _listed(lm, located, max(k), by)
    rng = np.random.default_rng(seed)
    return [sites, *(_like(lm, sites, rng) for _ in range(draws))]


def _measures(
    lm: LM,
    task: Task,
    passages: Sequence[Passage] | None,
    items: Sequence[Item] | None,
    length: int,
    seed: int,
) -> dict[str, Measure]:
    """What is read under every ablation: the behaviour, likelihood and, where the model knows the words, accuracy."""
    behaviour = measure_alone(lm, task) if task.shape == "counterfactual" else measure(lm, task)
    found = {BEHAVIOUR: behaviour, NLL: _likelihood(lm, texts.search_passages(passages), length)}
    known = measured_search_items(lm, items, seed)
    return found if known is None else found | {CAPABILITY: known}


def _number(name: str, measured: Measure, values: Sequence[Values], shape: tuple[int, int]) -> AblatedNumber:
    """One number under the ablations of each kind, whose variants are of `shape`: sets, the located one first, and how
    many parts of them."""
    by_set = [each.ablated.reshape(*shape, -1) for each in values]
    located = np.stack([sets[0] for sets in by_set])
    random = np.stack([sets[1:].swapaxes(0, 1) for sets in by_set])
    return AblatedNumber(name, measured.unit, values[-1].base, located, random, measured.groups)


class Values(NamedTuple):
    """A number as it is and under each ablation."""

    base: Float[np.ndarray, "example"]
    ablated: Float[np.ndarray, "variant example"]


class Means(NamedTuple):
    """Of a whole site (*shape) the mean at first tokens and at the others."""

    first: np.ndarray
    rest: np.ndarray


def _listed(lm: LM, located: AnyScores | Sequence[str | Site], most: int, by: By | None) -> list[Site]:
    """The places in their order, without positions, each once."""
    given = located.top(located.mean().size, by) if isinstance(located, Scores) else list(located)
    if any(isinstance(place, Edge) for place in given):
        raise SiteError("an ablation study is of sites, and these scores are of edges: give their senders")
    found = list(dict.fromkeys(site.with_(at=None) for place in given for site in lm.sites(place)))  # pyright: ignore[reportArgumentType]
    if wrong := [site for site in found if site.view is not None or site.name in ("scores", "pattern")]:
        raise SiteError(f"{wrong[0]}: heads, neurons and whole sites are ablated here")
    if len(found) < most:
        raise TrimtabError(f"{most} parts are to be ablated, and {len(found)} different ones were given: lower k")
    return found[:most]


def _like(lm: LM, sites: Sequence[Site], rng: np.random.Generator) -> list[Site]:
    """For each site a random one like it, each once, and none of the sites where that can be helped."""
    chosen: list[Site] = []
    for site in sites:
        if site.index is None:
            free = _other_layers(lm, site, sites, chosen)
        else:
            free = _other_units(lm, site, site.index, sites, chosen, rng)
        if not free:
            raise SiteError(
                f"there is no other place like {site} left to compare with: ablate fewer places of its layer"
            )
        chosen.append(free[int(rng.integers(len(free)))])
    return chosen


def _other_layers(lm: LM, site: Site, sites: Sequence[Site], chosen: Sequence[Site]) -> list[Site]:
    """The same site in layers where it is not chosen yet, nor one of the sites where that can be helped."""
    if site.layer is None:
        return []
    others = [site.with_(layer=layer) for layer in range(lm.anatomy.n_layers) if layer != site.layer]
    others = [other for other in others if lm.anatomy.absence(other) is None and other not in chosen]
    return [other for other in others if other not in sites] or others


def _other_units(
    lm: LM,
    site: Site,
    index: tuple[int, ...],
    sites: Sequence[Site],
    chosen: Sequence[Site],
    rng: np.random.Generator,
) -> list[Site]:
    """As many random units of the same layer, none chosen yet nor of the sites where that can be helped; nothing where
    there are too few."""
    many, own, taken = len(index), _units(site, sites), _units(site, chosen)
    units = [unit for unit in range(lm.anatomy.units(site.base)) if unit not in taken]
    pool = [unit for unit in units if unit not in own]
    pool = pool if len(pool) >= many else [unit for unit in units if unit not in index]
    if len(pool) < many:
        return []
    return [site.with_(index=tuple(sorted(rng.permutation(pool)[:many].tolist())))]


def _units(site: Site, sites: Sequence[Site]) -> set[int]:
    """The units of a site's layer that some sites name."""
    return {unit for other in sites if other.whole == site.whole for unit in other.index or ()}


def _edits(kind: Kind, sites: Sequence[Site], means: Mapping[Site, Means]) -> list[Edit]:
    """The ablation of some places at once: those of one layer's site in one edit."""
    units: dict[Site, set[int] | None] = {}
    for site in sites:
        had = units.setdefault(site.whole, set())
        units[site.whole] = None if had is None or site.index is None else had | set(site.index)
    edits: list[Edit] = []
    for whole, which in units.items():
        index = None if which is None else tuple(sorted(which))
        site = whole.with_(index=index)
        if kind == "mean":
            parts = [part if index is None else part[list(index)] for part in means[whole]]
            edits += [Edit(site, "set", value, where=where) for value, where in zip(parts, (FIRST, REST), strict=True)]
        else:
            edits.append(Edit(site, "set", 0.0 if kind == "zero" else Ref("other")))
    return edits


def _means(lm: LM, prompts: Prompts, sites: Sequence[Site], batch_size: int) -> dict[Site, Means]:
    wholes = list(dict.fromkeys(site.whole for site in sites))
    found = typical(lm, prompts, wholes, batch_size=batch_size)
    return {whole: Means(found.first[whole], found.of_later(whole)) for whole in wholes}


def _likelihood(lm: LM, passages: Sequence[Passage], length: int) -> Measure:
    """Negative log-likelihood per token of each passage's continuation. TrimtabError where there is none."""
    if not length > PROMPT:
        raise TrimtabError(f"length must be above the {PROMPT} tokens of a passage's prompt, got {length}")
    prompts = passage_prompts(lm, passages, length)
    rows = prompts.ids.tolist()
    prompts = prompts.with_spans(predict=tuple(tuple(range(PROMPT - 1, length - 1)) for _ in rows))
    weight = torch.full((len(rows),), -1.0 / (length - PROMPT), dtype=torch.float64)
    read = sequence_log_prob(Choice.of([row[PROMPT:] for row in rows]), "predict", weight, NLL, "nat/token")
    return Measure(prompts, read, np.arange(len(rows)), tuple(p.source for p in passages))


def _values(
    lm: LM, measured: Measure, variants: Sequence[Sequence[Edit]], kind: Kind, batch_size: int, seed: int
) -> Values:
    """The number as it is and under every ablation."""
    tensors = list(dict.fromkeys(edit.site.whole for variant in variants for edit in variant))
    entries = sum(int(np.prod(lm.shape(site))) for site in tensors)
    partner: list[int] = []
    if kind == "resample":
        partner = donors(measured.prompts, [measured.groups[i] for i in measured.owner], measured.owner, seed)
    rows_in_all = len(measured.prompts)
    base = torch.zeros(rows_in_all, dtype=torch.float64)
    values = torch.zeros(len(variants), rows_in_all, dtype=torch.float64)
    for rows in batches(measured.prompts, entries, batch_size):
        prompts, readout = measured.prompts.rows(rows, trim=True), measured.readout.of_rows(rows)
        runs: dict[str, Run] = {}
        if kind == "resample":
            runs["other"] = resampled(lm, measured.prompts, partner, rows, prompts, tensors)
        found = lm.counterfactuals(prompts, variants, readout, runs=runs, memory=memory(lm, prompts, readout))
        base[rows], values[:, rows] = found.base.double().cpu(), found.values.double().cpu()
    return Values(measured.per_example(base), measured.per_example(values))
