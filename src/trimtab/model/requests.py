"""What is asked of a batcher, and what comes back, token by token.

A `Ticket` belongs to one request: it is iterated by a thread that waits, or hands each `Delta` to a callback, and it
can be cancelled from anywhere. It knows nothing of models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

from trimtab.values.edit import Intervention

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """One continuation to be made: the tokens of a prompt, the edits that are on for it, and how tokens are picked.

    `ids` are the prompt's token ids; `max_new_tokens`, `temperature`, `top_p`, `top_k`, `repetition_penalty` and `seed`
    are as in `lm.generate`. `stop` are texts that end it where they appear; unlike those of `lm.generate` they are left
    out of what is said. `logprobs` above 0 asks for the log-probability (nats, before temperature) of each new token,
    and of so many likeliest ones.
    """

    ids: tuple[int, ...]
    intervention: Intervention = field(default_factory=Intervention)
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int = 0


@dataclass(frozen=True)
class Delta:
    """One new token and the text that it completes; the last one of a request has a `finish`.

    `id` is None where there is no token (cancelled, an error). `top` are (token id, log-probability) pairs, the
    likeliest first. `finish`: "stop" (an end-of-sequence token or a stop text), "length", "cancelled" or "error"; `own`
    says of an error whether the request itself brought it about (an edit that is too strong), and nothing else did;
    `memory` whether memory ran out, also with no other request in the same pass.
    """

    id: int | None
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    error: str | None = None
    own: bool = False
    memory: bool = False


class Ticket:
    """The deltas of one request, as they come.

    Iterating waits for each (and, where no thread runs the batcher, runs it). `on_delta` gives them to a callback
    instead. `number` counts requests from 0; `prompt_tokens` is the length of the prompt; `first_token_s` the seconds
    from submission to the first delta, None before it.
    """

    def __init__(self, number: int, prompt_tokens: int, advance: Callable[[], bool]) -> None:
        self.number = number
        self.prompt_tokens = prompt_tokens
        self.first_token_s: float | None = None
        self.cancelled = False
        self.finish: Finish | None = None
        """How it ended, None before."""
        self._advance = advance
        self._began = time.monotonic()
        self._deltas: SimpleQueue[Delta] = SimpleQueue()
        self._callback: Callable[[Delta], None] | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        state = self.finish or ("cancelled" if self.cancelled else "under way")
        return f"Ticket({self.number}: {self.prompt_tokens} prompt tokens, {state})"

    def __iter__(self) -> Iterator[Delta]:
        while True:
            delta = self._next()
            if delta is None:
                return
            yield delta

    def cancel(self) -> None:
        """End it before the next step; the last delta then says "cancelled". Nothing happens where it has ended."""
        self.cancelled = True

    def on_delta(self, callback: Callable[[Delta], None]) -> None:
        """Call `callback` with each delta, those that are there already first, then from the batcher's thread.

        For asyncio: `lambda delta: loop.call_soon_threadsafe(queue.put_nowait, delta)`. An error in it cancels the
        request.
        """
        with self._lock:
            while not self._deltas.empty():
                callback(self._deltas.get())
            self._callback = callback

    def put(self, delta: Delta) -> None:
        """The batcher's side: hand over a delta."""
        with self._lock:
            if self.first_token_s is None and delta.id is not None:
                self.first_token_s = time.monotonic() - self._began
            if self._callback is None:
                self._deltas.put(delta)
            else:
                try:
                    self._callback(delta)
                except Exception:  # noqa: BLE001 (a listener that is gone is no reason to stop the others)
                    self.cancelled = True
            self.finish = delta.finish  # last, so that who sees it finds every delta

    def _next(self) -> Delta | None:
        while True:
            ended = self.finish is not None
            try:
                return self._deltas.get_nowait()
            except Empty:
                if ended:
                    return None
            if not self._advance():  # a thread runs the batcher: wait for it
                try:
                    return self._deltas.get(timeout=0.1)
                except Empty:
                    continue
