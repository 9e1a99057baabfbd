"""A server from its start to its end: where it listens, clients that hang up, many of them, and signals."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.commands.calls import saved
from tests.serve.running import AUTH, KEY, VECTORS, hooks, served, service, slowly, until
from tests.tiny import words
from trimtab.errors import TrimtabError
from trimtab.model.requests import Ticket
from trimtab.model.serving_row import Row
from trimtab.serve import completing
from trimtab.serve.hosts import host_of, loopback
from trimtab.serve.run import address_of, bound, serve

BODY = {"model": "tiny+joy", "prompt": words(5, 6, 7), "max_tokens": 60, "temperature": 0}
HELD = (Ticket, Row, completing.Row, completing.Answers)
SLOW = """
import sys, time
import trimtab.model.load as room
from trimtab.cli import app
real = room.load
def load(*args, **options):
    lm = real(*args, **options)
    lm.hf.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    return lm
room.load = load
app()
"""


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("LOCALHOST", True), ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("192.168.1.5", False), ("example.org", False),
        ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("8.8.8.8", False),
    ],
)  # fmt: skip
def test_loopback(host, answer):
    assert loopback(host) is answer


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost", "localhost"), ("127.0.0.1:80", "127.0.0.1"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]"), ("", "")],
)
def test_the_host_of_a_header(header, host):
    assert host_of(header) == host


def test_a_place_that_is_taken_is_an_error():
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        assert address_of(taken) == f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(TrimtabError, match=r"cannot listen at 127\.0\.0\.1, port"):
            bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(TrimtabError, match="cannot listen at"):
        bound("no.such.host.invalid", 0)


# Clients that hang up
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(lm, server, stream):
    steps = server.service.batcher.stats.steps
    before = server.service.batcher.stats.cancelled
    with slowly(lm, 0.05):
        if stream:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY | {"stream": True}, headers=AUTH,
                              timeout=30, trust_env=False) as response:  # fmt: skip
                next(response.iter_text())
                assert server.service.batcher.stats.active == 1
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/completions", json=BODY, headers=AUTH, timeout=0.3, trust_env=False)
        until(lambda: server.idle, 2)
    assert server.service.batcher.stats.cancelled == before + 1
    assert server.service.batcher.stats.steps - steps < 40  # of 60
    assert hooks(lm) == 0


def test_others_do_not_notice(lm, server):
    true = lm.generate(BODY["prompt"], max_new_tokens=20).texts[0]
    found = []

    def ask():
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            stream = client.completions.create(
                model="tiny", prompt=BODY["prompt"], temperature=0, max_tokens=20, stream=True
            )
            found.append("".join(chunk.choices[0].text for chunk in stream))

    with slowly(lm, 0.02):
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY | {"stream": True, "n": 2},
                              headers=AUTH, timeout=30, trust_env=False) as response:  # fmt: skip
                next(response.iter_text())
        for thread in threads:
            thread.join(30)
    assert found == [true] * 4
    until(lambda: server.idle)


def test_a_client_that_is_gone_before_its_answer_begins(lm, server, monkeypatch):
    """Connections that are reset right away, and as soon as a request was taken in."""
    entered, gate = [], server.service.gate
    whole = gate.enter
    monkeypatch.setattr(gate, "enter", lambda count: entered.append(count) or whole(count))
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(BODY | {"stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {KEY}\r\n"
    with slowly(lm, 0.02):
        for i in range(20):
            seen = len(entered)
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                if i % 2:
                    until(lambda seen=seen: len(entered) > seen)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        until(lambda: server.idle, 5)
    assert len(entered) >= 10
    assert server.post("/v1/completions", BODY | {"max_tokens": 1}).status_code == 200


# Many of them
# ---------------------------------------------------------------------------------------------------------------------


def test_500_connections_at_once(lm, server):
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps(BODY | {"max_tokens": 2}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nConnection: close\r\n"
    request = f"{head}Authorization: Bearer {KEY}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data

    async def ask(opened):
        reader, writer = await asyncio.open_connection(host, int(port))
        opened.append(writer)
        while len(opened) < 500:  # all of them are open before the first one asks
            await asyncio.sleep(0.01)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(answer.split(b" ", 2)[1])

    async def ask_all():
        opened = []
        async with asyncio.timeout(60):
            return await asyncio.gather(*(ask(opened) for _ in range(500)))

    statuses = asyncio.run(ask_all())
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 16 + 64
    until(lambda: server.idle)
    assert server.post("/v1/completions", BODY | {"max_tokens": 1}).status_code == 200
    assert hooks(lm) == 0


def live():
    """The requests that something still holds: tickets, rows on both sides, answers."""
    gc.collect()
    return Counter(type(found).__qualname__ for found in gc.get_objects() if type(found) in HELD)


def test_nothing_is_kept_of_a_request(lm):
    """However it ended: whole, as a stream, refused, hung up, broken off."""
    mad = [{"vector": "joy", "coefficient": 1e38}] * 2
    with served(service(lm)) as running:
        before = live()
        for i in range(8):
            body = BODY | {"max_tokens": 1 + i % 5, "n": 1 + i % 3, "stream": i % 2 == 0}
            assert running.post("/v1/completions", body).status_code == 200
            running.post("/v1/completions", body | {"steering": mad})
            assert running.post("/v1/completions", body | {"max_tokens": 100}).status_code == 400
        with slowly(lm, 0.02):
            for i in range(3):
                with httpx.stream("POST", f"{running.url}/v1/completions", json=BODY | {"stream": True, "n": 2},
                                  headers=AUTH, timeout=30, trust_env=False) as response:  # fmt: skip
                    next(response.iter_text())
                    assert i or live() - before, "nothing is counted: this test would see nothing"
            until(lambda: running.idle)
        until(lambda: not live() - before, 30)


@pytest.mark.slow
def test_memory_is_flat_over_1000_requests(lm):
    def resident():
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def ask(client, count):
        for i in range(count):
            part = {"vector": "joy", "coefficient": float(i)}
            body = BODY | {"model": "tiny", "max_tokens": 1 + i % 20, "stream": i % 2 == 0, "steering": [part]}
            assert client.post("/v1/completions", json=body).status_code == 200

    with served(service(lm)) as running, httpx.Client(base_url=running.url, headers=AUTH, trust_env=False) as client:
        ask(client, 300)
        before, held = resident(), live()
        ask(client, 1000)
        assert resident() - before < 0.05 * before
        until(lambda: not live() - held, 30)


# The end
# ---------------------------------------------------------------------------------------------------------------------


class Ending:
    """A server in this thread, as in a process of its own, and in another a client that opens a stream and signals.

    Every pass over the model takes a moment. `text` is what the stream said, `reason` why it ended, `error` what the
    client raised, `seconds` from the first signal to the end, and `refused` whether a new connection was, meanwhile.
    """

    def __init__(self, lm, grace, most, *signals):
        self.text, self.reason, self.error, self.refused = "", None, None, False
        with bound("127.0.0.1", 0) as taken:
            self.url = address_of(taken)
            thread = threading.Thread(target=self.talk, args=(most, signals))
            with slowly(lm, 0.05):
                serve(service(lm, key=None), taken, grace, thread.start)
                self.seconds = time.monotonic() - self.began
            thread.join(20)
        assert not thread.is_alive()

    def talk(self, most, signals):
        with openai.OpenAI(base_url=self.url, api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model="tiny", prompt=BODY["prompt"], temperature=0, max_tokens=most, stream=True
            )
            self.text = next(stream).choices[0].text
            self.began = time.monotonic()
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(0.3)
            try:
                httpx.get(self.url.replace("/v1", "/health"), trust_env=False)
            except httpx.TransportError:
                self.refused = True
            try:
                for chunk in stream:
                    self.text += chunk.choices[0].text
                    self.reason = chunk.choices[0].finish_reason
            except openai.APIError as error:
                self.error = error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_and_refuses_others(lm, number):
    before = signal.getsignal(number)
    ending = Ending(lm, 20, 20, number)
    assert (ending.text, ending.error) == (lm.generate(BODY["prompt"], max_new_tokens=20).texts[0], None)
    assert ending.reason in ("stop", "length")
    assert ending.refused
    assert hooks(lm) == 0
    assert signal.getsignal(number) is before


def test_streams_that_do_not_finish_in_time_end_with_an_error(lm):
    ending = Ending(lm, 0.2, 60, signal.SIGTERM)
    assert ending.error.code == "server_shutting_down"
    assert ending.text
    assert ending.seconds < 2.5  # the stream would have gone on for three seconds


def test_a_second_signal_does_not_wait(lm):
    ending = Ending(lm, 60, 60, signal.SIGTERM, signal.SIGTERM)
    assert ending.seconds < 2.5
    assert ending.reason is None


def test_the_process_ends_with_0_while_a_stream_is_open(tmp_path):
    folder = saved(tmp_path / "tiny-llama")
    VECTORS["joy"].save(tmp_path / "joy.safetensors")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "HF_HUB_OFFLINE": "1"}
    code = [sys.executable, "-c", SLOW, "serve", str(folder), "--port", "0", "--grace", "0.3"]
    process = subprocess.Popen(
        [*code, "--vector", f"joy={tmp_path / 'joy.safetensors'}", "--alias", "happy=joy:2"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("serving tiny-llama at http://127.0.0.1:"), process.communicate(timeout=30)
        with openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model="happy", prompt=BODY["prompt"], temperature=0, max_tokens=60, stream=True
            )
            next(stream)
            process.terminate()
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    said = [line for line in err.splitlines() if line.strip() and "Loading weights" not in line]
    assert (process.returncode, out, said) == (0, "", [])


def test_an_open_connection_is_told_that_the_server_ends(lm):
    made = service(lm)
    with served(made) as running, httpx.Client(base_url=running.url, headers=AUTH, trust_env=False) as client:
        assert client.get("/health").status_code == 200
        made.closing = True
        found = client.post("/v1/completions", json=BODY)
        assert (found.status_code, found.json()["error"]["code"]) == (503, "server_shutting_down")
        assert client.get("/health").status_code == 503


def test_nothing_is_left_on_the_model(lm):
    threads = threading.active_count()
    with served(service(lm)) as running:
        assert running.post("/v1/completions", BODY).status_code == 200
    assert hooks(lm) == 0
    until(lambda: threading.active_count() <= threads)
    assert np.isfinite(lm.run(words(5, 6)).logits.numpy()).all()
