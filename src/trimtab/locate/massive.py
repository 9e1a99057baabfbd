"""Massive activations: a few channels at a few tokens that are thousands of times larger than everything else.

Sun et al. 2024, "Massive activations in large language models" (arXiv 2402.17762): they hardly depend on the text, sit
at first tokens and delimiters, and go together with attention sinks (Xiao et al. 2023, arXiv 2309.17453; `sink_mass`).
They matter to anyone who averages, ranks or normalises activations. What they are for this does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappush, heapreplace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import SiteError, TrimtabError
from trimtab.locate.pairing import alone
from trimtab.locate.patterns import Examples, Progress, Side, examples_of
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_side
from trimtab.locate.units import places
from trimtab.model.prompts import Prompts
from trimtab.model.provenance import provenance
from trimtab.model.visit import visit
from trimtab.tasks.means import batches
from trimtab.values.massive import MassiveActivations
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads


@dataclass(frozen=True)
class _Entry:
    site: str
    channel: int
    example: int
    position: int
    token: str
    value: float
    ratio: float


def massive_entries(
    size: Float[Tensor, "pos channel"], absolute: float = 100.0, ratio: float = 1000.0
) -> tuple[Bool[Tensor, "pos channel"], Float[Tensor, "pos channel"]]:
    """Which |a| of a text's tokens are above `absolute` and at least `ratio` times their median; and |a| over it."""
    median = size.median()
    shares = size / median if float(median) else torch.where(size > 0, torch.inf, 0.0)
    return (size > absolute) & (shares >= ratio), shares


@alone
@planned_by(plan_side)
def massive_activations(
    lm: LM,
    task: Examples | Prompts = None,
    sites: Reads = "L*.resid_post",
    *,
    absolute: float = 100.0,
    ratio: float = 1000.0,
    most: int = 10_000,
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> MassiveActivations:
    """Entries with |a| > `absolute` and |a| ≥ `ratio` × the median |a| of their text at that tensor.

    Args:
        task: texts of one `side` of a task, `Prompts`, or repeated random tokens (None).
        sites: whole tensors as wide as the stream.
        absolute, ratio: the paper's 100 and 1000.
        most: how many entries are listed, the largest over the median first; all are counted.

    Returns:
        `MassiveActivations`, whose `scores` (example, layer, span "all") are the largest |a| over the median. The
        median is over all tokens and channels of a text, pads apart.

    >>> massive_activations(lm, lm.prompts("The capital of France is")).by_channel()  # doctest: +SKIP
    """
    if absolute < 0 or ratio < 0 or most < 0:
        raise TrimtabError(f"absolute, ratio and most are not negative, got {absolute}, {ratio} and {most}")
    if isinstance(task, Prompts):
        name, groups, prompts = "prompts", None, task
    else:
        chosen, prompts = examples_of(lm, task, side)
        name, groups = chosen.name, chosen.groups
    where = places(lm, sites, "all", mapped="all")
    if wrong := [site for site in where.blocks if len(lm.shape(site.whole)) > 1 or site.index or str(site.at) != "all"]:
        raise SiteError(f'{wrong[0]}: whole tensors without positions are needed, such as "L*.resid_post"')
    if where.units is not None:
        raise SiteError(f'{where.blocks[0]}: tensors as wide as the stream are needed, such as "L*.resid_post"')
    tensors = where.tensors
    largest = np.full((len(prompts), len(tensors)), np.nan)
    heap: list[tuple[float, float, int, _Entry]] = []
    turn = count()
    found = done = 0
    for rows in batches(prompts, lm.anatomy.d_model, batch_size):
        part = prompts.rows(rows, trim=True)
        starts = part.start.tolist()

        def see(
            site: Site, x: Tensor, rows: list[int] = rows, part: Prompts = part, starts: list[int] = starts
        ) -> None:
            nonlocal found
            for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
                values = x[i, start : start + len(part.tokens[i])].float()
                size = values.abs()
                hit, shares = massive_entries(size, absolute, ratio)
                largest[row, tensors.index(site)] = float(shares.max())
                hits = hit.nonzero().tolist()
                found += len(hits)
                for position, channel in hits:
                    value, share = float(values[position, channel]), float(shares[position, channel])
                    token = part.tokens[i][position]
                    entry = _Entry(str(site), channel, row, position, token, value, share)
                    # a heap of the largest, whose first is the smallest; earlier ones win where they are equal
                    keyed = (share, abs(value), -next(turn), entry)
                    if len(heap) < most:
                        heappush(heap, keyed)
                    elif heap and keyed > heap[0]:
                        heapreplace(heap, keyed)

        visit(lm, part, tensors, see)
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    options = {"task": name, "absolute": absolute, "ratio": ratio, "side": side}
    made = provenance(lm, prompts, "massive_activations", options)
    entries = [keyed[-1] for keyed in sorted(heap, reverse=True)]
    columns = [largest[:, tensors.index(block.whole)] for block in where.blocks]
    scores = Scores(
        where.array(columns),
        where.dims,
        where.coords,
        where.site,
        unit="times the median",
        method="massive_activations",
        options=options,
        groups=groups,
        provenance=made,
    )
    return MassiveActivations(
        sites=tuple(e.site for e in entries),
        channels=np.array([e.channel for e in entries], dtype=np.int64),
        examples=np.array([e.example for e in entries], dtype=np.int64),
        positions=np.array([e.position for e in entries], dtype=np.int64),
        tokens=tuple(e.token for e in entries),
        values=np.array([e.value for e in entries]),
        ratios=np.array([e.ratio for e in entries]),
        found=found,
        absolute=absolute,
        ratio=ratio,
        scores=scores,
        provenance=made,
    )
