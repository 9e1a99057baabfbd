"""Service: what every request of one server needs, in one place: the model, the vectors, the batches, the limits.

It answers nothing itself; `app` has the routes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from trimtab.serve.limits import Gate, Limits, Unread
from trimtab.serve.metrics import Metrics
from trimtab.serve.registry import Registry
from trimtab.serve.steering import check_servable

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.serving import Batcher

P = ParamSpec("P")
T = TypeVar("T")

LARGEST = 4096
"""Tokens of a prompt and its answer, where neither the model nor `Limits.tokens` says anything."""


class Service:
    """A model with a registry of vectors, ready to be served.

    `key`: what clients must send as their API key; None lets everyone in. EditError for a vector that cannot be served.
    """

    def __init__(
        self, lm: LM, registry: Registry, batcher: Batcher, limits: Limits | None = None, key: str | None = None
    ) -> None:
        for name, vector in registry.vectors.items():
            check_servable(lm, name, vector, batcher.dictionaries)
        self.lm, self.registry, self.batcher, self.key = lm, registry, batcher, key
        self.limits = limits or Limits()
        self.window = min(_window(lm, self.limits.tokens), batcher.max_tokens)
        self.longest = max(map(len, lm.tokenizer.get_vocab() if lm.tokenizer else ()), default=1)
        """Characters of the longest token."""
        self.gate = Gate(batcher.max_rows + self.limits.waiting)
        self.metrics = Metrics(batcher)
        self.unread = Unread(self.limits.unread, partial(self.metrics.cut_off, "unread"))
        self.created = int(time.time())
        self.closing = False
        self._worker = ThreadPoolExecutor(1, "trimtab-serve")  # one thread: tokenizers are not for several at once

    async def aside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of work that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: work(*args, **kwargs))

    def start(self) -> None:
        """Let the batches run."""
        self.batcher.start()

    def close(self) -> None:
        """Stop at once; what is under way ends with an error."""
        self.closing = True
        self.batcher.close(0)
        self._worker.shutdown(wait=False, cancel_futures=True)


def _window(lm: LM, asked: int | None) -> int:
    own = getattr(lm.hf.config, "max_position_embeddings", None)
    return min(size for size in (own, asked or own or LARGEST) if size)
