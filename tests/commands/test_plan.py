"""What a plan says: of a task, of texts, of weights, and where the passes are not known."""

from __future__ import annotations

import pytest

from trimtab.commands.plan import Planned, duration


def said(**changes):
    parts = {"method": "m", "model": "tiny", "task": "ioi", "examples": 4, "groups": 2, "tokens": 1200}
    cost = {"places": 8, "variants": None, "passes": 24.0, "memory": None}
    return str(Planned(**parts | cost | changes)).splitlines()


def test_a_task_and_its_time():
    lines = said(seconds=90.0, timed=16, memory=2**21)
    assert lines[0] == "m on tiny: 4 examples of ioi in 2 groups,"
    assert "about 24 forward passes of a prompt at most:" in lines
    assert "a backward pass counts as two, a readout of many places by its multiplications" in lines
    assert "about 2 MiB of activations together, the model apart" in lines
    assert lines[-2:] == [
        "about 2 min on this machine, estimated from one plain pass of",
        "16 prompts; fits and drawing are left out. Nothing else was run",
    ]
    assert max(map(len, lines)) <= 80


def test_edits_are_told_apart_from_readouts():
    lines = said(variants=32)
    assert "at most 32 variants of a run of one prompt" in lines
    assert any("what an edit leaves as it was" in line for line in lines)
    assert not any("backward" in line for line in lines)


def test_texts_and_weights():
    assert said(task=None, examples=1, tokens=9)[0] == "m on tiny: 1 text of 9 tokens"
    assert said(task=None, examples=0, places=None, passes=0.0) == [
        "m on tiny: weights alone",
        "no forward pass over a prompt",
        "Nothing was run",
    ]


def test_what_is_not_known():
    lines = said(passes=None)
    assert lines[-2:] == ["how many passes it takes, and how long, is not known beforehand", "Nothing was run"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under a second"), (42, "42 s"), (59.4, "59 s"), (60, "1 min"), (7100, "118 min"), (7200, "2 h")],
)
def test_times_are_read(seconds, words):
    assert duration(seconds) == words
