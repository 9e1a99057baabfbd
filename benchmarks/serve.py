"""The server under load: `python -m benchmarks.serve [--json] [--only NAME …]`.

`trimtab serve` runs in a process of its own with the bundled model and 16 vectors; this process is its clients. Ratios
are of neighbours in time; tokens are counted by the server's own `usage`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks.measure import Case, arguments, faster, overhead, present, ratio_of, say
from trimtab.values.edit import Edit, Intervention

MODEL, WIDTH, SITE = "smollm2-135m-instruct", 576, "L15.resid_post"
STREAMS = 16
NEW = 64
TOKEN_BYTES = 2 * 30 * 3 * 64 * 4
"""Keys and values of one token of `MODEL`: 30 layers, 3 heads of 64 numbers in float32."""
GROWN = 0.05
WARM_SECONDS, SECONDS = 60.0, 240.0
OPENINGS = ("The train left", "My grandmother said", "In the year 1920", "A good cook", "The old map", "On the island",
            "The first snow", "Our neighbour", "The committee", "A small dog", "The recipe", "Late at night",
            "The mountain", "Two brothers", "The harbour", "A long letter")  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One stream as its client saw it: seconds to its first text and to its end, its tokens, those of its prompt."""

    first: float
    seconds: float
    tokens: int
    read: int


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def resident(self) -> float:
        """Bytes of memory in use, from the kernel."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) * 1024
        raise OSError(f"no VmRSS of process {self.pid}")


@contextmanager
def serving() -> Iterator[Server]:
    """The command itself, with 16 vectors too short to change what is said."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        options: list[str] = []
        for i in range(STREAMS):
            path = Path(folder) / f"v{i}.safetensors"
            Intervention((Edit(SITE, "add", (rng.normal(size=WIDTH) * 1e-4).astype(np.float32)),)).save(path)
            options += ["--vector", f"v{i}={path}"]
        code = [sys.executable, "-m", "trimtab.cli", "serve", MODEL, "--port", "0", "--grace", "1", *options]
        env = {key: value for key, value in os.environ.items() if key != "TRIMTAB_API_KEY"}
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line.startswith("serving "):
                    raise RuntimeError(f"the server did not start: {line}")
                yield Server(line.split()[-1], process.pid)
            finally:
                process.terminate()


async def ask(client: httpx.AsyncClient, opening: str, new: int, steering: Sequence[dict[str, object]] = ()) -> Answer:
    """One stream, to its end."""
    body = {
        "prompt": opening,
        "max_tokens": new,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "steering": list(steering),
    }
    start, first, tokens, read = time.perf_counter(), 0.0, 0, 0
    async with client.stream("POST", "completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - start
            if usage := json.loads(line.removeprefix("data: ")).get("usage"):
                tokens, read = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
    return Answer(first, time.perf_counter() - start, tokens, read)


async def together(server: Server, count: int, new: int = NEW, steered: bool = False) -> tuple[float, list[Answer]]:
    """Streams begun at once: tokens a second of all of them, and each of them."""
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(ask(client, OPENINGS[i], new, [{"vector": f"v{i}"}] if steered else ()) for i in range(count))
        )
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - start), answers


def streams_16(server: Server, rounds: int) -> list[Case]:
    """Tokens a second of 16 streams over those of one."""
    ratios, rates = [], []
    asyncio.run(together(server, STREAMS, 8))
    for i in range(rounds):
        pair = {count: asyncio.run(together(server, count)) for count in ((1, STREAMS), (STREAMS, 1))[i % 2]}
        ratios.append(pair[STREAMS][0] / pair[1][0])
        rates.append((pair[1][0], pair[STREAMS][0]))
    one, all_ = np.median(rates, axis=0)
    note = f"{all_:.0f} tokens a second over {one:.0f}; {NEW} new tokens each"
    return [faster("streams_16", ratio_of(ratios), 5, note)]


def first_token_p99(server: Server, rounds: int) -> list[Case]:
    """Seconds from a request to its first token, with 16 clients that ask again as soon as they are answered."""

    async def load() -> list[float]:
        async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:

            async def one(i: int) -> list[float]:
                return [(await ask(client, OPENINGS[(i + j) % STREAMS], 8 + (i + j) % 24)).first for j in range(rounds)]

            return [first for part in await asyncio.gather(*map(one, range(STREAMS))) for first in part]

    seconds = np.array(asyncio.run(load()))
    note = f"{len(seconds)} requests of {STREAMS} clients; median {np.median(seconds):.3f} s"
    return [Case("first_token_p99", float(np.quantile(seconds, 0.99)), "s", note=note)]


async def short_requests(server: Server, count: int, seconds: float) -> list[Answer]:
    """The answers to `count` requests, or to as many as can be begun in so many seconds.

    Their prompts have 3 to 15 tokens or so, their answers 1 to 4; every other one is steered.
    """
    places, until, answers = asyncio.Semaphore(STREAMS), time.monotonic() + seconds, []
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:

        async def one(i: int) -> None:
            steering = [{"vector": f"v{i % STREAMS}", "coefficient": i}] if i % 2 else []
            async with places:
                if time.monotonic() < until:
                    answers.append(await ask(client, OPENINGS[i % STREAMS] * (1 + i % 3), 1 + i % 4, steering))

        await asyncio.gather(*map(one, range(count)))
    return answers


def memory_1000(server: Server, scale: float) -> list[Case]:
    """Growth of the server's memory over 1,000 short requests, or as many as four minutes have room for, after others.

    It would see a leak. A token's keys and values are 46 kB, so one row of the cache that is kept of each request, of
    10 tokens, is 460 MB of 1,000 requests: half of the 0.9 GB or so that the server has, where a twentieth is allowed.
    The case says what that share would be, and judges nothing where it is not twice what is allowed.
    """
    count = max(50, int(1000 * scale))
    asyncio.run(short_requests(server, int(0.3 * count), WARM_SECONDS))
    before = server.resident()
    answers = asyncio.run(short_requests(server, count, SECONDS))
    growth = server.resident() / before - 1
    leak = TOKEN_BYTES * sum(answer.read + answer.tokens for answer in answers) / before
    note = f"{len(answers)} requests, {before / 1e6:.0f} MB before; a row kept of each would be {leak:.2f}"
    holds = growth <= GROWN if leak >= 2 * GROWN else None
    return [Case("memory_1000", growth, "share grown", GROWN, holds, note=note)]


def steered_16(server: Server, rounds: int) -> list[Case]:
    """16 streams with 16 different vectors against the same without."""
    ratios = []
    asyncio.run(together(server, STREAMS, 8, steered=True))
    for i in range(rounds):
        pair = {
            on: asyncio.run(together(server, STREAMS, steered=on))[0] for on in ((False, True), (True, False))[i % 2]
        }
        ratios.append(pair[False] / pair[True])
    return [overhead("steered_16", ratio_of(ratios), 0.03, "one vector a stream, all different")]


def main() -> int:
    options = arguments(__doc__ or "")
    scale = options.rounds
    jobs: dict[str, Callable[[Server], list[Case]]] = {
        "streams_16": lambda server: streams_16(server, max(2, int(5 * scale))),
        "first_token_p99": lambda server: first_token_p99(server, max(2, int(12 * scale))),
        "steered_16": lambda server: steered_16(server, max(2, int(20 * scale))),
        "memory_1000": lambda server: memory_1000(server, scale),
    }
    cases = []
    with serving() as server:
        for name, job in jobs.items():
            if options.only is None or name in options.only:
                say(name)
                cases.extend(job(server))
    about = "client and server on one machine; medians of paired rounds, 95 % intervals"
    return present("The server", cases, options.json, about)


if __name__ == "__main__":
    sys.exit(main())
