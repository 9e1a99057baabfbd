"""Continuous batching: concurrent requests on one model, each with edits of its own.

A step of the `Batcher` takes waiting requests in, reads a stretch of their prompts, and then makes one new token for
every running request in one forward pass of the Hugging Face model. A request joins the running batch when its prompt
has been read and leaves with its last token; nobody waits for the longest. What a request says is what it would say
alone (to rounding: batches of other shapes add numbers in another order).

Prompts are read in stretches so that running streams never stall for a long one. Weights are shared, so requests cannot
patch them; hooks are on the model for the length of a forward pass and no longer. Here is how requests are taken, the
thread, and its end; a step is in `serving_steps.py`, how prompts are read in `serving_reading.py`, what rows that run
share in `serving_batch.py`, how they are edited in `rows.py`, where their keys and values are in `kvcache.py`. It knows
nothing of the web.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.errors import Busy, ModelError, PromptError
from trimtab.model.detokenise import ends
from trimtab.model.protocols import Dictionary
from trimtab.model.requests import Delta, Request, Ticket
from trimtab.model.serving_row import Row
from trimtab.model.serving_steps import Steps

if TYPE_CHECKING:
    from trimtab.model.lm import LM

__all__ = ["Batcher", "Delta", "Request", "Stats", "Ticket"]


@dataclass(frozen=True)
class Stats:
    """What a batcher has done and is doing: requests, tokens, steps, and rows times columns of its cache.

    `prompt_tokens` counts the prompts that have been read to their end: once for neighbours that are read together, and
    not again where they are read again. `retried` counts passes that failed and were made again in halves, `read_again`
    how often a request went back to be read again, because reading it had failed or it made way for others.
    """

    active: int
    waiting: int
    finished: int
    cancelled: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    failed: int = 0
    cache_tokens: int = 0
    retried: int = 0
    read_again: int = 0


class Batcher(Steps):
    """Runs requests on `lm`, at most `max_rows` at once.

    `max_tokens` bounds the cache of keys and values, as rows times columns; where rows become too long for it
    together, the newest one makes way, and is read again when there is room. At most `max_waiting` requests wait.
    `chunk` is how many prompt tokens are read between two steps of running streams. `dictionaries` are those that
    edits name.

    Where memory runs out, or a pass raises whatever it is, the batch is taken apart: a request ends with an error only
    where it fails with no other beside it.

    Call `step` in a loop, iterate a ticket, or `start` a thread; `close` ends it.

    >>> batcher = Batcher(lm)  # doctest: +SKIP
    >>> ticket = batcher.submit(Request(ids, Intervention.of("L12.resid_post add 1.5")))  # doctest: +SKIP
    >>> "".join(delta.text for delta in ticket)  # doctest: +SKIP
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_rows: int = 16,
        max_tokens: int = 16_384,
        max_waiting: int = 1024,
        chunk: int = 128,
        dictionaries: Mapping[str, Dictionary] | None = None,
    ) -> None:
        if min(max_rows, max_tokens, chunk) < 1 or max_waiting < 0:
            raise ModelError(
                f"max_rows, max_tokens and chunk must be at least 1 and max_waiting at least 0, got {max_rows}, "
                f"{max_tokens}, {chunk} and {max_waiting}"
            )
        super().__init__(lm, max_rows, max_tokens, chunk)
        self.max_waiting, self.dictionaries = max_waiting, dictionaries
        self._ends = ends(lm)
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Batcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

    @property
    def stats(self) -> Stats:
        """Counts up to now."""
        c, reading = self._counts, self._reading
        caches = [cache for cache in (self._batch.cache, reading and reading.cache) if cache is not None]
        with self._changed:
            waiting = len(self._waiting) + len(self._alone)
            active = len(self._open) - waiting
        return Stats(
            active=active,
            waiting=waiting,
            finished=c["finished"],
            cancelled=c["cancelled"],
            prompt_tokens=c["prompt"],
            generated_tokens=c["generated"],
            steps=c["steps"],
            failed=c["failed"],
            cache_tokens=sum(cache.tokens for cache in caches),
            retried=self._batch.retried,
            read_again=c["again"],
        )

    # Asking
    # ---------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Put a request in line. Everything that can be wrong with it is said now.

        Raises `PromptError` for tokens, sizes or options out of range, `EditError` and `SiteError` for edits that do
        not fit the model, `Busy` where too many wait, `ModelError` after `close`.
        """
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Ticket]:
        """Put several in line behind each other, or, where one of them is wrong as in `submit`, none.

        Neighbours with the same prompt and intervention read it once, as far as they begin at the same time: answers to
        one prompt with different seeds.
        """
        rows = []
        for request in requests:
            self._check_size(request)
            ticket = Ticket(0, len(request.ids), self._advance)
            rows.append(Row(self.lm, request, ticket, self._ends, self.dictionaries))
        with self._changed:
            if self._closed:
                raise ModelError("this batcher is closed and takes no requests: make another")
            if (waiting := len(self._waiting)) + len(rows) > self.max_waiting:
                raise Busy(f"{waiting} requests are waiting, and {self.max_waiting} may at most: try again later")
            for row in rows:
                row.ticket.number = self._counts["submitted"]
                self._counts["submitted"] += 1
                self._open[row.ticket.number] = row
                self._waiting.append(row)
            self._changed.notify_all()
        return [row.ticket for row in rows]

    def _check_size(self, request: Request) -> None:
        prompt, new, positions = len(request.ids), request.max_new_tokens, self.lm.positions
        if prompt < 1 or new < 1:
            raise PromptError(f"a request needs at least one prompt token and one new one, got {prompt} and {new}")
        if prompt + new > self.max_tokens:
            raise PromptError(
                f"{prompt} prompt tokens and {new} new ones are more than the {self.max_tokens} that the cache holds: "
                "shorten the prompt or ask for fewer"
            )
        if positions is not None and prompt + new - 1 > positions:
            raise PromptError(
                f"{prompt} prompt tokens and {new} new ones are more than the {positions} positions of {self.lm.name}: "
                f"max_new_tokens is at most {max(0, positions - prompt + 1)} here"
            )

    # Running
    # ---------------------------------------------------------------------------------------------------------

    def start(self) -> Batcher:
        """Run it in a thread of its own from now on."""
        if self._closed:
            raise ModelError("this batcher is closed: make another")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="trimtab-batcher", daemon=True)
            self._thread.start()
        return self

    def close(self, drain: float | None = None) -> None:
        """Take no more requests, let those under way go on for `drain` seconds (None: until they are done), cancel the
        rest, and end the thread."""
        with self._changed:
            self._closed = True
        until = None if drain is None else time.monotonic() + drain
        while self._open and (until is None or time.monotonic() < until):
            if not self._advance():
                with self._changed:
                    self._changed.wait(0.05)
        for row in self._everyone():
            row.ticket.cancel()
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        self.step()  # says to those cancelled that they are

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._thread is not None and not self._open:
                    self._changed.wait()
                if self._thread is None:
                    return
            self.step()

    def _advance(self) -> bool:
        """A step for whoever waits, where no thread makes them; whether one was made."""
        if self._thread is not None:
            return False
        self.step()
        return True
