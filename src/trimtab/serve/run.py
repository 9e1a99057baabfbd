"""Running a service until a signal ends it: where it listens, and how streams under way come to their end.

SIGTERM or Ctrl-C: no new connections and no new requests, streams have `grace` seconds to finish, those that do not end
with an error event, and the process exits with 0. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trimtab.errors import TrimtabError
from trimtab.serve.app import application
from trimtab.serve.limits import MARGIN as SURPLUS
from trimtab.serve.limits import Limits, Unread
from trimtab.serve.metrics import Metrics
from trimtab.serve.problems import Problem
from trimtab.serve.service import Service

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MARGIN = 5
"""Seconds after the grace time for error events to be sent."""
LEAST = 32_768
"""Bytes that a client takes, while there are more, before it counts as one that has stalled."""


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, taken and not yet listening (port 0: any free one). TrimtabError where that fails."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        taken = socket.socket(family, socket.SOCK_STREAM)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        raise TrimtabError(f"cannot listen at {host}, port {port}: {error}") from error
    return taken


def address_of(taken: socket.socket) -> str:
    """The base URL that clients of this machine give."""
    host, port = taken.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else str(host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"


class Server(uvicorn.Server):
    """uvicorn with this package's way of ending. `ready` is called once it listens."""

    def __init__(self, service: Service, grace: float = 20.0, ready: Callable[[], None] | None = None) -> None:
        limits = service.limits
        config = uvicorn.Config(
            application(service, lambda: len(self.server_state.connections)),
            http=_protocol(limits, service.unread, service.metrics),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(grace) + MARGIN,
        )
        super().__init__(config)
        self.service, self.grace, self.ready = service, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets=sockets)
        if self.started and self.ready is not None:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what comes, let streams finish, then let go."""
        self.service.closing = True
        # a thread that does not keep the process alive: a second signal must not wait for it
        draining = threading.Thread(target=self.service.batcher.close, args=(self.grace,), daemon=True)
        draining.start()
        await super().shutdown(sockets=sockets)
        while draining.is_alive() and not self.force_exit:
            await asyncio.sleep(0.05)
        if self.force_exit:
            self.service.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals, without raising them again in the end: ending when told to is success."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in its own time, the second at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _protocol(limits: Limits, budget: Unread, metrics: Metrics) -> type[H11Protocol]:
    """HTTP/1.1 whose connections end where clients are slow or too many, and whose errors have the shape of all others
    here.

    Within `body_seconds` of its beginning, and of each answer, the head of a request must be there, whole: bytes of it
    are not enough. A client that has more unread than the transport keeps for it takes `LEAST` of it in
    `stalled_seconds`, or is cut off; what it has unread is part of the budget of all. A connection that comes while
    there are so many that those beyond the limit cannot be told about it is closed at once. Both are counted.
    """
    head, stalled, most = limits.body_seconds, limits.stalled_seconds, limits.connections + SURPLUS

    class Patient(H11Protocol):
        deadline: asyncio.TimerHandle | None = None
        reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                metrics.refused()
                transport.abort()
                return
            self._wait_for_a_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop(self.deadline, self.reading)
            budget.set(self, 0)
            super().connection_lost(exc)

        def unread(self) -> int:
            return self.transport.get_write_buffer_size()

        def cut_off(self) -> None:
            self.transport.abort()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._stop(self.deadline)

        def send_400_response(self, msg: str) -> None:
            answer = Problem(400, "this is no request of HTTP/1.1", code="invalid_http").response()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            parts = [
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ]
            with suppress(h11.LocalProtocolError):  # an answer has begun: it is broken off
                self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
            self.transport.close()

        def on_response_complete(self) -> None:
            self._wait_for_a_head()  # first, as the next one may have come already
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait_for_a_reader()

        def resume_writing(self) -> None:
            self._stop(self.reading)
            budget.set(self, 0)
            super().resume_writing()

        def _wait_for_a_head(self) -> None:
            self._stop(self.deadline)
            self.deadline = self.loop.call_later(head, self._too_late)

        def _wait_for_a_reader(self) -> None:
            unread = self.unread()
            budget.set(self, unread)
            self.reading = self.loop.call_later(stalled, self._still_unread, unread)

        def _still_unread(self, before: int) -> None:
            if before - self.unread() < LEAST:
                if not self._given_up():
                    metrics.cut_off("stalled")
                self.transport.abort()
            else:
                self._wait_for_a_reader()

        def _given_up(self) -> bool:
            """Whether the stream was broken off already, as its next event was not taken."""
            return self.transport.is_closing() and self.cycle is not None and not self.cycle.response_complete

        def _too_late(self) -> None:
            self.transport.close()
            self.deadline = self.loop.call_later(head, self.transport.abort)  # it may not take what it was sent

        def _stop(self, *timers: asyncio.TimerHandle | None) -> None:
            for timer in timers:
                if timer is not None:
                    timer.cancel()

    return Patient


def serve(service: Service, taken: socket.socket, grace: float = 20.0, ready: Callable[[], None] | None = None) -> None:
    """Serve at a socket that `bound` gave, until a signal comes."""
    Server(service, grace, ready).run(sockets=[taken])
