"""The rows that run: their keys and values, their edits, and a new token for each of them.

One pass over the model is for all rows. Where it raises it is made again in halves, down to single rows, so that a row
is broken only where it fails with no other in its pass; the rest go on as if nothing had been. Where there is no memory
for a single row, the keys of the others may be what is in its way: nobody is broken then, and whoever asks is told. It
knows nothing of prompts, of queues, or of who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.errors import EditError
from trimtab.model.frame import Frame
from trimtab.model.generate import last_logits
from trimtab.model.hooks import Hooks, Step
from trimtab.model.kvcache import KVCache
from trimtab.model.prompts import Prompts
from trimtab.model.rows import generating_steps
from trimtab.model.serving_row import Broken, Row, Token, picked

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def installed(lm: LM, steps: Sequence[Step]) -> Hooks | None:
    """The hooks of these steps; None where there are none."""
    return Hooks(lm.anatomy, steps, lm.current_frame) if steps else None


def forward(
    lm: LM, ids: Int[Tensor, "row new"], cache: KVCache, first: int, hooks: Hooks | None, prompts: Prompts
) -> Float[Tensor, "row vocab"]:
    """Logits behind the new columns `ids` of the cache's rows from `first` on, of which `prompts` is any one's.

    Keys and values are written into the cache, which counts them once it is told that it grew.
    """
    cache.show(slice(first, first + len(ids)))
    new, start = ids.shape[1], cache.width
    frame = Frame(prompts, len(ids), start, new)  # of the batch: each row is edited by a frame of its own
    with lm.lock, torch.no_grad(), lm.framed(frame), hooks or nullcontext():
        if lm.active:
            raise EditError("a batcher is run outside lm.edited blocks: give the edits to its requests")
        return last_logits(lm, ids, cache.mask(new, ids.device), start, cache.hf)


@dataclass(frozen=True)
class Part:
    """Rows beside each other, from `start` to `stop`, that share their passes; the hooks of their edits."""

    start: int
    stop: int
    hooks: Hooks | None


class Batch:
    """The rows that run on `lm`, at most `most_rows` in one pass.

    `together` is how many may share a pass: fewer after memory ran out, until `ease` is called often enough. `retried`
    counts passes that were made again.
    """

    def __init__(self, lm: LM, most_rows: int) -> None:
        self.lm, self.most_rows, self.together = lm, most_rows, most_rows
        self.rows: list[Row] = []
        self.cache: KVCache | None = None
        self.retried = 0
        self._parts: list[Part] = []

    @property
    def needed(self) -> int:
        """Rows times columns of the cache once there is a new column."""
        return 0 if self.cache is None else len(self.rows) * (self.cache.width + 1)

    def ease(self) -> None:
        """Something has changed: try more rows in one pass again."""
        self.together = min(self.most_rows, 2 * self.together)

    # Rows that come and go
    # ---------------------------------------------------------------------------------------------------------

    def join(self, rows: Sequence[Row], cache: KVCache) -> None:
        """Rows that have been read into `cache` run with the others; where that raises, the others run as before."""
        if not rows:
            return
        everyone = [*self.rows, *rows]
        if self.cache is None:
            self._set(everyone, cache)
            return
        self.cache.join(cache, _most(everyone))
        try:
            self._set(everyone, self.cache)
        except Exception:
            self.cache.leave(range(len(self.rows), len(everyone)))
            raise

    def leave(self, gone: Sequence[int]) -> None:
        """The rows of these numbers go."""
        if gone:
            assert self.cache is not None
            self._set([self.rows[number] for number in self.cache.leave(gone)], self.cache)

    def clear(self) -> None:
        """Everyone goes."""
        self._set([], None)

    def _set(self, rows: list[Row], cache: KVCache | None) -> None:
        """These rows run; where that raises, the others do."""
        ends = [*range(0, len(rows), self.together), len(rows)]
        pads = [] if cache is None else cache.pads
        parts = [self._part(rows, pads, start, stop) for start, stop in pairwise(ends)]
        self.rows, self._parts = rows, parts
        self.cache = cache if rows else None  # buffers are given back

    def _part(self, rows: Sequence[Row], pads: Sequence[int], start: int, stop: int) -> Part:
        edits = [row.edits for row in rows[start:stop]]
        return Part(start, stop, installed(self.lm, generating_steps(edits, pads[start:stop])))

    # New tokens
    # ---------------------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Room for a new column; where that raises, everything is as it was."""
        assert self.cache is not None
        self.cache.reserve(1, _most(self.rows))

    def speak(self) -> list[Token | Broken] | Broken:
        """The next token of each row, or why it has none; room must have been reserved.

        Where memory runs out in a pass over a single row, the lack is all that is given, and everything is as it was.
        """
        assert self.cache is not None
        waiting, done = self._parts[::-1], []
        found: list[Token | Broken] = []
        while waiting:
            part = waiting.pop()
            said = self._pass(part)
            if isinstance(said, Broken) and part.stop - part.start > 1:
                middle = (part.start + part.stop) // 2
                for start, stop in ((middle, part.stop), (part.start, middle)):
                    waiting.append(self._part(self.rows, self.cache.pads, start, stop))
            elif isinstance(said, Broken) and said.memory:
                return said
            else:
                done.append(part)
                found += [said] if isinstance(said, Broken) else said
        self._parts = done
        self.cache.grew(1)
        return found

    def _pass(self, part: Part) -> list[Token | Broken] | Broken:
        """What these rows say, or why they failed together."""
        rows, cache = self.rows[part.start : part.stop], self.cache
        assert cache is not None
        try:
            ids = torch.tensor([[row.said[-1]] for row in rows], device=self.lm.device)
            return picked(rows, forward(self.lm, ids, cache, part.start, part.hooks, rows[0].prompts))
        except Exception as error:  # noqa: BLE001 (nobody's, until it is found out whose)
            broken = Broken.by(error)
        # here the error is gone, and with it the tensors of the pass that raised it
        if len(rows) > 1:
            self.retried += 1
            if broken.memory:
                self.together = min(self.together, (len(rows) + 1) // 2)
        return broken


def _most(rows: Sequence[Row]) -> int:
    """The columns of the longest row at its end."""
    return max(row.most for row in rows)
