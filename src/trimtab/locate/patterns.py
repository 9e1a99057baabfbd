"""Attention patterns made into numbers while they pass: one layer's at a time, one number for each example and head.

Every score of `trimtab.locate.attention` is either a weighted sum over pairs of positions (query, key) or an entropy.
This file holds what they share: the prompts, the pairs, the pass, and the labelling of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.locate.units import Places
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.model.visit import visit
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Side, one_side
from trimtab.tasks.repeated import RepeatedTokens
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Examples = Task | RepeatedTokens | None
"""A task's texts, or repeated random tokens (None: those of `RepeatedTokens()`)."""
Baseline = Literal["none", "uniform"]
Pairs = Bool[np.ndarray, "query key"]
"""Which keys count for which query, over a row's real tokens; only keys up to the query."""
Weights = tuple[np.ndarray, float]
"""(query key) weights of a row's pattern, and a number that is taken off their sum."""
Look = Callable[[Tensor], Tensor]
"""One layer's pattern (batch head query key) -> (batch head)."""
Prepare = Callable[[list[int], Prompts], Sequence[Look]]
"""(rows, their prompts) -> what is to be worked out of every layer, as many for every batch."""
Progress = Callable[[int, int], None]


def examples_of(lm: LM, task: Examples, side: Side) -> tuple[Task | RepeatedTokens, Prompts]:
    """What is measured on, and its prompts: those of the positive (clean) or negative (corrupt) side of a task."""
    if side not in ("positive", "negative"):
        raise TrimtabError(f'side is "positive" or "negative", got {side!r}')
    chosen = RepeatedTokens() if task is None else task
    return chosen, chosen.prompts(lm) if isinstance(chosen, RepeatedTokens) else one_side(lm, chosen, side)


# Pairs of positions
# ---------------------------------------------------------------------------------------------------------------------


def previous_pairs(ids: Int[np.ndarray, "pos"]) -> Pairs:
    """Each token and the one before it."""
    return np.eye(len(ids), k=-1, dtype=bool)


def duplicate_pairs(ids: Int[np.ndarray, "pos"]) -> Pairs:
    """Each token and the same token earlier."""
    return np.tril(ids[:, None] == ids[None, :], -1)


def induction_pairs(ids: Int[np.ndarray, "pos"]) -> Pairs:
    """Each token and what followed the same token earlier; a token is never its own key."""
    after = np.zeros((len(ids), len(ids)), dtype=bool)
    after[:, 1:] = duplicate_pairs(ids)[:, :-1]
    return np.tril(after, -1)


def sink_pairs(ids: Int[np.ndarray, "pos"], tokens: int = 1) -> Pairs:
    """Each token behind the first `tokens`, and these."""
    pairs = np.zeros((len(ids), len(ids)), dtype=bool)
    pairs[tokens:, :tokens] = True
    return pairs


def span_pairs(prompts: Prompts, row: int, queries: Sequence[int], keys: Sequence[int]) -> Pairs:
    """Tokens of one span and those of another that they see, given as columns of the padded row."""
    start, n = int(prompts.start[row]), len(prompts.tokens[row])
    pairs = np.zeros((n, n), dtype=bool)
    pairs[np.ix_([q - start for q in queries], [k - start for k in keys])] = True
    return np.tril(pairs)


def averaged(pairs: Pairs, baseline: Baseline = "none") -> Weights:
    """Weights that give the mean, over the queries that have a key, of the attention on their keys; and what attention
    spread evenly over everything up to the query would give.

    Without any pair the weights are NaN.
    """
    if baseline not in ("none", "uniform"):
        raise TrimtabError(f'baseline is "none" or "uniform", got {baseline!r}')
    has = pairs.any(1)
    if not has.any():
        return np.full(pairs.shape, np.nan, np.float32), 0.0
    even = (pairs.sum(1) / np.arange(1, len(pairs) + 1))[has].mean()
    return (pairs / has.sum()).astype(np.float32), float(even) if baseline == "uniform" else 0.0


def row_ids(prompts: Prompts, row: int) -> Int[np.ndarray, "pos"]:
    """The real tokens of a row."""
    return prompts.ids[row][prompts.mask[row].bool()].cpu().numpy()


# The pass
# ---------------------------------------------------------------------------------------------------------------------


def summed(weights: Sequence[Weights], prompts: Prompts) -> Look:
    """A look that gives each row's pattern times its weights, summed, less the row's baseline."""
    placed = torch.zeros(len(prompts), prompts.width, prompts.width)
    for row, (start, (each, _)) in enumerate(zip(prompts.start.tolist(), weights, strict=True)):
        stop = start + len(each)
        placed[row, start:stop, start:stop] = torch.from_numpy(each)
    less = torch.tensor([even for _, even in weights])[:, None]

    def look(pattern: Tensor) -> Tensor:
        return torch.einsum("bqk,bhqk->bh", placed.to(pattern), pattern) - less.to(pattern)

    return look


def entropies(weights: Sequence[np.ndarray], prompts: Prompts) -> Look:
    """A look that gives each row's entropy over the keys, in nats, times its weights (query), summed."""
    placed = torch.zeros(len(prompts), prompts.width)
    for row, (start, each) in enumerate(zip(prompts.start.tolist(), weights, strict=True)):
        placed[row, start : start + len(each)] = torch.from_numpy(each.astype(np.float32))

    def look(pattern: Tensor) -> Tensor:
        return torch.einsum("bq,bhq->bh", placed.to(pattern), -torch.xlogy(pattern, pattern).sum(-1))

    return look


def looked_at(
    lm: LM,
    prompts: Prompts,
    layers: Sequence[int],
    prepare: Prepare,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Float[np.ndarray, "look row layer head"]:
    """What each look makes of the patterns of some layers, from one forward pass over each prompt."""
    patterns = [Site("pattern", layer) for layer in layers]
    found: np.ndarray | None = None
    done = 0
    for rows in batches(prompts, lm.anatomy.n_heads * prompts.width, batch_size):
        part = prompts.rows(rows, trim=True)
        looks = prepare(rows, part)
        if found is None:
            found = np.full((len(looks), len(prompts), len(layers), lm.anatomy.n_heads), np.nan)
        padding = ~part.mask.bool()
        padded = bool(padding.any())

        def see(
            site: Site,
            pattern: Tensor,
            rows: list[int] = rows,
            looks: Sequence[Look] = looks,
            padding: Tensor | None = padding if padded else None,
            into: np.ndarray = found,
        ) -> None:
            assert site.layer is not None
            exact = pattern.float() if pattern.dtype.itemsize < 4 else pattern
            if padding is not None:  # what a pad attends to is anything, NaN included
                exact = exact.masked_fill(padding.to(exact.device)[:, None, :, None], 0.0)
            for number, look in enumerate(looks):
                into[number, rows, layers.index(site.layer)] = look(exact).double().cpu().numpy()

        visit(lm, part, patterns, see)
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    assert found is not None
    return found


# The result
# ---------------------------------------------------------------------------------------------------------------------


def layers_of(where: Places) -> list[int]:
    """The layers that heads are asked of. SiteError where something else than heads is."""
    if other := [site for site in where.blocks if site.name != "head" or site.view is not None]:
        raise SiteError(
            f"{other[0]}: attention is a matter of heads{nearest(other[0].name, ['head'])}; "
            'give heads, such as "L*.head" or ["L5.head[3]"]'
        )
    return sorted({site.layer for site in where.blocks if site.layer is not None})


def head_scores(
    where: Places,
    found: Mapping[str, Float[np.ndarray, "example layer head"]],
    lm: LM,
    task: Task | RepeatedTokens,
    prompts: Prompts,
    method: str,
    unit: str,
    options: Mapping[str, object],
) -> Scores:
    """Scores at the places asked for, from numbers of every head by span; several heads together have their mean."""
    layers = layers_of(where)
    columns = []
    for block in where.blocks:
        assert block.layer is not None
        values = found[str(block.at)][:, layers.index(block.layer)]
        if where.units is None:
            values = (values if block.index is None else values[:, list(block.index)]).mean(1)
        columns.append(values)
    array = where.array(columns)
    undefined = int(np.isnan(array.reshape(len(array), -1)).any(1).sum())
    known: dict[str, object] = {"task": task.name, **options}
    if isinstance(task, RepeatedTokens):
        known |= {name: getattr(task, name) for name in ("length", "times", "sequences")} | {"bos": prompts.bos}
    known |= {"undefined": undefined} if undefined else {}
    seed = task.seed if isinstance(task, RepeatedTokens) else None
    return Scores(
        array,
        where.dims,
        where.coords,
        where.site,
        unit=unit,
        method=method,
        options=known,
        groups=task.groups,
        provenance=provenance(lm, prompts, method, known, seed=seed),
    )
