"""The benchmarks' own arithmetic and output; nothing is timed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import peers
from benchmarks.measure import Case, Ratio, faster, overhead, present, ratio_of

FIELDS = {"name", "value", "unit", "target", "holds", "low", "high", "note"}


@pytest.mark.parametrize("rounds", [1, 2, 3, 9, 60])
def test_the_interval_of_a_ratio_holds_its_median_and_repeats(rounds):
    ratios = np.random.default_rng(rounds).lognormal(1, 0.5, rounds)
    found = ratio_of(ratios)
    assert found.value == np.median(ratios)
    assert ratios.min() <= found.low <= found.value <= found.high <= ratios.max()
    assert found.rounds == rounds
    assert ratio_of(ratios) == found


def test_targets():
    ratio = Ratio(1.05, 1.01, 1.20, 9)
    assert faster("a", ratio, 1.05).holds
    assert not faster("a", ratio, 1.06).holds
    assert overhead("a", ratio, 0.10).holds
    assert not overhead("a", ratio, 0.10, upper=True).holds


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (None, 0), (False, 1)])
def test_json_is_one_document_and_the_status_says_whether_a_target_is_missed(holds, status, capsys):
    cases = [Case("sweep", 41.5, "times faster", 40, True), Case("other", 2.0, "share over", 1.0, holds, 1.5, 2.5, "n")]
    assert present("A title", cases, as_json=True) == status
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["cases"]
    assert [set(case) for case in document["cases"]] == [FIELDS, FIELDS]
    assert document["cases"][0]["holds"] is True
    assert document["cases"][1]["holds"] is holds


def test_the_table_shows_a_missed_target(capsys):
    assert present("A title", [Case("sweep", 12.0, "times faster", 40, False)], as_json=False) == 1
    assert "MISSED" in capsys.readouterr().out


def test_libraries_that_are_not_installed_have_no_case(monkeypatch, capsys):
    for library in ("transformer_lens", "nnsight"):
        monkeypatch.setitem(sys.modules, library, None)
    assert peers.peer_cases(None) == []
    said = capsys.readouterr()
    assert said.out == ""
    assert "transformer_lens is not installed" in said.err
    assert "nnsight is not installed" in said.err


def test_a_library_that_fails_costs_only_its_own_case(monkeypatch, capsys):
    case = Case("peer_nnsight", 2.0, "times faster")

    def compared(bench, ours, library, prepare):
        if library == "transformer_lens":
            raise ValueError("cannot load this")
        sys.stdout.write("a library that talks")
        return case

    monkeypatch.setattr(peers, "find_spec", lambda library: library)
    monkeypatch.setattr(peers, "compared", compared)
    bench = SimpleNamespace(late=None, patches=lambda *_: SimpleNamespace(values=torch.zeros(2, 1)))
    assert peers.peer_cases(bench) == [case]
    said = capsys.readouterr()
    assert said.out == ""
    assert "peer_transformer_lens left out: ValueError: cannot load this" in said.err
