"""The parts of a lens's training: positions drawn from texts, the rule of the updates, a checkpoint to go on from.

Activations are held for a pool of rows and no more; positions are shuffled within a pool and rows between pools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import FileError, TrimtabError
from trimtab.locate.massive import massive_entries
from trimtab.model.visit import visit
from trimtab.values.content import digest_of
from trimtab.values.files import read_safetensors, write_safetensors
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts

POOL = 1 << 25
"""Activations (numbers) that a pool of rows may hold."""


def windows(lm: LM, prompts: Prompts, context: int) -> Prompts:
    """Every row cut into rows of at most `context` tokens; those of a single token are left out."""
    rows: list[list[int]] = []
    for ids, real in zip(prompts.ids, prompts.mask, strict=True):
        row = ids[real.bool()].tolist()
        cut = (row[start : start + context] for start in range(0, len(row), context))
        rows += [part for part in cut if len(part) > 1]
    if not rows:
        raise TrimtabError("these texts are single tokens, and the first of every row is left out: give longer texts")
    return lm.prompts(rows)


def massive(x: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Positions with a massive activation, by the rule of `massive_activations`."""
    found = torch.zeros_like(mask)
    for row, real in enumerate(mask):
        found[row, real] = massive_entries(x[row, real].float().abs())[0].any(-1)
    return found


@dataclass(frozen=True, eq=False)
class Batch:
    """Streams (site position d_model) of some positions, and the row and position of each."""

    streams: Tensor
    places: tuple[tuple[int, int], ...]


class Positions:
    """Positions of texts in a random order, `size` at a time, with the streams at some sites.

    Left out are the first position of each row and those with massive activations after any of the model's blocks. The
    same seed gives the same positions in the same order, whichever sites are asked for.
    """

    def __init__(self, lm: LM, prompts: Prompts, sites: Sequence[Site], size: int, batch_size: int, seed: int) -> None:
        self.lm, self.prompts, self.sites, self.size, self.batch_size = lm, prompts, list(sites), size, batch_size
        self.rng = np.random.default_rng(seed)
        self.looked_at = [Site("resid_post", layer) for layer in range(lm.anatomy.n_layers)]
        # as if for all blocks: what is in a pool, and so the order, must not depend on how many sites are read
        room = POOL // (len(self.looked_at) * lm.anatomy.d_model)
        self.room = max(room, 2 * size)

    def forever(self) -> Iterator[Batch]:
        """Batch after batch, the texts again and again."""
        left: list[Batch] = []
        while True:
            there = 0
            for pool in self._pools():
                there += len(pool.places)
                left = yield from self._cut([*left, pool])
            if not there:
                raise TrimtabError(
                    "these texts have no position to train on: all are the first, or have massive activations"
                )

    def once(self, most: int) -> Iterator[Batch]:
        """Each position at most once, and no more than `most`; the last batch may be smaller."""
        for pool in self._pools():
            for start in range(0, min(most, len(pool.places)), self.size):
                stop = min(start + self.size, most)
                yield Batch(pool.streams[:, start:stop], pool.places[start:stop])
            most -= len(pool.places)
            if most <= 0:
                return

    def _cut(self, parts: list[Batch]) -> Iterator[Batch]:
        """Whole batches of what is there; returns what is left over."""
        streams = torch.cat([part.streams for part in parts], 1)
        places = tuple(place for part in parts for place in part.places)
        whole = len(places) // self.size * self.size
        for start in range(0, whole, self.size):
            yield Batch(streams[:, start : start + self.size], places[start : start + self.size])
        return [Batch(streams[:, whole:].clone(), places[whole:])]

    def _pools(self) -> Iterator[Batch]:
        """All rows in a random order, as pools of shuffled positions."""
        lengths = self.prompts.lengths.tolist()
        rows: list[int] = []
        for row in self.rng.permutation(len(lengths)).tolist():
            if rows and sum(lengths[r] for r in rows) + lengths[row] > self.room:
                yield self._pool(rows)
                rows = []
            rows.append(row)
        yield self._pool(rows)

    def _pool(self, rows: list[int]) -> Batch:
        parts: list[Tensor] = []
        places: list[tuple[int, int]] = []
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            prompts = self.prompts.rows(some, trim=True)
            real = prompts.mask.bool()
            streams, large = self._seen(prompts, real)
            kept = real & (prompts.position_ids > 0) & ~large
            at = [prompts.position_ids[i][kept[i]].tolist() for i in range(len(some))]
            places += [(row, pos) for row, positions in zip(some, at, strict=True) for pos in positions]
            wide = torch.promote_types(self.lm.dtype, torch.float32)
            parts.append(torch.stack([x[kept.to(x.device)].to(device=self.lm.device, dtype=wide) for x in streams]))
        order = self.rng.permutation(len(places))
        streams = torch.cat(parts, 1)[:, torch.as_tensor(order, device=self.lm.device)]
        return Batch(streams, tuple(places[i] for i in order))

    def _seen(self, prompts: Prompts, real: Tensor) -> tuple[list[Tensor], Tensor]:
        """The streams at the sites, and where any block's has a massive activation; one pass, the others not kept."""
        streams: dict[Site, Tensor] = {}
        large = torch.zeros_like(real)

        def see(site: Site, x: Tensor) -> None:
            if site in self.looked_at:
                large.logical_or_(massive(x, real.to(x.device)).to(large.device))
            if site in self.sites:
                streams[site] = x.clone()

        visit(self.lm, prompts, list(dict.fromkeys([*self.sites, *self.looked_at])), see)
        return [streams[site] for site in self.sites], large


class Nesterov:
    """Stochastic gradient descent with Nesterov momentum, as torch's, for parameters whose first axis is the site.

    The rate falls linearly to zero over `steps`; a site's gradients are clipped together to the norm `clip`.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        clip: float,
        steps: int,
    ) -> None:
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.weight_decay, self.clip, self.steps = weight_decay, clip, steps
        self.momenta = [torch.zeros_like(parameter) for parameter in parameters]

    def step(self, step: int, some: slice, gradients: Sequence[Tensor]) -> None:
        """Move some sites' parameters along their gradients (site …)."""
        rate = self.lr * (1 - step / self.steps)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factor = (self.clip / (norms + 1e-6)).clamp(max=1.0)
        for parameter, velocity, gradient in zip(self.parameters, self.momenta, gradients, strict=True):
            x, v = parameter[some], velocity[some]
            g = gradient * factor.view(-1, *[1] * (gradient.ndim - 1)) + self.weight_decay * x
            v.mul_(self.momentum).add_(g)
            x.sub_(rate * (g + self.momentum * v))


class Checkpoint:
    """The tensors and losses of an unfinished training in a file; without a path, nothing is kept.

    `key` says what is trained and how: a file of another training is refused.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        key: Mapping[str, object],
        tensors: Sequence[Tensor],
        losses: np.ndarray,
    ) -> None:
        self.path, self.tensors, self.losses = None if path is None else Path(path), list(tensors), losses
        self.key = digest_of(json.loads(json.dumps(dict(key))))

    def load(self) -> int:
        """How many steps were done; the tensors are then as they were."""
        if self.path is None or not self.path.exists():
            return 0
        arrays, meta = read_safetensors(self.path, "lens training")
        if meta["key"] != self.key:
            raise FileError(
                f"{self.path} is a checkpoint of another training (model, texts, sites or options differ): "
                "give another file, or remove it to begin anew"
            )
        for i, tensor in enumerate(self.tensors):
            tensor.copy_(torch.from_numpy(arrays[f"t{i}"]))
        self.losses[...] = arrays["losses"]
        return int(meta["steps"])

    def save(self, steps: int) -> None:
        """Keep what is there after so many steps."""
        if self.path is not None:
            arrays = {f"t{i}": tensor.cpu().numpy() for i, tensor in enumerate(self.tensors)}
            write_safetensors(
                self.path, arrays | {"losses": self.losses}, "lens training", {"key": self.key, "steps": steps}
            )

    def remove(self) -> None:
        """The training is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
