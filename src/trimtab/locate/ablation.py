"""Ablation: a place loses what it says about the example at hand, and the task's number tells what is lost with it.

Resampling puts another example's activation there, which is the kindest replacement: a typical value that belongs
to the model (Chan et al. 2022, causal scrubbing, https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN). The mean
(Wang et al. 2022, arXiv 2211.00593) is typical as a whole but may be no value that ever occurs; zero and noise take the
model where it has never been, and overstate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import SiteError, TaskError, TrimtabError, nearest
from trimtab.locate.sweep import Exact, Progress, Variants, sweep
from trimtab.locate.units import Places, Spans, places
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.run import Run
from trimtab.tasks.means import batches, pooled
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Kind = Literal["resample", "mean", "zero", "noise"]
Make = Callable[[list[int], Prompts], tuple[Variants, Mapping[str, Run]]]


def ablation(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    spans: Spans | None = None,
    kind: Kind = "resample",
    on: Literal["clean", "corrupt"] = "clean",
    sigma: float = 1.0,
    seed: int = 0,
    exact: Exact = "fast",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """How much of the task's number is lost when a place is ablated: M(before) − M(after).

    Positive where the place makes for the behaviour, like `patching` with `direction="noise"`. By `kind`, a place is

    "resample": set to its value in another example's prompt, of another group where there is one, and as long as
        possible alike in length. First token goes to first token, the others are counted from the end.
    "mean": set to its mean over the examples, of the tokens of the span; first tokens, which draw attention and have
        activations like no other's, have a mean of their own.
    "zero": set to zero.
    "noise": given Gaussian noise of `sigma` standard deviations of each entry, taken over all tokens but the first.

    Args:
        sites: a map such as `"L*.head"`, each of whose units is ablated alone, or a list of candidates such as
            `["L5.head[3]", "L9.mlp_out@end", "L5.neuron[3,17]"]`.
        spans: positions that are ablated, "all" by default.
        on: which prompts of a counterfactual task; contrast tasks are measured after their questions.
        seed: of the draw of examples, or of the noise.
        exact: "fast" computes what changes; "naive" runs the model once for each place.
        batch_size: prompts whose runs are held together.

    Returns:
        `Scores` in the metric's unit.

    Raises TaskError when there is no other example to resample, SiteError for noise at features.

    >>> ablation(lm, task, "L*.mlp_out", kind="mean").top(3)  # doctest: +SKIP
    """
    kinds = ("resample", "mean", "zero", "noise")
    if kind not in kinds:
        raise TrimtabError(f'no ablation "{kind}"{nearest(str(kind), kinds)}: there are {", ".join(kinds)}')
    where = places(lm, sites, spans, mapped="all", dictionaries=dictionaries)
    measured = measure(lm, task, on=on)
    prompts = measured.prompts
    if kind == "resample":
        groups = [measured.groups[example] for example in measured.owner]
        make = _resampled(lm, where, prompts, donors(prompts, groups, measured.owner, seed))
    elif kind == "mean":
        make = _averaged(lm, where, prompts, batch_size, dictionaries)
    elif kind == "zero":
        make = _always([Edit(site, "set", 0.0) for site in where.sites])
    else:
        make = _noised(lm, where, prompts, sigma, seed, batch_size)
    changes = sweep(
        lm,
        measured,
        make,
        where.tensors,
        exact=exact,
        batch_size=batch_size,
        dictionaries=dictionaries,
        progress=progress,
    )
    options = {"kind": kind, "seed": seed} | ({"sigma": sigma} if kind == "noise" else {})
    options |= {"on": on} if task.shape == "counterfactual" else {}
    return where.scores(-changes, lm, task, prompts, "ablation", measured.unit, options)


def donors(prompts: Prompts, groups: Sequence[str], owner: Sequence[int] | np.ndarray, seed: int) -> list[int]:
    """For each row another one to take activations from: of another example, of another group if there is one, and
    among these at random one of those closest in length."""
    rng = np.random.default_rng(seed)
    lengths = [len(row) for row in prompts.tokens]
    found = []
    for row in range(len(prompts)):
        others = [i for i in range(len(prompts)) if owner[i] != owner[row]]
        if not others:
            raise TaskError("there is no other example to resample from: give two or more, or another kind of ablation")
        others = [i for i in others if groups[i] != groups[row]] or others
        closest = min(abs(lengths[i] - lengths[row]) for i in others)
        found.append(int(rng.choice([i for i in others if abs(lengths[i] - lengths[row]) == closest])))
    return found


def _always(variants: Variants) -> Make:
    return lambda rows, prompts: (variants, {})


def _resampled(lm: LM, where: Places, prompts: Prompts, partner: Sequence[int]) -> Make:
    variants = [Edit(site, "set", Ref("other")) for site in where.sites]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        theirs = prompts.rows([partner[row] for row in rows], trim=True)
        run = lm.run(theirs, where.tensors, logits=False)
        columns = _columns_of(part, theirs)
        index = torch.arange(len(rows))[:, None]
        moved = {site: run.whole(site)[index, columns] for site in where.tensors}
        return variants, {"other": Run(part, None, moved)}

    return make


def _columns_of(mine: Prompts, theirs: Prompts) -> Tensor:
    """(batch pos) of each column of `mine` the column of `theirs`: the first for the first, the others from the
    end."""
    columns = torch.zeros(mine.ids.shape, dtype=torch.long)
    starts = zip(mine.start.tolist(), theirs.start.tolist(), mine.tokens, theirs.tokens, strict=True)
    for row, (start, other, tokens, donated) in enumerate(starts):
        for position in range(len(tokens)):
            at = len(donated) - (len(tokens) - position) if position else 0
            columns[row, start + position] = other + max(at, min(position, len(donated) - 1, 1))
    return columns


def _averaged(
    lm: LM, where: Places, prompts: Prompts, batch_size: int, dictionaries: Mapping[str, Dictionary] | None
) -> Make:
    """Every place at the mean of the tokens of its span, and first tokens at theirs where a span covers others too."""
    starts = prompts.start.tolist()
    covered = {at: prompts.positions(at) for at in {block.at or Scope("all") for block in where.blocks}}
    inside = {at: [[c - s for c in row] for row, s in zip(rows, starts, strict=True)] for at, rows in covered.items()}
    names = {at: f"rest{i}" for i, at in enumerate(inside)}
    rest = {
        names[at]: tuple(tuple(p for p in row if p or len(row) == 1) for row in rows) for at, rows in inside.items()
    }
    both = {at: [len(row) > 1 and 0 in row for row in rows] for at, rows in inside.items()}
    start = Scope.parse(0)
    means = {
        site: values.mean(0, dtype=np.float64)
        for site, values in pooled(
            lm,
            prompts.with_spans(**rest),
            [
                block.with_(at=at)
                for block in where.blocks
                for at in (Scope.parse(names[block.at or Scope("all")]), start)
            ],
            batch_size=batch_size,
            dictionaries=dictionaries,
        ).items()
    }

    def value(site: Site, at: Scope) -> np.ndarray:
        if where.units is None:
            return means[site.with_(at=at)]
        return means[site.with_(at=at, index=None)][list(site.index or ())]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        variants = []
        for site in where.sites:
            at = site.at or Scope("all")
            first = tuple(i for i, row in enumerate(rows) if both[at][row])
            edits = [Edit(site, "set", value(site, Scope.parse(names[at])))]
            if first:
                edits.append(Edit(site.with_(at=start), "set", value(site, start), rows=first))
            variants.append(edits)
        return variants, {}

    return make


def _noised(lm: LM, where: Places, prompts: Prompts, sigma: float, seed: int, batch_size: int) -> Make:
    if features := [block for block in where.blocks if block.view is not None]:
        raise SiteError(f"{features[0]}: noise is added to the model's own tensors; use kind resample, mean or zero")
    std = _std(lm, where.tensors, prompts, batch_size)
    variants = [Edit(site, "add", Ref("noise")) for site in where.sites]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        drawn: dict[Site, Tensor] = {}
        for site in where.tensors:
            values = np.zeros((*part.ids.shape, *std[site].shape), np.float32)
            for i, (row, start) in enumerate(zip(rows, part.start.tolist(), strict=True)):
                length = len(part.tokens[i])
                rng = np.random.default_rng([seed, row, crc32(str(site).encode())])
                values[i, start : start + length] = rng.standard_normal((length, *std[site].shape), np.float32)
            drawn[site] = torch.as_tensor(values * (sigma * std[site]).astype(np.float32)).to(lm.device)
        return variants, {"noise": Run(part, None, drawn)}

    return make


def _std(lm: LM, tensors: Sequence[Site], prompts: Prompts, batch_size: int) -> dict[Site, np.ndarray]:
    """(*shape) the standard deviation of each entry over all tokens but first ones, batch by batch (Chan et al.
    1983)."""
    found: dict[Site, tuple[int, np.ndarray, np.ndarray]] = {}
    entries = sum(int(np.prod(lm.shape(site))) for site in tensors)
    for rows in batches(prompts, entries, batch_size):
        part = prompts.rows(rows, trim=True)
        run = lm.run(part, tensors, logits=False)
        counted = part.mask.bool().clone()
        counted[torch.arange(len(rows)), part.start] = False
        counted = counted if bool(counted.any()) else part.mask.bool()
        for site in tensors:
            x = run.whole(site)[counted.to(run.whole(site).device)].cpu().numpy().astype(np.float64)
            n, mean, squares = len(x), x.mean(0), ((x - x.mean(0)) ** 2).sum(0)
            if site in found:
                before, old, kept = found[site]
                gap, n = mean - old, before + n
                mean = old + gap * len(x) / n
                squares = kept + squares + gap**2 * before * len(x) / n
            found[site] = n, mean, squares
    return {site: np.sqrt(squares / n) for site, (n, _, squares) in found.items()}
