"""The rows of a batcher, and a step of them: whose prompts are read, who runs together, how each comes to its end.

A row is in one of four places: it waits, it is to be read alone, its prompt is being read, or it runs. Whatever happens
on the way, a row that was taken stays in `_open` until its end was told, so that nobody waits for one that was lost. It
knows nothing of threads, but that rows are taken in and cancelled from others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import EditError, TrimtabError
from trimtab.model.frame import Frame
from trimtab.model.generate import last_logits
from trimtab.model.hooks import Hooks, Step
from trimtab.model.kvcache import KVCache
from trimtab.model.requests import Delta
from trimtab.model.rows import generating_steps, reading_steps
from trimtab.model.serving_row import Row, Token, picked

if TYPE_CHECKING:
    from trimtab.model.lm import LM

IDLE = 2048
"""Prompt tokens of a step where no stream is running that would have to wait."""
AHEAD = 64
"""New tokens for which there must be room when a row joins."""


@dataclass
class Reading:
    """Rows whose prompts are being read, padded on the left to one width."""

    rows: list[Row]
    cache: KVCache
    ids: Tensor
    done: int = 0


class Steps:
    """The rows on `lm`; sizes are as in `Batcher`, which puts rows into `_open` and `_waiting`."""

    def __init__(self, lm: LM, max_rows: int, max_tokens: int, chunk: int) -> None:
        self.lm = lm
        self.max_rows, self.max_tokens, self.chunk = max_rows, max_tokens, chunk
        self._open: dict[int, Row] = {}
        """Every row whose end has not been told, by the number of its ticket."""
        self._waiting: deque[Row] = deque()
        self._alone: deque[Row] = deque()
        """Rows to be read one by one, before those that wait: a pass over several of them failed, or they made way."""
        self._reading: Reading | None = None
        self._rows: list[Row] = []
        self._cache: KVCache | None = None
        self._hooks: Hooks | None = None
        self._counts: dict[str, int] = dict.fromkeys(
            ("submitted", "finished", "cancelled", "failed", "prompt", "generated", "steps"), 0
        )
        self._stepping = threading.Lock()
        self._changed = threading.Condition()
        """Held where the queues and `_open` are changed or gone through."""

    def step(self) -> bool:
        """One step: requests taken in, a stretch of their prompts read, one new token for each running stream.

        Gives whether there was anything to do.
        """
        with self._stepping:
            try:
                worked = self._step()
            except Exception as error:  # noqa: BLE001 (nobody may wait for ever)
                self._give_up(error)
                worked = True
            self._counts["steps"] += worked
        with self._changed:
            self._changed.notify_all()
        return worked

    def _step(self) -> bool:
        self._forget_cancelled()
        if self._reading is None:
            self._reading = self._admit()
        worked = self._reading is not None or bool(self._rows)
        if self._reading is not None:
            self._read(self._reading)
        if self._rows:
            self._generate()
        return worked

    def _everyone(self) -> list[Row]:
        with self._changed:
            return list(self._open.values())

    def _forward(
        self, ids: Tensor, cache: KVCache, hooks: Hooks | None, rows: Sequence[Row], speak: bool = True
    ) -> list[Token | Exception]:
        """What each row says behind the new columns `ids` (row pos), whose keys and values go into the cache.

        Where anything raises, the cache is as it was. With `speak` False nothing is said yet.
        """
        new, start = ids.shape[1], cache.width
        frame = Frame(rows[0].prompts, len(ids), start, new)  # of the batch: each row is edited by a frame of its own
        try:
            with self.lm.lock, torch.no_grad(), self.lm.framed(frame), hooks or nullcontext():
                if self.lm.active:
                    raise EditError("a batcher is run outside lm.edited blocks: give the edits to its requests")
                logits = last_logits(self.lm, ids, cache.mask(new, ids.device), start, cache.hf)
            tokens = picked(rows, logits) if speak else []
        except BaseException:
            cache.roll_back()
            raise
        cache.grew(new)
        return tokens

    # Prompts
    # ---------------------------------------------------------------------------------------------------------

    def _admit(self) -> Reading | None:
        """The requests whose prompts are read next, first come first served; None where none can be."""
        with self._changed:
            waiting = self._alone or self._waiting
            taken: list[Row] = []
            while waiting and self._fits([*taken, waiting[0]]) and not (taken and waiting is self._alone):
                taken.append(waiting.popleft())
        if not taken:
            return None
        width = max(len(row.said) for row in taken)
        pads = [width - len(row.said) for row in taken]
        cache = KVCache(
            self.lm.anatomy.n_layers, len(taken), width + 1, most_rows=self.max_rows, budget=self.max_tokens
        )
        cache.begin(pads)
        ids = [[0] * pad + row.said for pad, row in zip(pads, taken, strict=True)]
        return Reading(taken, cache, torch.tensor(ids, device=self.lm.device))

    def _fits(self, more: Sequence[Row]) -> bool:
        """Whether the batch has room for more rows for a while, and a pass over their prompts is not mostly padding."""
        rows, lengths = [*self._rows, *more], [len(row.said) for row in more]
        ahead = max(min(row.most, len(row.said) + AHEAD) for row in rows)
        if len(rows) > self.max_rows or len(rows) * ahead > self.max_tokens:
            return False
        return 2 * len(lengths) * max(lengths) <= 3 * sum(lengths)

    def _read(self, reading: Reading) -> None:
        """Read a stretch of prompts; behind their end, pick first tokens and let the rows join the batch."""
        rows, cache, left = reading.rows, reading.cache, reading.ids.shape[1] - reading.done
        if not any(row.edits.whole for row in rows):  # a condition is decided on the whole prompt
            left = min(left, max(1, (self.chunk if self._rows else IDLE) // len(rows)))
        stop = reading.done + left
        last = stop == reading.ids.shape[1]
        try:
            hooks = self._installed(reading_steps([row.edits for row in rows], cache.pads))
            tokens = self._forward(reading.ids[:, reading.done : stop], cache, hooks, rows, last)
        except Exception as error:  # noqa: BLE001 (told to whom it concerns)
            self._reading = None
            self._failed(rows, error)
            return
        reading.done = stop
        if last:
            self._reading = None
            self._join(self._leave(rows, cache, self._speak(rows, tokens)), cache)

    def _failed(self, rows: list[Row], error: Exception) -> None:
        """A pass over prompts raised: where there were several, each is tried alone, so that one fails for itself."""
        if len(rows) == 1 and not rows[0].ended:
            self._fail(rows[0], error)
        for row in rows:
            row.edits.reset()
        with self._changed:
            self._alone.extend(row for row in rows if not row.ended)

    def _join(self, rows: list[Row], cache: KVCache) -> None:
        """Rows whose prompts have been read run with the others from now on."""
        if not rows:
            return
        for row in rows:
            row.edits.begin()
        everyone = [*self._rows, *rows]
        if self._cache is None:
            self._cache = cache
        else:
            try:
                self._cache.join(cache, _most(everyone))
            except Exception as error:  # noqa: BLE001 (no memory for all of them together)
                for row in rows:
                    self._fail(row, error)
                with self._changed:  # the cache is in pieces, so those that ran are read again
                    self._alone.extendleft(reversed(self._rows))
                self._relay([])
                return
        self._relay(everyone)

    # New tokens
    # ---------------------------------------------------------------------------------------------------------

    def _generate(self) -> None:
        """One new token for every running row."""
        rows, cache = self._rows, self._cache
        assert cache is not None
        while len(rows) > 1 and len(rows) * (cache.width + 1) > self.max_tokens:
            self._make_way(rows, cache)
            rows = self._rows
        try:
            cache.reserve(1, _most(rows))
            ids = torch.tensor([[row.said[-1]] for row in rows], device=self.lm.device)
            tokens = self._forward(ids, cache, self._hooks, rows)
        except Exception as error:  # noqa: BLE001 (no one row's doing: errors of its edits were caught with it)
            for row in rows:
                self._fail(row, error)
            self._relay([])
            return
        gone = self._speak(rows, tokens)
        if gone:
            self._relay(self._leave(rows, cache, gone))

    def _make_way(self, rows: Sequence[Row], cache: KVCache) -> None:
        """The newest row leaves the batch; what it has said so far will be read again, as its prompt was."""
        newest = max(range(len(rows)), key=lambda number: rows[number].ticket.number)
        with self._changed:
            self._alone.appendleft(rows[newest])
        self._relay(self._leave(rows, cache, [newest]))

    def _speak(self, rows: Sequence[Row], tokens: Sequence[Token | Exception]) -> list[int]:
        """Hand every row its token; the numbers of the rows that have ended."""
        for row, token in zip(rows, tokens, strict=True):
            if row.ended:
                continue
            if row.edits.error is not None:
                self._fail(row, row.edits.error, own=True)
                continue
            if isinstance(token, Exception):
                self._fail(row, token, own=True)
                continue
            self._counts["prompt"] += len(row.said) if row.fresh else 0
            self._counts["generated"] += 1
            try:
                delta = row.take(token)
            except Exception as error:  # noqa: BLE001 (its tokens are no text to its tokenizer)
                self._fail(row, error)
                continue
            if delta.finish is None:
                row.ticket.put(delta)
            else:
                self._end(row, delta)
        return [number for number, row in enumerate(rows) if row.ended]

    def _leave(self, rows: Sequence[Row], cache: KVCache, gone: Sequence[int]) -> list[Row]:
        return [rows[number] for number in cache.leave(gone)]

    def _relay(self, rows: list[Row]) -> None:
        """These are the running rows now."""
        self._rows = rows
        if not rows:
            self._cache = self._hooks = None  # buffers are given back
            return
        assert self._cache is not None
        self._hooks = self._installed(generating_steps([row.edits for row in rows], self._cache.pads))

    def _installed(self, steps: Sequence[Step]) -> Hooks | None:
        return Hooks(self.lm.anatomy, steps, self.lm.current_frame) if steps else None

    # Ends
    # ---------------------------------------------------------------------------------------------------------

    def _end(self, row: Row, delta: Delta) -> None:
        assert delta.finish is not None
        row.ended = True
        counted = {"cancelled": "cancelled", "error": "failed"}.get(delta.finish, "finished")
        self._counts[counted] += 1
        row.ticket.put(delta)
        with self._changed:  # last, so that who finds nothing open finds every end told
            self._open.pop(row.ticket.number, None)

    def _fail(self, row: Row, error: Exception, own: bool = False) -> None:
        """A row ends with an error; `own`: it was found in what is this row's alone."""
        if not row.ended:
            words = str(error) or type(error).__name__
            self._end(row, Delta(None, finish="error", error=words, own=own and isinstance(error, TrimtabError)))

    def _forget_cancelled(self) -> None:
        gone = {row for row in self._everyone() if row.ticket.cancelled}
        if not gone:
            return
        with self._changed:
            self._waiting = deque(row for row in self._waiting if row not in gone)
            self._alone = deque(row for row in self._alone if row not in gone)
        for row in gone:
            self._end(row, Delta(None, finish="cancelled"))
        if self._reading is not None and all(row.ended for row in self._reading.rows):
            self._reading = None
        running = [number for number, row in enumerate(self._rows) if row.ended]
        if running:
            assert self._cache is not None
            self._relay(self._leave(self._rows, self._cache, running))

    def _give_up(self, error: Exception) -> None:
        """Everyone ends with an error, and what was kept for them goes."""
        with self._changed:
            rows = list(self._open.values())
            self._waiting.clear()
            self._alone.clear()
        self._reading = None
        self._relay([])
        for row in rows:
            self._fail(row, error)


def _most(rows: Sequence[Row]) -> int:
    """The columns of the longest row at its end."""
    return max(row.most for row in rows)
