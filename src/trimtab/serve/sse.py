"""Server-sent events, and work that ends when the client hangs up.

It knows nothing of the protocol above it: an event is one JSON document, and `DONE` ends a stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
STILL_HERE = b": still here\n\n"
"""A comment, which clients skip: it keeps proxies from closing a stream that waits for its turn."""
BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def event(document: BaseModel | Mapping[str, object]) -> bytes:
    """One event, on one line: JSON escapes line feeds, and here the other breaks at which some clients split lines."""
    text = document.model_dump_json() if isinstance(document, BaseModel) else json.dumps(document, ensure_ascii=False)
    return f"data: {text.translate(BREAKS)}\n\n".encode()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Where the client has hung up, work is cancelled, and ClientDisconnect raised.

    The body of the request must have been read before: what comes now can only be the end of the connection.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() or gone.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of events. `close` is called once in the end, however it comes: finished, hung up, cancelled.

    A client that takes no bytes for `patience` seconds is treated as one that hung up, and `stalled` called.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        close: Callable[[], None],
        patience: float,
        stalled: Callable[[], None] = lambda: None,
        **headers: str,
    ) -> None:
        self.events, self.close, self.patience, self.stalled = events, close, patience, stalled
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there are no more, or nobody reads them."""
        try:
            await while_connected(receive, self._send(send))
        except ClientDisconnect:
            pass
        except TimeoutError:
            self.stalled()
        finally:
            self.close()

    async def _send(self, send: Send) -> None:
        async def sent(message: dict[str, object]) -> None:
            async with asyncio.timeout(self.patience):
                await send(message)

        await sent({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.events) as events:
            async for data in events:
                if data:
                    await sent({"type": "http.response.body", "body": data, "more_body": True})
        await sent({"type": "http.response.body", "body": b"", "more_body": False})
