"""Log probability increases of value vectors, place by place: the sweep behind `neuron_attribution`.

Exact increases unembed the stream with each vector added, some at a time, so that no more than `LOGITS` logits are held
whatever the number of neurons. Estimates take one slope of the log probability for a whole layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.locate.units import Places
from trimtab.locate.written import Written, raw_of, stream_before
from trimtab.model.gradient import frozen
from trimtab.model.memory import held
from trimtab.model.protocols import Readout
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure
from trimtab.values.edit import Edit
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

LOGITS = 1 << 25
"""Logits that are held at once."""


def increases(
    lm: LM,
    where: Places,
    measured: Measure,
    *,
    edits: Sequence[Edit] = (),
    exact: bool = True,
    split: bool = False,
    chosen: np.ndarray | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "example ..."]:
    """(example …) along the axes of the places, in nats: exact, or first-order estimates; NaN where not `chosen`.

    `measured` reads a log probability at the last position. With `split` the places are heads or attention neurons, all
    at the last position, and the positions on their addresses are those that they read from.
    """
    wanted = _by_block(where, chosen)
    columns = [np.full((len(measured.prompts), len(mine)), np.nan) for mine in wanted]
    reads = lm.sites(list(dict.fromkeys(read for block in where.blocks for read in _reads(lm, block, split))))
    long = [site for site in reads if site.at is None or site.name == "pattern"]  # of all tokens, or all keys
    sizes = [int(np.prod(lm.shape(site.whole))) // (1 if site in long else 8) for site in reads]
    entries = sum(sizes) + lm.anatomy.vocab
    done = 0
    for rows in batches(measured.prompts, entries, batch_size):
        prompts, readout = measured.prompts.rows(rows, trim=True), measured.readout.of_rows(rows)
        run = lm.run(prompts, reads, list(edits), logits=False)
        for column, block, mine in zip(columns, where.blocks, wanted, strict=True):
            if mine.any():
                column[rows] = _block(lm, where, block, run, readout, mine if exact else None, split)
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    return where.array([measured.per_example(torch.as_tensor(column).T).T for column in columns])


def _block(
    lm: LM, where: Places, block: Site, run: Run, readout: Readout, mine: np.ndarray | None, split: bool
) -> Float[np.ndarray, "row unit"]:
    """The increases of a block's places in each row; without `mine` estimates."""
    written = _written(lm, block, run, split)
    stream = run[f"{stream_before(lm, block.layer or 0, block.name)}@last"]
    every = torch.arange(written.coefficients.shape[1], device=stream.device)
    units = every if block.index is None else every[list(block.index)]
    if mine is None:
        found = written.onto(_slope(lm, stream, readout))[:, units.cpu()]
        return (found if where.units is not None else found.sum(1, keepdim=True)).numpy()
    out = np.full((len(stream), len(mine)), np.nan)
    each = max(1, held(LOGITS) // lm.anatomy.vocab)
    some = torch.arange(len(stream), device=stream.device).split(each)
    before = torch.cat([_log_prob(lm, stream[rows], readout, rows) for rows in some])
    for row in range(len(stream)):
        for part in np.array_split(np.flatnonzero(mine), -(-int(mine.sum()) // each)):
            chosen = units[torch.as_tensor(part, device=units.device)] if where.units is not None else units
            vectors = written.vectors(row, chosen)
            vectors = vectors if where.units is not None else vectors.sum(0, keepdim=True)
            rows = torch.full((len(vectors),), row, device=stream.device)
            out[row, part] = (_log_prob(lm, stream[row] + vectors, readout, rows) - before[row]).numpy()
    return out


def _log_prob(lm: LM, stream: Tensor, readout: Readout, rows: Tensor) -> Float[Tensor, "n"]:
    """The readout of streams (n d_model) at the last position, of these rows of the prompts."""
    with torch.no_grad():
        return readout.of(lm.unembed(lm.final(stream[:, None])), rows).cpu().double()


def _slope(lm: LM, stream: Tensor, readout: Readout) -> Float[Tensor, "row d_model"]:
    """The gradient of the readout at the stream of each row."""
    with frozen(lm), torch.enable_grad():
        held = stream.detach().requires_grad_()
        rows = torch.arange(len(held), device=held.device)
        value = readout.of(lm.unembed(lm.final(held[:, None])), rows)
        (gradient,) = torch.autograd.grad(value.sum(), held)
    return gradient


def _written(lm: LM, block: Site, run: Run, split: bool) -> Written:
    layer, name = block.layer or 0, block.name
    raw = run[f"L{layer}.{raw_of(name)}@last"]
    if not split:
        return Written(lm, layer, name, run[f"L{layer}.{name}@last"], raw)
    read = _from_keys(lm, block, run)
    return Written(lm, layer, name, read if name == "head" else read.flatten(1), raw)


def _from_keys(lm: LM, block: Site, run: Run) -> Float[Tensor, "row head d_head"]:
    """The part of each head's output at the last position that it read at a block's positions."""
    prompts, a = run.prompts, lm.anatomy
    assert block.at is not None
    pattern, v = run[f"L{block.layer}.pattern@last"], run[f"L{block.layer}.v"]  # (row head key), (row key head d_head)
    mine = torch.where(prompts.columns(block.at).to(pattern.device)[:, None], pattern, 0.0)
    values = v.repeat_interleave(a.n_heads // a.n_kv, dim=2)
    values = torch.where(prompts.mask.bool().to(v.device)[:, :, None, None], values, 0.0)  # pads may hold anything
    return torch.einsum("rhk,rkhd->rhd", mine, values)


def _reads(lm: LM, block: Site, split: bool) -> list[str]:
    layer, name = block.layer or 0, block.name
    read = [f"{stream_before(lm, layer, name)}@last", f"L{layer}.{raw_of(name)}@last"]
    return [*read, f"L{layer}.pattern@last", f"L{layer}.v"] if split else [*read, f"L{layer}.{name}@last"]


def _by_block(where: Places, chosen: np.ndarray | None) -> list[np.ndarray]:
    """(unit) which places of each block are wanted: the other way round from `Places.array`."""
    size = where.units or 1
    if chosen is None:
        return [np.ones(size, bool) for _ in where.blocks]
    if where.units is None:
        return list(chosen.reshape(-1, 1))
    return list(chosen.reshape(-1, size, len(where.spans)).swapaxes(1, 2).reshape(-1, size))
