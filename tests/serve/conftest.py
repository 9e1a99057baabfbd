"""Fixtures of the server: a tiny model with a chat template, three vectors, and a server of them on a free port."""

from __future__ import annotations

import openai
import pytest

from tests.serve.running import KEY, served, service, template, tiny_lm


@pytest.fixture(scope="session")
def lm():
    """A tiny Llama whose tokenizer has a chat template; 64 positions."""
    return template(tiny_lm())


@pytest.fixture(scope="module")
def server(lm):
    """A server with vectors and an alias: its service, with `url`."""
    with served(service(lm)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """The official client of that server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=30) as found:
        yield found
