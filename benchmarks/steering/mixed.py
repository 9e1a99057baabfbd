"""What steering costs where every request of a batch has a vector of its own."""

from __future__ import annotations

import numpy as np

import trimtab
from benchmarks.measure import Case, Work, overhead, paired, seconds
from trimtab import steer
from trimtab.model.serving import Batcher, Request
from trimtab.values.edit import Edit, Intervention

MODEL = "smollm2-135m-instruct"
STREAMS = 16
TARGET = 0.10
AT_ONCE = 5.0
PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle, and what it says."


def cases(quick: bool) -> list[Case]:
    """`quick`: fewer and shorter rounds."""
    lm = trimtab.load(MODEL)
    lm.hf.generation_config.eos_token_id = []  # nobody stops early: both sides write as many tokens
    rounds, few, new = (3, 1, 16) if quick else (15, 5, 32)
    return [mixed(lm, rounds, new), ablated(lm, few, new), streams(lm, few, new)]


def interventions(lm: trimtab.LM) -> list[Intervention]:
    """A different vector for each request, each at a layer of its own, from the first that reads words on."""
    rng, width = np.random.default_rng(0), lm.anatomy.d_model
    layers = np.linspace(2, lm.anatomy.n_layers - 2, STREAMS).round().astype(int)
    return [
        Intervention.of(Edit(f"L{layer}.resid_post", "add", rng.normal(size=width) / width**0.5)) for layer in layers
    ]


def work(lm: trimtab.LM, on: list[Intervention], new: int) -> Work:
    """All of these requests at once, `new` tokens each."""
    ids = tuple(int(i) for i in lm.prompts(PROMPT).ids[0])
    never = Intervention()

    def run() -> None:
        batcher = Batcher(lm, max_rows=STREAMS)
        tickets = [batcher.submit(Request(ids[: len(ids) - n % 4], edit or never, new)) for n, edit in enumerate(on)]
        while batcher.step():
            pass
        assert all(ticket.finish == "length" for ticket in tickets)
        assert batcher.stats.generated_tokens == len(on) * new

    return run


def mixed(lm: trimtab.LM, rounds: int, new: int) -> Case:
    """16 vectors in one batch next to the same 16 requests without."""
    vectors, none = interventions(lm), [Intervention()] * STREAMS
    ratio = paired(work(lm, vectors, new), work(lm, none, new), rounds)
    note = f"{STREAMS} requests, {STREAMS} vectors at {STREAMS} layers, prompts read and {new} tokens written"
    return overhead("mixed_16", ratio, TARGET, note, upper=True)


def ablated(lm: trimtab.LM, rounds: int, new: int) -> Case:
    """16 directions ablated in one batch, each at every entrance of the stream, next to the same requests without."""
    rng, none = np.random.default_rng(1), [Intervention()] * STREAMS
    on = [steer.ablate_direction(lm, rng.normal(size=lm.anatomy.d_model)) for _ in range(STREAMS)]
    ratio = paired(work(lm, on, new), work(lm, none, new), rounds)
    note = (
        f"{STREAMS} requests, {STREAMS} directions ablated at {len(on[0])} sites, prompts read and {new} tokens written"
    )
    return Case("ablated_16", ratio.value - 1, "share over", None, None, ratio.low - 1, ratio.high - 1, note)


def streams(lm: trimtab.LM, rounds: int, new: int) -> Case:
    """Tokens per second of 16 steered requests at once, over those of one."""
    vectors = interventions(lm)
    together, one = work(lm, vectors, new), work(lm, vectors[:1], new)
    together(), one()
    times = sorted(STREAMS * seconds(one) / seconds(together) for _ in range(rounds))
    value = times[len(times) // 2]
    note = f"tokens per second of {STREAMS} steered requests over those of one, median of {rounds}"
    return Case("streams_16", value, "times one", AT_ONCE, value >= AT_ONCE, note=note)
