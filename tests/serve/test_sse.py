"""Events are one line each, and work ends with its client."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from trimtab.serve.replies import TextChoice
from trimtab.serve.sse import EventStream, event, while_connected


@given(st.text())
def test_an_event_is_one_line_whatever_it_says(text):
    for document in ({"text": text}, TextChoice(index=0, text=text)):
        line = event(document).decode()
        assert line.endswith("\n\n")
        (only,) = line.splitlines()[:-1]
        assert json.loads(only.removeprefix("data: "))["text"] == text


async def never():
    await asyncio.sleep(60)
    return {"type": "http.disconnect"}


async def gone():
    await asyncio.sleep(0.01)
    return {"type": "http.disconnect"}


def test_work_gives_what_it_gives():
    async def work():
        return 5

    assert asyncio.run(while_connected(never, work())) == 5


def test_an_error_of_the_work_comes_through():
    async def work():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(while_connected(never, work()))


def test_work_is_cancelled_with_its_client():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(ClientDisconnect):
        asyncio.run(while_connected(gone, work()))
    assert ended == [True]


@pytest.mark.parametrize("receive", [never, gone])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_stream_is_closed_however_it_ends(receive, hangs):
    closed, sent = [], []

    async def events():
        yield b"one"
        if hangs:
            await asyncio.sleep(0.3 if receive is never else 60)
        yield b"two"

    async def send(message):
        sent.append(message.get("body"))

    asyncio.run(EventStream(events(), lambda: closed.append(True), 5)({}, receive, send))
    assert closed == [True]
    assert sent[1] == b"one"
    assert (sent[-1] == b"") is (receive is never or not hangs)


def test_a_client_that_takes_nothing_is_given_up():
    said = []

    async def events():
        yield b"one"

    async def send(message):
        await asyncio.sleep(60)

    stream = EventStream(events(), lambda: said.append("closed"), 0.05, lambda: said.append("stalled"))
    asyncio.run(stream({}, never, send))
    assert said == ["stalled", "closed"]


def test_a_client_that_is_gone_when_it_is_given_up_has_not_stalled():
    """As where its connection is cut off at the same moment."""
    said, cut = [], asyncio.Event()

    async def events():
        yield b"one"

    async def send(message):
        try:
            await asyncio.sleep(60)
        finally:
            cut.set()

    async def receive():
        await cut.wait()
        return {"type": "http.disconnect"}

    stream = EventStream(events(), lambda: said.append("closed"), 0.05, lambda: said.append("stalled"))
    asyncio.run(stream({}, receive, send))
    assert said == ["closed"]


def test_a_stream_whose_work_fails_is_closed_too():
    closed = []

    async def events():
        yield b"one"
        raise ValueError("mine")

    async def send(message):
        pass

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(EventStream(events(), lambda: closed.append(True), 5)({}, never, send))
    assert closed == [True]
