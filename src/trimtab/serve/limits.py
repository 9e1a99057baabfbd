"""What a client may ask for at most, how many may ask at once, and how much may lie here for them.

It knows nothing of models: `tokens` is compared by whoever has counted them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.serve.problems import Problem, busy, problem_of

B = TypeVar("B", bound=BaseModel)

MARGIN = 32
"""Connections beyond the limit that are still told so, if they ask; further ones are closed at once."""
FILES = 64
"""Files that a server needs beside its connections."""


@dataclass(frozen=True)
class Limits:
    """Sizes, counts and seconds."""

    body: int = 1_000_000
    """Bytes of a request."""
    tokens: int | None = None
    """Tokens of one answer with its prompt; None: as many as the model was made for."""
    waiting: int = 64
    """Answers that may wait for a free row. Beyond them a request is refused, to be sent again later."""
    connections: int = 1000
    """Open connections. A request that comes while there are more is refused, and its connection closed; `MARGIN` more
    are held, and others closed as they come."""
    body_seconds: float = 30.0
    """For the body of a request to arrive; also for its head, after the beginning of a connection or an answer."""
    stalled_seconds: float = 60.0
    """For a client to take the next bytes of a stream, or 32 kB of what it has left unread."""
    unread: int = 256_000_000
    """Bytes, roughly, that are kept of all answers together: what is written and not read, and what there is of replies
    that are sent whole. Beyond it the reader with most of them is cut off."""


class Gate:
    """Counts the answers in hand. Used from one thread, that of the event loop."""

    def __init__(self, room: int) -> None:
        self.room, self.inside = room, 0

    def enter(self, count: int) -> None:
        """Take places for `count` answers; Problem 429 where there are not as many."""
        if count > self.room:
            raise Problem(
                422,
                f"{count} answers were asked for, and this server has room for {self.room} at once",
                code="invalid_value",
            )
        if self.inside + count > self.room:
            raise busy()
        self.inside += count

    def leave(self, count: int) -> None:
        """Give places back."""
        self.inside -= count


class Reader(Protocol):
    """Who has something to read."""

    def unread(self) -> int:
        """Bytes that are kept for it now."""
        ...

    def cut_off(self) -> None:
        """Let go of all that is unread."""
        ...


class Unread:
    """Counts what is written and not read, in bytes, for each reader. Used from one thread, that of the event loop.

    Where it becomes more than `most` together, the reader with most of it is cut off, and `told` called. Before that
    all of them are asked what they have now: a connection does not say when it is read.
    """

    def __init__(self, most: int, told: Callable[[], None] = lambda: None) -> None:
        self.most, self.told, self.total = most, told, 0
        self._sizes: dict[Reader, int] = {}

    def set(self, reader: Reader, size: int) -> None:
        """So many bytes are unread by this reader from now on."""
        self.total += size - self._sizes.pop(reader, 0)
        if size:
            self._sizes[reader] = size
        if self.total > self.most:
            self._sizes = {one: held for one in self._sizes if (held := one.unread())}
            self.total = sum(self._sizes.values())
        while self.total > self.most:
            slowest = max(self._sizes, key=self._sizes.__getitem__)
            self.total -= self._sizes.pop(slowest)
            slowest.cut_off()
            self.told()


def room_for(connections: int) -> int:
    """As many connections of these as the process may have files for; its own limit is raised where the system lets it.

    At least one.
    """
    try:
        import resource
    except ModuleNotFoundError:  # a system that has no such limit
        return connections
    most, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + MARGIN + FILES
    if most == resource.RLIM_INFINITY or most >= needed:
        return connections
    more = needed if highest == resource.RLIM_INFINITY else min(needed, highest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, highest))
    except (OSError, ValueError):
        more = most
    return max(1, more - MARGIN - FILES)


class Uncrowded:
    """The application, with Problem 503 for requests that come while more than `most` connections are open."""

    def __init__(self, app: ASGIApp, connections: Callable[[], int], most: int) -> None:
        self.app, self.connections, self.most = app, connections, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before anything of it is looked at."""
        answer = self.app
        if scope["type"] == "http" and self.connections() > self.most:
            words = f"more than {self.most} connections are open: close those that are idle, or come again in a moment"
            answer = Problem(503, words, code="too_many_connections", retry_after=1).response()
            answer.headers["connection"] = "close"
        await answer(scope, receive, send)


async def read_body(request: Request, kind: type[B], limits: Limits) -> B:
    """The body of a request as a `kind`. Problem for one that is too large, too slow, or not what it should be.

    The parser limits depth, to 200 levels, and whole numbers, to 4,300 digits. A body that is declared too large is not
    waited for.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # a page of another site can send text/plain without asking, and JSON only where the server allows it
        raise Problem(415, "send JSON, with the header Content-Type: application/json", code="invalid_content_type")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > limits.body:
        raise _too_large(limits)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.body:
                    raise _too_large(limits)
    except TimeoutError:
        raise Problem(
            408, f"the body did not arrive within {limits.body_seconds:g} seconds", code="request_timeout"
        ) from None
    try:
        return kind.model_validate_json(bytes(data))
    except ValueError as error:
        raise problem_of(error) from error


def _too_large(limits: Limits) -> Problem:
    return Problem(413, f"a request may have {limits.body:,} bytes at most", code="request_too_large")
