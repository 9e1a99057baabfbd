"""A prompt is read once for all answers to it that begin together, and each of them says what it would say alone."""

from __future__ import annotations

import pytest

from tests.model.test_serving import MARK, NEW, PROMPTS, Relu, alone, edits, ids_of
from tests.model.tinies import exact, untouched
from tests.tiny import FAMILIES
from trimtab.errors import Busy, PromptError
from trimtab.model import serving_batch
from trimtab.model.edits import Compiled
from trimtab.model.kvcache import Layer
from trimtab.model.serving import Batcher, Request
from trimtab.values.edit import Intervention

PROMPT = PROMPTS[0]


@pytest.fixture
def read(monkeypatch):
    """The tokens, padding among them, of every pass over more than one column."""
    whole, seen = serving_batch.last_logits, []

    def forward(lm, ids, *rest):
        if ids.shape[1] > 1:
            seen.append(ids.numel())
        return whole(lm, ids, *rest)

    monkeypatch.setattr(serving_batch, "last_logits", forward)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_one_prompt_are_those_of_requests_one_by_one(family, read):
    lm = exact(family, padded=True)
    ways = [{}, {}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "seed": 2}, {"max_new_tokens": 1}]
    kinds = list(edits(lm).values())
    if family not in ("llama", "gemma3"):  # the others take turns
        kinds = kinds[list(FAMILIES).index(family) % 3 :: 3]
    with untouched(lm):
        for intervention in kinds:
            read.clear()
            batcher = Batcher(lm, dictionaries={"d": Relu()})
            made = [Request(PROMPT, intervention, **{"max_new_tokens": NEW} | way) for way in ways]
            found = [ids_of(ticket) for ticket in batcher.submit_all(made)]
            assert found == [alone(lm, PROMPT, intervention, **way)[0] for way in ways]
            assert (read, batcher.stats.prompt_tokens) == ([len(PROMPT)], len(PROMPT))
            assert batcher.stats.cache_tokens == 0
            assert [ids_of(batcher.submit(request)) for request in made[1:3]] == found[1:3]


def test_they_join_those_that_run_and_are_read_in_stretches(read):
    lm = exact("llama")
    batcher = Batcher(lm, chunk=3)
    first = batcher.submit(Request(PROMPTS[3], max_new_tokens=20))
    batcher.step()
    read.clear()
    made = [Request(PROMPT, max_new_tokens=NEW + n, temperature=1.0, seed=n) for n in range(3)]
    answers = batcher.submit_all(made)
    assert [ids_of(ticket) for ticket in answers] == [
        alone(lm, PROMPT, max_new_tokens=NEW + n, temperature=1.0, seed=n)[0] for n in range(3)
    ]
    assert read == [3, 3], "and one token alone"
    assert ids_of(first) == alone(lm, PROMPTS[3], max_new_tokens=20)[0]


def test_prompts_and_edits_that_differ_are_read_each():
    lm = exact("llama")
    batcher = Batcher(lm)
    on, off = Intervention.of("L0.mlp_out scale 2"), Intervention.of("L0.mlp_out scale 3")
    pairs = [(PROMPT, on), (PROMPT, on), (PROMPT, off), (PROMPTS[3], off), (PROMPTS[3], off), (PROMPT, on)]
    tickets = batcher.submit_all([Request(ids, edit, max_new_tokens=NEW) for ids, edit in pairs])
    assert [ids_of(ticket) for ticket in tickets] == [alone(lm, ids, edit)[0] for ids, edit in pairs]
    assert batcher.stats.prompt_tokens == 4 * len(PROMPT)
    assert batcher.stats.finished == 6


@pytest.mark.parametrize("gone", [0, 1])
def test_one_that_is_cancelled_while_the_prompt_is_read_leaves_the_others(gone):
    lm = exact("llama")
    batcher = Batcher(lm, chunk=2)
    batcher.submit(Request(PROMPTS[3], max_new_tokens=20))
    batcher.step()
    tickets = batcher.submit_all([Request(PROMPT, max_new_tokens=NEW)] * 3)
    batcher.step()
    assert batcher.stats.prompt_tokens == len(PROMPTS[3]), "the prompt has been read: this test would see nothing"
    tickets[gone].cancel()
    left = [ticket for ticket in tickets if ticket is not tickets[gone]]
    assert [ids_of(ticket) for ticket in left] == [alone(lm, PROMPT)[0]] * 2
    assert list(tickets[gone])[-1].finish == "cancelled"


def test_an_edit_that_raises_while_the_prompt_is_read_ends_them_all(monkeypatch):
    lm, whole = exact("llama"), Compiled.apply

    def apply(compiled, x, frame):
        if compiled.edit == MARK:
            raise ZeroDivisionError("by zero")
        return whole(compiled, x, frame)

    monkeypatch.setattr(Compiled, "apply", apply)
    batcher = Batcher(lm)
    bad = batcher.submit_all([Request(PROMPT, Intervention.of(MARK), max_new_tokens=4)] * 3)
    good = batcher.submit(Request(PROMPT, max_new_tokens=4))
    assert [[delta.error for delta in ticket] for ticket in bad] == [["by zero"]] * 3
    assert ids_of(good) == alone(lm, PROMPT, max_new_tokens=4)[0]


@pytest.mark.parametrize("running", [False, True])
def test_where_there_is_no_memory_for_copies_each_is_read(monkeypatch, running):
    lm = exact("llama")

    def fork(*_):
        raise MemoryError

    batcher = Batcher(lm)
    if running:
        batcher.submit(Request(PROMPTS[3], max_new_tokens=9))
        batcher.step()
    monkeypatch.setattr(Layer, "fork", fork)
    made = [Request(PROMPT, max_new_tokens=NEW, temperature=1.0, seed=n) for n in range(3)]
    found = [ids_of(ticket) for ticket in batcher.submit_all(made)]
    assert found == [alone(lm, PROMPT, temperature=1.0, seed=n)[0] for n in range(3)]
    assert batcher.stats.failed == 0


def test_more_answers_than_rows_are_read_as_often_as_they_begin():
    lm = exact("llama")
    batcher = Batcher(lm, max_rows=2)
    batcher._ends = frozenset()
    tickets = batcher.submit_all([Request(PROMPT, max_new_tokens=NEW)] * 5)
    assert len({ids_of(ticket) for ticket in tickets}) == 1
    assert batcher.stats.prompt_tokens == 3 * len(PROMPT)


def test_either_all_are_taken_or_none():
    batcher = Batcher(exact("llama"), max_waiting=3)
    with pytest.raises(PromptError, match="97"):
        batcher.submit_all([Request(PROMPT), Request((5, 97))])
    assert batcher.stats.waiting == 0
    batcher.submit(Request(PROMPT))
    with pytest.raises(Busy, match="1 requests are waiting, and 3 may"):
        batcher.submit_all([Request(PROMPT)] * 3)
    assert batcher.stats.waiting == 1
    batcher.submit_all([Request(PROMPT)] * 2)
    with pytest.raises(Busy):
        batcher.submit(Request(PROMPT))
    assert batcher.submit_all([]) == []
