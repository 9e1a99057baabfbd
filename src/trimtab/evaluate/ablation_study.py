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
from trimtab.evaluate.capabilities import measured_items
from trimtab.evaluate.effect import memory
from trimtab.evaluate.resampling import donors, resampled
from trimtab.evaluate.side_effects import PROMPT
from trimtab.evaluate.texts import Item, Passage
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.model.run import Run
from trimtab.tasks.means import batches, pooled
from trimtab.tasks.measure import Measure, measure, measure_alone
from trimtab.tasks.metrics import Choice, sequence_log_prob
from trimtab.tasks.task import Task
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
PASSAGES, ITEMS = 8, 64


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
    wanted = sorted(set(k))
    for kind in kinds:
        if kind not in KINDS:
            raise TrimtabError(f'no ablation "{kind}"{nearest(str(kind), KINDS)}: there are {", ".join(KINDS)}')
    if not wanted or wanted[0] < 1 or draws < 1 or not kinds:
        raise TrimtabError(
            f"k and draws are at least 1 and there is one kind at least, got {tuple(k)}, {draws}, {kinds}"
        )
    sites = _listed(lm, located, wanted[-1], by)
    rng = np.random.default_rng(seed)
    sets = [sites, *(_like(lm, sites, rng) for _ in range(draws))]
    on = {BEHAVIOUR: measure_alone(lm, task) if task.shape == "counterfactual" else measure(lm, task)}
    on[NLL] = _likelihood(lm, texts.part("search")[:PASSAGES] if passages is None else passages, length)
    try:
        chosen = texts.some(texts.capability("search"), ITEMS, seed) if items is None else items
        on[CAPABILITY] = measured_items(lm, chosen)
    except TrimtabError:
        if items is not None:
            raise
    means = (
        _means(lm, on[BEHAVIOUR].prompts, [site for one in sets for site in one], batch_size) if "mean" in kinds else {}
    )
    total, done = len(on) * len(kinds), 0
    numbers = []
    for name, measured in on.items():
        found = []
        base = None
        for kind in kinds:
            variants = [_edits(kind, one[:n], means) for one in sets for n in wanted]
            base, values = _values(lm, measured, variants, kind, batch_size, seed)
            found.append(values.reshape(1 + draws, len(wanted), -1))
            done += 1
            if progress is not None:
                progress(done, total)
        located_, random = np.stack([f[0] for f in found]), np.stack([f[1:].swapaxes(0, 1) for f in found])
        assert base is not None
        numbers.append(AblatedNumber(name, measured.unit, base, located_, random, measured.groups))
    method = "" if not isinstance(located, Scores) else located.method
    options = {"task": task.name, "k": wanted, "kinds": list(kinds), "draws": draws, "sites": [str(s) for s in sites]}
    made = provenance(lm, on[BEHAVIOUR].prompts, "ablation_study", options, seed=seed)
    names = tuple(str(site) for site in sites)
    return AblationStudy(task.name, names, tuple(kinds), tuple(wanted), draws, tuple(numbers), method, made)


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
            others = [site.with_(layer=layer) for layer in range(lm.anatomy.n_layers) if layer != site.layer]
            others = [other for other in others if site.layer is not None and lm.anatomy.absence(other) is None]
            free = [o for o in others if o not in sites and o not in chosen] or [o for o in others if o not in chosen]
        else:
            many, own = len(site.index), {i for s in sites if s.whole == site.whole for i in s.index or ()}
            taken = {i for s in chosen if s.whole == site.whole for i in s.index or ()}
            units = [i for i in range(lm.anatomy.units(site.base)) if i not in taken]
            pool = [i for i in units if i not in own]
            pool = pool if len(pool) >= many else [i for i in units if i not in site.index]
            free = [site.with_(index=tuple(sorted(rng.permutation(pool)[:many].tolist())))] if len(pool) >= many else []
        if not free:
            raise SiteError(
                f"there is no other place like {site} left to compare with: ablate fewer places of its layer"
            )
        chosen.append(free[int(rng.integers(len(free)))])
    return chosen


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
    rest = REST if min(len(row) for row in prompts.tokens) > 1 else FIRST
    placed = [whole.with_(at=at) for whole in wholes for at in (FIRST, rest)]
    found = pooled(lm, prompts, placed, batch_size=batch_size)
    return {whole: Means(*(found[whole.with_(at=at)].mean(0) for at in (FIRST, rest))) for whole in wholes}


def _likelihood(lm: LM, passages: Sequence[Passage], length: int) -> Measure:
    """Negative log-likelihood per token of each passage's continuation."""
    if not passages:
        raise TrimtabError("no passages were given to measure likelihood on: texts.part has neutral ones")
    if not length > PROMPT:
        raise TrimtabError(f"length must be above the {PROMPT} tokens of a passage's prompt, got {length}")
    rows = [lm.prompts([passage.text]).ids[0, :length].tolist() for passage in passages]
    if short := [p.source for p, row in zip(passages, rows, strict=True) if len(row) < length]:
        raise TrimtabError(f'the passage "{short[0]}" is shorter than {length} tokens: ask for fewer')
    prompts = lm.prompts(rows, mask=torch.ones(len(rows), length, dtype=torch.long))
    prompts = prompts.with_spans(predict=tuple(tuple(range(PROMPT - 1, length - 1)) for _ in rows))
    weight = torch.full((len(rows),), -1.0 / (length - PROMPT), dtype=torch.float64)
    read = sequence_log_prob(Choice.of([row[PROMPT:] for row in rows]), "predict", weight, NLL, "nat/token")
    return Measure(prompts, read, np.arange(len(rows)), tuple(p.source for p in passages))


def _values(
    lm: LM, measured: Measure, variants: Sequence[Sequence[Edit]], kind: Kind, batch_size: int, seed: int
) -> tuple[Float[np.ndarray, "example"], Float[np.ndarray, "variant example"]]:
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
    return measured.per_example(base), measured.per_example(values)
