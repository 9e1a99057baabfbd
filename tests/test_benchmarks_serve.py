"""The benchmark of the server: what its case of memory would say of a server that keeps something. Nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from benchmarks import serve

BEFORE = 900e6


@dataclass
class Leaking:
    """A server that keeps a share of a row of its cache for each request."""

    share: float = 0.0
    url: str = "http://localhost"
    tokens: list[int] = field(default_factory=list)

    def resident(self):
        return BEFORE + self.share * serve.TOKEN_BYTES * sum(self.tokens)


def asked(monkeypatch, server, read):
    """Clients whose requests, with prompts of `read` tokens, are answered at once."""

    async def ask(client, opening, new, steering):
        server.tokens.append(read + new)
        return serve.Answer(0.0, 0.0, new, read)

    monkeypatch.setattr(serve, "ask", ask)


@pytest.mark.parametrize(("share", "holds"), [(0.0, True), (0.05, True), (0.2, False), (1.0, False)])
def test_a_row_that_is_kept_of_each_request_shows(monkeypatch, share, holds):
    server = Leaking(share)
    asked(monkeypatch, server, 6)
    (case,) = serve.memory_1000(server, 1)
    assert len(server.tokens) == 1300
    assert case.holds is holds
    kept = sum(server.tokens[300:]) * serve.TOKEN_BYTES * share
    assert case.value == pytest.approx(kept / (BEFORE + share * serve.TOKEN_BYTES * sum(server.tokens[:300])))
    assert "1000 requests, " in case.note


def test_too_few_requests_to_see_anything_are_not_judged(monkeypatch):
    server = Leaking()
    asked(monkeypatch, server, 6)
    (case,) = serve.memory_1000(server, 0.05)
    assert case.holds is None
    monkeypatch.setattr(serve, "SECONDS", 0.0)
    (case,) = serve.memory_1000(server, 1)
    assert (case.holds, case.note.split(",")[0]) == (None, "0 requests")


def test_a_tokens_keys_and_values_are_as_large_as_is_said(bundled):
    a = bundled.anatomy
    assert 2 * a.n_layers * a.n_kv * a.d_head * bundled.dtype.itemsize == serve.TOKEN_BYTES
