"""A server in a thread, its model and vectors, and ways to look at what it does."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np

from tests.commands.calls import TEMPLATE
from tests.tiny import tiny, tokenizer
from trimtab.model.lm import LM
from trimtab.model.serving import Batcher
from trimtab.serve.limits import Limits
from trimtab.serve.registry import Registry
from trimtab.serve.run import Server, bound
from trimtab.serve.service import Service
from trimtab.values.edit import Edit, Intervention

KEY = "a-key-of-the-tests"
AUTH = {"Authorization": f"Bearer {KEY}"}


def tiny_lm(family="llama"):
    return LM(tiny(family), tokenizer(), name="tiny", check=False)


def template(lm):
    """The same model with a tokenizer that has a chat template."""
    own = copy.deepcopy(lm.tokenizer)
    own.chat_template = TEMPLATE
    return LM(lm.hf, own, name=lm.name, check=False)


def random_vector(seed, *sites, size=1.0):
    """An intervention that adds a random vector at each site."""
    rng = np.random.default_rng(seed)
    return Intervention(tuple(Edit(site, "add", rng.normal(size=32).astype(np.float32) * size) for site in sites))


VECTORS = {
    "joy": random_vector(1, "L0.resid_post", "L1.resid_post"),
    "anger": random_vector(2, "L1.resid_pre"),
    "late": random_vector(3, "L1.resid_post@-1:", size=2.0),
}


@dataclass
class Running:
    """A server that is up."""

    service: Service
    server: Server
    url: str

    def post(self, path, body, **options):
        """A request with the key, as JSON."""
        return httpx.post(f"{self.url}{path}", json=body, headers=AUTH, timeout=30, trust_env=False, **options)

    def get(self, path, **options):
        return httpx.get(f"{self.url}{path}", headers=AUTH, timeout=30, trust_env=False, **options)

    @property
    def idle(self):
        """Whether nothing is left of any request: no place, no row, no hook."""
        stats = self.service.batcher.stats
        return self.service.gate.inside == stats.active == stats.waiting == 0


def service(lm, vectors=VECTORS, limits=None, key=KEY, batcher=None, **batching):
    registry = Registry("tiny", vectors, {"happy": "tiny+joy:0.5"} if "joy" in vectors else {})
    return Service(lm, registry, batcher or Batcher(lm, **batching), limits or Limits(), key)


@contextmanager
def served(made: Service, grace: float = 1.0) -> Iterator[Running]:
    """A real uvicorn on a free port, in a thread."""
    with bound("127.0.0.1", 0) as taken:
        server = Server(made, grace)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(made, server, f"http://127.0.0.1:{taken.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def until(holds, seconds=10.0):
    """Wait until something holds; an assertion fails where it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


@contextmanager
def slowly(lm, seconds=0.05):
    """Every pass over the model takes a moment, so that there is time to do something in the middle of an answer."""
    handle = lm.hf.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()


def hooks(lm):
    """How many hooks are on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.hf.modules())
