"""Plan: which cells will be computed and at what cost, before anything runs; never fewer than are computed then."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.tinies import IDS, OTHER, RAGGED, SIDES, close, every_site, exact, lm_of, untouched
from tests.tiny import FAMILIES, words
from trimtab.errors import EditError, SiteError
from trimtab.model.plan import Cell, Plan, first_columns, merge_columns
from trimtab.model.protocols import all_logits, logit_diff
from trimtab.values.edit import Condition, Edit, Noise, Ref

READOUT = logit_diff([3, 4], [5, 6])


def cells(plan):
    return [(c.variant, c.row, c.layer, c.entry, c.column) for c in plan.cells]


class TestFromScopes:
    lm = property(lambda self: exact("llama"))

    def plan(self, variants, ids=RAGGED, readout=READOUT, **options):
        return self.lm.plan(ids, variants, readout, **options)

    def test_runs_nothing(self):
        with untouched(self.lm):
            handle = self.lm.hf.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
            try:
                self.plan(["L0.head[1] scale 0", "L1.resid_pre@2 add 1"])
            finally:
                handle.remove()

    def test_where_a_cell_starts(self):
        plan = self.plan(["L0.head[1] scale 0", "L1.resid_pre@2 add 1", "L1.neuron[3]@-1 set 0", "embed@1 set 0"])
        assert cells(plan) == [
            (0, 0, 0, "head", 0),
            (0, 1, 0, "head", 2),  # the shorter row begins at its third column
            (1, 0, 1, "resid_pre", 2),
            (1, 1, 1, "resid_pre", 4),
            (2, 0, 1, "neuron", 6),
            (2, 1, 1, "neuron", 6),
            (3, 0, 0, "resid_pre", 1),
            (3, 1, 0, "resid_pre", 3),
        ]

    @pytest.mark.parametrize(
        ("site", "entry"),
        [
            ("L1.resid_pre", "resid_pre"),
            ("L1.q", "resid_pre"),
            ("L1.rot_k", "resid_pre"),
            ("L1.pattern", "resid_pre"),
            ("L1.head", "head"),
            ("L1.attn_out", "head"),
            ("L1.resid_mid", "head"),
            ("L1.mlp_in", "mlp_in"),
            ("L1.gate_pre", "mlp_in"),
            ("L1.neuron", "neuron"),
            ("L1.mlp_out", "neuron"),
            ("L1.resid_post", "resid_post"),
        ],
    )
    def test_where_a_block_is_entered(self, site, entry):
        (cell, _) = self.plan([f"{site}@-1 scale 0"]).cells
        assert (cell.layer, cell.entry) == (1, entry)

    def test_several_edits_start_at_the_first(self):
        plan = self.plan([["L1.head@-1 scale 0", "L0.mlp_out@3 scale 0", "L1.q@0 scale 0"]], IDS)
        assert cells(plan) == [(0, 0, 0, "neuron", 0), (0, 1, 0, "neuron", 0)]

    def test_cells_that_cannot_change_anything_are_left_out(self):
        early = all_logits("2")
        assert cells(self.plan(["L0.head@3 scale 0"], IDS, early)) == []
        assert len(self.plan(["L0.head@2 scale 0"], IDS, early).cells) == 2
        assert cells(self.plan([Edit("L0.head", "scale", 0.0, rows=(1,))], IDS)) == [(0, 1, 0, "head", 0)]
        assert cells(self.plan([Edit("L0.head", "scale", 0.0, strength=0.0), []], IDS)) == []

    def test_a_patch_starts_where_the_tokens_differ(self):
        other = self.lm.run(OTHER, ["L*.resid_pre"])
        plan = self.plan([Edit(f"L1.resid_pre@{p}", "set", Ref("o")) for p in range(7)], IDS, runs={"o": other})
        assert [(c.variant, c.row) for c in plan.cells if c.row == 0] == [(p, 0) for p in range(2, 7)]
        assert [(c.variant, c.row) for c in plan.cells if c.row == 1] == [(p, 1) for p in range(3, 7)]

    def test_freezing_to_the_base_alone_changes_nothing(self):
        assert self.plan([Edit("L0.head", "set", Ref("base"))]).cells == ()

    def test_whole_passes_are_named(self):
        plan = self.plan(
            [
                "logits[3] add 1",
                Edit("L1.head", "scale", 0.0, when=Condition("L0.resid_pre", np.ones(32), 0.1)),
                "final@-1 scale 0",
                "L0.head scale 0",
            ]
        )
        assert plan.naive == (0, 1, 2)
        assert [c.variant for c in plan.cells] == [3, 3]
        assert "3 variants run as whole forward passes: they have a condition or edit the logits" in str(plan)
        assert plan.computed == plan.total == 8


class TestCost:
    def made(self, **options):
        size = {
            "variants": 1,
            "rows": 1,
            "n_layers": 1,
            "width": 1,
            "cells": (),
            "naive": (),
            "chunk": 1,
            "bytes_each": 1,
        }
        return Plan(**(size | {"base_bytes": 1, "exact": "fast"} | options))

    def test_counts_and_passes(self):
        some = (Cell(0, 0, 0, "head", 0), Cell(0, 1, 1, "head", 5), Cell(1, 0, 1, "resid_pre", 0))
        plan = self.made(variants=3, rows=2, n_layers=2, width=10, cells=some, naive=(2,))
        assert plan.total == 6
        assert plan.computed == 3 + 2
        assert plan.passes == pytest.approx(1 + 0.25 + 0.5 + 2 + 2)  # cells, the variant run whole, the base

    def test_reads_as_sentences(self):
        plan = exact("llama").plan(IDS, [f"L1.resid_pre@{p} set 0" for p in range(7)], READOUT)
        first, second, third, *rest = str(plan).split("\n")
        assert first == "14 cells (7 variants, 2 rows), 14 computed (fast)"
        assert second.startswith("about ")
        assert second.endswith(" forward passes of work instead of 14, in 7 suffix groups")
        assert re.fullmatch(r"memory: \d+ kB for the base run, \d+ kB for batches of 2 rows", third)
        assert rest == ["an upper bound: cells found equal to the base run are left out"]

    @pytest.mark.parametrize(("n", "text"), [(999, "999 B"), (5_000, "5 kB"), (7_300_000, "7 MB"), (1.25e9, "1.2 GB")])
    def test_sizes(self, n, text):
        assert f"memory: {text} for the base run," in str(self.made(base_bytes=n))

    def test_memory_bounds_the_batch(self):
        lm = exact("llama")
        variants = ["L0.head[0]@1 scale 0"] * 64
        tight = lm.plan(IDS, variants, READOUT, memory=1)
        assert tight.chunk == 1
        some = lm.plan(IDS, variants, READOUT, memory=10.5 * tight.bytes_each)
        assert some.chunk == 10
        assert lm.plan(IDS, variants, READOUT, memory=1e12).chunk == 128

    def test_later_and_deeper_is_cheaper(self):
        lm = exact("llama")
        costs = [
            lm.plan(IDS, [f"{site} set 0"], READOUT).passes for site in ("L0.resid_pre@0", "L0.resid_pre@5", "L1.q@5")
        ]
        assert costs == sorted(costs, reverse=True)
        assert len(set(costs)) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_is_an_upper_bound_of_what_is_computed(family):
    lm = lm_of(family)
    names = [site for site in every_site(lm, core=False) if site.expert is None]
    other = lm.run(OTHER, [site for site in names if site.layer is not None])
    variants = []
    for site in every_site(lm):
        variants += [Edit(site, "scale", 0.5, where="3"), Edit(site, "clamp", (-1e6, 1e6))]
        if site in other:
            for op, run in itertools.product(("set", "add"), ("o", "base")):
                variants += [
                    Edit(site, op, Ref(run)),
                    Edit(site, op, Ref(run), where="1"),
                    Edit(site, op, Ref(run, at="2"), where="4"),
                ]
    variants += [[variants[0], variants[-1]], Edit("embed@2", "noise", Noise(1.0))]
    plan = lm.plan(IDS, variants, READOUT, runs={"o": other})
    found = lm.counterfactuals(IDS, variants, READOUT, runs={"o": other})
    planned = torch.zeros(len(variants), 2, dtype=torch.bool)
    for cell in plan.cells:
        planned[cell.variant, cell.row] = True
    planned[list(plan.naive)] = True
    missed = (found.computed & ~planned).any(1).nonzero().flatten().tolist()
    assert [str(variants[i]) for i in missed] == [], "computed, and not planned"
    assert found.plan.computed == int(found.computed.sum())
    assert plan.computed >= found.plan.computed
    assert plan.passes >= found.plan.passes


@pytest.mark.parametrize("side", SIDES)
def test_no_cell_starts_before_its_plan(side):
    """Neither in the padding of a shorter row, nor where a run that was read otherwise differs by a rounding."""
    lm = lm_of("llama")
    prompts = lm.prompts(RAGGED, padding=side)
    rows = [[5, 6, 20, 8, 9, 10, 11], [7, 12, 30, 10, 13]]
    other = lm.run(lm.prompts(rows, padding=side), ["L1.pattern", "L1.head", "L0.rot_k"])
    variants = [
        "L1.resid_pre add 1",
        "L1.neuron[3] set 0",
        "L0.q set 0.5",
        Edit("L1.pattern", "set", Ref("o")),
        Edit("L0.rot_k", "set", Ref("o")),
        Edit("L1.head[2]", "set", Ref("o")),
        "L0.pattern[0]@-1 scale 0",
    ]
    plan = lm.plan(prompts, variants, READOUT, runs={"o": other})
    found = lm.counterfactuals(prompts, variants, READOUT, runs={"o": other})
    planned = {(c.variant, c.row): c.column for c in plan.cells}
    early = [(str(variants[c.variant]), c.row) for c in found.plan.cells if c.column < planned[c.variant, c.row]]
    assert early == []


@pytest.mark.parametrize("side", SIDES)
def test_spans_that_lie_elsewhere_in_the_run_they_take_values_from(side):
    """A value that comes from another position changes something though the tokens there and here are the same."""
    lm = exact("llama")
    here = lm.prompts(
        [words(5, 6, 7, 8, 9, 10, 11), words(7, 12, 9, 10, 13)], spans={"s": ["w8", "w9 w10"]}, padding=side
    )
    texts = [words(5, 6, 7, 8, 9, 10, 12), words(7, 12, 9, 10, 14)]  # the last token alone is another one
    there = lm.prompts(texts, spans={"s": ["w6", "w7 w12"]}, padding=side)
    other = lm.run(there, ["L0.resid_post", "L1.head"])
    variants = [
        *(Edit(f"{site}@s", op, Ref("o")) for site in ("L0.resid_post", "L1.head[1]") for op in ("set", "add")),
        "L1.q@s scale 0",
        ["L0.mlp_out@s set 0", "L0.resid_post@end scale 2"],
        Edit("L0.resid_post@s", "set", Ref("o", at="s")),
        Edit("L0.resid_post@end", "set", Ref("o")),
    ]
    plan, found, naive = (
        call(here, variants, READOUT, runs={"o": other}, **options)
        for call, options in ((lm.plan, {}), (lm.counterfactuals, {}), (lm.counterfactuals, {"exact": "naive"}))
    )
    close(lm, found.values, naive.values)
    planned = {(c.variant, c.row): c for c in plan.cells}
    for cell in found.plan.cells:
        bound = planned[cell.variant, cell.row]
        assert (bound.layer, bound.column) <= (cell.layer, cell.column)
        assert bound.column <= cell.column
    assert len(planned) == plan.computed == 16
    assert plan.passes >= found.plan.passes
    first = {side: [3, 2] if side == "right" else [3, 4]}[side]
    assert [planned[0, row].column for row in (0, 1)] == first


class TestErrors:
    def test_are_those_of_the_sweep(self):
        lm = exact("llama")
        for call in (lm.plan, lm.counterfactuals):
            with untouched(lm):
                with pytest.raises(SiteError, match="layer 9 is out of range"):
                    call(IDS, ["L9.head scale 0"], READOUT)
                with pytest.raises(EditError, match="no variants were given"):
                    call(IDS, [], READOUT)
                with pytest.raises(EditError, match="row 2 is out of range"):
                    call(IDS, [Edit("L0.head", "scale", 0.0, rows=(2,))], READOUT)

    def test_a_single_edit_instead_of_a_list(self):
        """It is taken as a list of one, or the message says what a list is."""
        lm = exact("llama")
        try:
            found = lm.counterfactuals(IDS, "L0.head scale 0", READOUT)
        except EditError as error:
            assert "list" in str(error)  # noqa: PT017
        else:
            assert found.values.shape == (1, 2)


class TestMerging:
    @staticmethod
    def price(columns, work, width, idle, groups):
        """What a split of the columns into runs costs."""
        total = 0.0
        for group in groups:
            rows = [sum(layer) for layer in zip(*(work[i] for i in group), strict=True)]
            total += sum(idle + r * (width - columns[group[0]]) for r in rows if r)
        return total

    @settings(max_examples=60)
    @given(data=st.data(), n=st.integers(1, 6), layers=st.integers(1, 3), idle=st.sampled_from([0.0, 1.0, 8.0, 200.0]))
    def test_is_the_cheapest_split(self, data, n, layers, idle):
        width = 12
        columns = sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=n, max_size=n)))
        work = [
            np.cumsum(data.draw(st.lists(st.integers(0, 9), min_size=layers, max_size=layers))).tolist()
            for _ in columns
        ]
        merged = merge_columns(columns, work, width, idle)
        assert set(merged) == set(columns)
        assert all(first <= column for column, first in merged.items())
        assert all(merged[first] == first for first in merged.values())
        groups = [[i for i, c in enumerate(columns) if merged[c] == first] for first in sorted(set(merged.values()))]
        best = math.inf
        for cuts in itertools.product([False, True], repeat=n - 1):
            split = [[0]]
            for i, cut in enumerate(cuts, 1):
                split.append([i]) if cut else split[-1].append(i)
            best = min(best, self.price(columns, work, width, idle, split))
        assert self.price(columns, work, width, idle, groups) == pytest.approx(best)

    def test_extremes(self):
        columns, work = [2, 5, 9], [[1, 1], [1, 1], [1, 1]]
        assert merge_columns(columns, work, 10, 0.0) == {2: 2, 5: 5, 9: 9}
        assert merge_columns(columns, work, 10, 1e9) == {2: 2, 5: 2, 9: 2}
        assert merge_columns([], [], 10, 8.0) == {}


def test_first_columns():
    moved = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).bool()
    assert first_columns(moved) == [1, None, 0, 3]
