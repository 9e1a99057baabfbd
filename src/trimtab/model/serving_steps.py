"""The rows of a batcher, and a step of them: whose prompts are read, who runs together, how each comes to its end.

A row is in one of four places: it waits, it is to be read alone, its prompt is being read, or it runs. Whatever happens
on the way, a row that was taken stays in `_open` until its end was told, so that nobody waits for one that was lost.

Where there is no memory for as many rows as there may be, the newest ones make way and wait, and fewer are let in; each
row that ends lets more in again, and one ends for want of memory only where nothing else is read or runs. It knows
nothing of threads, but that rows are taken in and cancelled from others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from trimtab.model.memory import out_of_memory
from trimtab.model.requests import Delta
from trimtab.model.serving_batch import Batch
from trimtab.model.serving_reading import Reading, groups_of
from trimtab.model.serving_row import Broken, Row, Token

if TYPE_CHECKING:
    from trimtab.model.lm import LM

IDLE = 2048
"""Prompt tokens of a step where no stream is running that would have to wait."""
AHEAD = 64
"""New tokens for which there must be room when a row joins."""


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
        self._batch = Batch(lm, max_rows)
        self._room = max_tokens
        """Rows times columns up to which rows are let in: fewer than `max_tokens` after memory ran out."""
        self._counts: dict[str, int] = dict.fromkeys(
            ("submitted", "finished", "cancelled", "failed", "prompt", "generated", "again", "steps"), 0
        )
        self._stepping = threading.Lock()
        self._changed = threading.Condition()
        """Held where the queues and `_open` are changed or gone through."""

    def step(self) -> bool:
        """One step: requests taken in, a stretch of their prompts read, one new token for each running stream.

        Gives whether there was anything to do. After an interrupt on the way the next step goes on with everyone.
        """
        with self._stepping:
            try:
                worked = self._step()
            except Exception as error:  # noqa: BLE001 (nobody may wait for ever)
                self._give_up(error)
                worked = True
            except BaseException:
                self._begin_again()
                raise
            self._counts["steps"] += worked
        with self._changed:
            self._changed.notify_all()
        return worked

    def _step(self) -> bool:
        self._forget_cancelled()
        if self._reading is None:
            self._reading = self._admit()
        worked = self._reading is not None or bool(self._batch.rows)
        if self._reading is not None:
            self._read(self._reading)
        if self._batch.rows:
            self._generate()
        return worked

    def _everyone(self) -> list[Row]:
        with self._changed:
            return list(self._open.values())

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
        return Reading(self.lm, taken, most_rows=self.max_rows, budget=self.max_tokens)

    def _fits(self, more: Sequence[Row]) -> bool:
        """Whether the batch has room for more rows for a while, and a pass over their prompts is not mostly padding.

        One row alone always has room.
        """
        rows, lengths = [*self._batch.rows, *more], [len(group[0].said) for group in groups_of(more)]
        ahead = max(min(row.most, len(row.said) + AHEAD) for row in rows)
        if len(rows) > self.max_rows or (len(rows) > 1 and len(rows) * ahead > self._room):
            return False
        return 2 * len(lengths) * max(lengths) <= 3 * sum(lengths)

    def _read(self, reading: Reading) -> None:
        """Read a stretch of prompts; behind their end the rows join the batch."""
        try:
            tokens = reading.read(self.chunk if self._batch.rows else IDLE)
        except Exception as error:  # noqa: BLE001 (told to whom it concerns)
            self._reading = None
            self._failed(reading.rows, error)
            return
        if tokens is not None:
            self._reading = None
            self._counts["prompt"] += reading.read_tokens
            self._speak(reading.rows, tokens)
            self._join(reading)

    def _failed(self, rows: list[Row], error: Exception) -> None:
        """Reading these, or letting them join, raised: where there were several, each is tried alone, so that one fails
        for itself; one for which there was no memory beside those that run waits until there are fewer."""
        if len(rows) == 1 and self._batch.rows and out_of_memory(error):
            self._no_room_for([*self._batch.rows, *rows])
        elif len(rows) == 1:
            self._fail(rows[0], Broken.by(error))
        self._alone_later(rows)

    def _no_room_for(self, rows: Sequence[Row]) -> None:
        """There is no memory for these together: so many are not let in before one has ended."""
        self._room = min(self._room, len(rows) * max(len(row.said) for row in rows) - 1)

    def _alone_later(self, rows: Iterable[Row]) -> None:
        """Rows are read again, one by one, the oldest first, before those that wait."""
        left = [row for row in rows if not row.ended]
        for row in left:
            row.edits.reset()
        self._counts["again"] += len(left)
        with self._changed:
            self._alone = deque(sorted([*self._alone, *left], key=lambda row: row.ticket.number))

    def _join(self, reading: Reading) -> None:
        """Rows that have been read, and not ended, run with the others from now on."""
        try:
            rows = reading.fork()
            for row in rows:
                row.edits.begin()
            self._batch.join(rows, reading.cache)
        except Exception as error:  # noqa: BLE001 (told to whom it concerns)
            rows = [row for row in reading.rows if not row.ended]
            if out_of_memory(error):
                self._failed(rows, error)
            else:
                for row in rows:
                    self._fail(row, Broken.by(error))

    # New tokens
    # ---------------------------------------------------------------------------------------------------------

    def _generate(self) -> None:
        """One new token for every running row."""
        while self._make_room():
            tokens = self._batch.speak()
            if not isinstance(tokens, Broken):
                self._batch.leave(self._speak(self._batch.rows, tokens))
                return
            self._give_way(tokens)

    def _make_room(self) -> bool:
        """The newest rows make way for one more column, half of them where memory runs out. Whether one is left."""
        batch, most = self._batch, self.max_tokens
        while batch.rows:
            while len(batch.rows) > 1 and batch.needed > most:
                self._make_way()
            try:
                batch.reserve()
            except Exception as error:  # noqa: BLE001 (told to whom it concerns)
                broken = Broken.by(error)
            else:
                return True
            if self._reading is None:
                most = batch.needed // 2
                self._room = min(self._room, most)
            self._give_way(broken)
        return False

    def _give_way(self, broken: Broken) -> None:
        """There is no memory for a row: prompts that are being read wait, else the newest row does; the only one there
        is ends."""
        rows, reading = self._batch.rows, self._reading
        if reading is not None:
            self._reading = None
            self._no_room_for([*rows, *reading.rows])
            self._alone_later(reading.rows)
        elif len(rows) > 1:
            self._no_room_for(rows)
            self._make_way()
        else:
            self._fail(rows[0], broken)
            self._batch.clear()

    def _make_way(self) -> None:
        """The newest row leaves the batch; what it has said so far will be read again, as its prompt was."""
        rows = self._batch.rows
        newest = max(range(len(rows)), key=lambda number: rows[number].ticket.number)
        self._alone_later([rows[newest]])
        self._batch.leave([newest])

    def _speak(self, rows: Sequence[Row], tokens: Sequence[Token | Broken]) -> list[int]:
        """Hand every row its token; the numbers of the rows that have ended."""
        for row, token in zip(rows, tokens, strict=True):
            if row.ended:
                continue
            if row.edits.error is not None:
                self._fail(row, Broken.by(row.edits.error, own=True))
                continue
            if isinstance(token, Broken):
                self._fail(row, token)
                continue
            self._counts["generated"] += 1
            try:
                delta = row.take(token)
            except Exception as error:  # noqa: BLE001 (its tokens are no text to its tokenizer)
                self._fail(row, Broken.by(error))
                continue
            if delta.finish is None:
                row.ticket.put(delta)
            else:
                self._end(row, delta)
        return [number for number, row in enumerate(rows) if row.ended]

    # Ends
    # ---------------------------------------------------------------------------------------------------------

    def _end(self, row: Row, delta: Delta) -> None:
        assert delta.finish is not None
        row.ended = True
        counted = {"cancelled": "cancelled", "error": "failed"}.get(delta.finish, "finished")
        self._counts[counted] += 1
        self._room = min(self.max_tokens, 2 * self._room)
        self._batch.ease()
        row.ticket.put(delta)
        with self._changed:  # last, so that who finds nothing open finds every end told
            self._open.pop(row.ticket.number, None)

    def _fail(self, row: Row, broken: Broken) -> None:
        """A row ends with an error."""
        if not row.ended:
            delta = Delta(None, finish="error", error=broken.words, own=broken.own, memory=broken.memory)
            self._end(row, delta)

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
        self._batch.leave([number for number, row in enumerate(self._batch.rows) if row.ended])

    def _begin_again(self) -> None:
        """After an interrupt, wherever it came: those who ran, or whose prompts were being read, are read again."""
        self._reading = None
        self._batch.clear()
        with self._changed:
            waiting = {*self._waiting, *self._alone}
        self._alone_later(row for row in self._everyone() if row not in waiting)

    def _give_up(self, error: Exception) -> None:
        """Everyone ends with an error, and what was kept for them goes."""
        with self._changed:
            rows = list(self._open.values())
            self._waiting.clear()
            self._alone.clear()
        self._reading = None
        self._batch.clear()
        for row in rows:
            self._fail(row, Broken.by(error))
