"""Which figure is made of which value, and that the tables behind them hold the same numbers."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.report.findings import NAN, made
from trimtab.figures.numbers import NONE, estimate, fixed, interval_of, mean_of, number
from trimtab.report.panels.checked import DRAWN, check_panel, ranked_checks
from trimtab.report.panels.panel import Table
from trimtab.report.panels.searched import curve_panels, direction_of, other_lines, picked_words, point_table
from trimtab.report.panels.tested import (
    aim_of,
    changed,
    control_panel,
    control_table,
    draw_means,
    entangled_panel,
    example_panels,
    example_table,
    means,
)
from trimtab.report.panels.where import RANKED, candidate_table, made_by, score_panels
from trimtab.values.findings import Estimate
from trimtab.values.outcome import Outcome
from trimtab.values.scores import Scores


def scores(array, dims, site, **options):
    return Scores(np.asarray(array, dtype=float), ("example", *dims), {}, site, **{"unit": "nats"} | options)


def titles(svg):
    return re.findall(r"<title>([^<]*)</title>", svg)


def test_a_map_has_its_means_in_the_table_and_its_strongest_below():
    array = np.array([[[0.1, -2.0], [1.5, 0.0]], [[0.3, -1.0], [0.5, 0.0]]])
    (panel,) = score_panels([scores(array, ("layer", "head"), "L{layer}.head[{head}]")])
    assert panel.title == "Attention heads"
    assert panel.table.columns == ("layer", "0", "1")
    assert panel.table.rows == (("0", "+0.20", "−1.50"), ("1", "+1.00", "0.00"))
    assert [site for site, _ in panel.facts] == ["L0.head[1]", "L1.head[0]", "L0.head[0]"]
    assert panel.facts[0][1].startswith("−1.5 [")
    assert [t.replace("\u00a0", " ") for t in titles(panel.svg)[:2]] == [
        "L0.head[0]: +0.200 nats",
        "L0.head[1]: −1.50 nats",
    ]


def test_a_map_has_layers_down_whichever_axis_comes_first():
    array = np.random.default_rng(0).normal(size=(3, 2, 4))
    one, other = (
        score_panels([scores(part, dims, "L{layer}.attn_out@{span}")])[0]
        for part, dims in ((array, ("layer", "span")), (array.transpose(0, 2, 1), ("span", "layer")))
    )
    assert one.table.rows == other.table.rows
    assert set(titles(one.svg)) == set(titles(other.svg))
    assert len(one.table.rows) == 2


def test_a_map_of_many_heads_has_the_whole_width_and_too_many_cells_are_ranked():
    few, many, more = (
        score_panels([scores(np.ones((2, 30, heads)), ("layer", "head"), "L{layer}.head[{head}]")])[0]
        for heads in (9, 64, 300)
    )
    assert (few.span, many.span, more.span) == ("one", "all", "two")
    assert ('class="chart map"' in few.svg, 'class="chart map large"' in many.svg) == (True, True)
    assert len(more.table.rows) == RANKED


def test_layers_alone_are_bars_with_the_last_on_top():
    (panel,) = score_panels([scores(np.arange(8.0).reshape(2, 4), ("layer",), "L{layer}.resid_pre")])
    assert [row[0] for row in panel.table.rows] == [f"L{i}.resid_pre" for i in (3, 2, 1, 0)]
    assert panel.span == "two"


def test_units_at_spans_are_one_map_for_each_span():
    array = np.random.default_rng(0).normal(size=(5, 3, 4, 2))
    panels = score_panels([scores(array, ("layer", "head", "span"), "L{layer}.head[{head}]@{span}")])
    assert len(panels) == 2
    for i, panel in enumerate(panels):
        (alone,) = score_panels([scores(array[..., i], ("layer", "head"), f"L{{layer}}.head[{{head}}]@{i}")])
        assert panel == replace(alone, title=f"Attention heads, @{i}")


def test_panels_of_one_kind_say_what_tells_them_apart():
    array, dims = np.ones((2, 2, 2)), (("layer", "head"), "L{layer}.head[{head}]")
    stream = scores(array[..., 0], ("layer",), "L{layer}.resid_post", method="magnitude_contrast")
    both = [scores(array, *dims, method=name) for name in ("magnitude_contrast", "attribution_patching")]
    assert [panel.title for panel in score_panels([stream, *both])] == [
        "Residual stream",
        "Attention heads, magnitude contrast",
        "Attention heads, attribution patching",
    ]


def test_more_axes_than_two_are_ranked():
    array = np.random.default_rng(0).normal(size=(5, 3, 4, 6))
    array[:, 1, 2, 3] -= 9
    array[:, 0, 0, 0] = NAN
    (panel,) = score_panels([scores(array, ("layer", "head", "pos"), "L{layer}.head[{head}]@{pos}")])
    assert len(panel.table.rows) == RANKED
    assert panel.table.rows[0][0] == "L1.head[2]@3"
    sizes = [abs(array.mean(0)[tuple(map(int, re.findall(r"\d+", row[0])))]) for row in panel.table.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert f"The {RANKED} strongest of 72." in panel.caption


def test_intervals_of_a_unit_are_over_its_groups():
    array = np.random.default_rng(0).normal(size=(8, 40 * 200)).reshape(8, 40, 200)
    array[:, 7, 9] = [1, 1, 1, 1, 5, 5, 5, 5]
    groups = ("a",) * 4 + ("b",) * 4
    (panel,) = score_panels([scores(array, ("layer", "neuron"), "L{layer}.neuron[{neuron}]", groups=groups)])
    wanted = Estimate.of(array[:, 7, 9], groups)
    assert (panel.table.rows[0][0], panel.table.rows[0][2]) == ("L7.neuron[9]", interval_of(wanted))


def test_how_scores_were_made_is_said_once_where_it_is_the_same():
    array = np.ones((2, 2, 2))
    dims = (("layer", "head"), "L{layer}.head[{head}]")
    same = [scores(array, *dims, method="patching", direction="noise", options={"k": 1}) for _ in range(2)]
    assert made_by(same) == ["Patching; corrupt values put into the clean run; k 1"]
    assert all(panel.caption.startswith("Mean of 2 examples") for panel in score_panels(same))
    mixed = [same[0], scores(array, *dims, method="attribution")]
    assert [panel.caption.split(". ")[0] for panel in score_panels(mixed)] == [*made_by(same), "Attribution"]


def test_scores_without_a_place_or_a_value():
    none = scores(np.ones((2, 0, 3)), ("layer", "head"), "L{layer}.head[{head}]")
    nan = scores(np.full((2, 2, 3), NAN), ("layer", "head"), "L{layer}.head[{head}]")
    for panel in score_panels([none, nan]):
        assert panel.svg == ""
        assert "No place here has a value." in panel.caption


def test_candidates_in_the_order_of_the_screen():
    candidates = made().screening.candidates
    table = candidate_table(candidates)
    assert [row[0] for row in table.rows] == [c.site for c in candidates]
    assert [row[3] for row in table.rows] == [str(c.rank) for c in candidates]


def test_sites_that_work_come_first_and_only_so_many_are_drawn():
    validation = made().validation
    ranked = ranked_checks(validation)
    assert [check.works for check in ranked] == sorted((check.works for check in validation.checks), reverse=True)
    assert [abs(c.effect.mean) for c in ranked[:9]] == sorted((abs(c.effect.mean) for c in ranked[:9]), reverse=True)
    many = check_panel(validation.with_(checks=validation.checks * 3))
    assert f"Drawn: the first {DRAWN} of {3 * len(validation.checks)}." in many.caption
    assert many.svg.count('class="bar') == DRAWN
    assert len(many.table.rows) == 3 * len(validation.checks)
    for check, row in zip(ranked, check_panel(validation).table.rows, strict=True):
        assert row[:3] == (check.candidate.site, check.candidate.kind, "works" if check.works else "does not work")
        assert row[3:5] == (mean_of(check.effect, places=2), interval_of(check.effect, 2))
        assert row[8] == interval_of(check.difference, 2)


def _lines(search):
    lines = {}
    for p in search.points:
        lines.setdefault((p.method, p.site, p.scope), []).append(p)
    best = {place: max(p.effect.mean for p in points if p.allowed) for place, points in lines.items()}
    return sorted(best, key=best.get, reverse=True)


def test_the_six_best_lines_are_drawn_and_the_others_listed():
    search = made().search
    order = _lines(search)
    drawn = {
        (panel.title.removeprefix("Along the coefficient: "), *name.split(" · "))
        for panel in curve_panels(search)
        for name in re.findall(r'class="mono">([^<]*)<', panel.svg)
    }
    assert drawn == set(order[:6])
    rest = other_lines(search)
    assert [(row[2], row[0], row[1]) for row in rest.rows] == order[6:]
    assert rest.about == f"{len(order) - 6} more lines, each at its best point"
    assert other_lines(search.with_(points=search.points[:8])) is None


def test_a_line_over_the_limit_comes_after_those_within():
    search = made().search
    wild = search.points[0].with_(site="L0.embed", effect=Estimate(50.0, 49.0, 51.0, 9), allowed=False)
    rest = other_lines(search.with_(points=(wild, *search.points), picked=None))
    assert rest.rows[-1][0] == "L0.embed"
    assert rest.rows[-1][3] == "no"


def test_every_point_is_in_the_table():
    search = made().search
    table = point_table(search)
    assert len(table.rows) == len(search.points)
    (row,) = [row for row in table.rows if "picked" in row[3]]
    point = search.points[search.picked]
    assert (row[0], row[4], row[7]) == (point.site, "1.5", number(point.kl))
    assert picked_words(search).startswith(f"difference of means at {point.site} · all, coefficient 1.5: effect +")
    assert picked_words(search.with_(picked=None)) == picked_words(search.with_(picked=999)) == ""


def test_the_direction_is_that_of_what_was_picked_or_of_the_front():
    search = made().search
    down = tuple(p.with_(effect=Estimate(-p.effect.mean, -p.effect.high, -p.effect.low, 9)) for p in search.points)
    assert direction_of(search) == direction_of(search.with_(picked=None)) == 1
    assert direction_of(search.with_(points=down)) == direction_of(search.with_(points=down, picked=None)) == -1


def outcome(change, groups=None):
    return Outcome("m", "nats", np.zeros(len(change)), np.asarray(change, dtype=float), groups)


@pytest.mark.parametrize(
    ("change", "wrong", "effect", "aim"),
    [
        ((1, 1, 1, -1), 0.25, 0.5, 1),
        ((1, 1, 1, -1), 0.75, 0.5, -1),  # the mean moved against the aim
        ((-1, -1, 0, 1), 0.25, -0.25, -1),
        ((1, -1), 0.5, -0.1, -1),
        ((1, -1), NAN, -0.1, -1),
        ((NAN, NAN), 0.5, NAN, 1),
    ],
)
def test_the_aim_is_the_way_that_fits_the_share_that_moved_wrong(change, wrong, effect, aim):
    e = made().evaluation.with_(outcome=outcome(change), wrong_way=wrong, effect=Estimate(effect, NAN, NAN, 2))
    assert aim_of(e) == aim


def test_examples_before_and_after():
    e = made().evaluation
    slopes, hist = example_panels(e)
    assert slopes.svg.count('class="slope') == 40
    assert slopes.svg.count('class="slope wrong"') == 3
    assert "in orange those below zero" in hist.caption
    table = example_table(e.outcome)
    assert table.rows[4][:2] == ("5", "topic 1")
    assert table.rows[4][4] == fixed(float(e.outcome.after[4] - e.outcome.before[4]), 2, sign=True) == "−0.22"


def test_controls_hold_their_draws():
    e = made().evaluation
    panel, table = control_panel(e), control_table(e)
    assert panel.svg.count('class="draw"') == 20 + 20 + 10 + 1
    assert "An instruction instead" in panel.svg
    assert "An instruction instead" not in control_panel(e.with_(prompt_only=None)).svg
    for control, row in zip(e.controls, table.rows, strict=True):
        assert row[0] == control.name
        assert row[3:5] == (str(len(control.effects)), fixed(float(control.effects.mean()), 2, sign=True))
        assert row[6:8] == (mean_of(control.difference), interval_of(control.difference))
    holed = e.controls[0].effects.copy()
    holed[0, 1:] = NAN
    first = dataclasses.replace(e.controls[0], effects=holed)
    assert draw_means(first)[0] == holed[0, 0]
    none = dataclasses.replace(e.controls[0], effects=np.zeros((0, 40)), kl=np.zeros(0), p=NAN)
    assert control_table(e.with_(controls=(none,))).rows[0][3:6] == ("0", NONE, NONE)


def test_other_tasks_are_ranked_below_this_one():
    e = made().evaluation
    panel = entangled_panel(e)
    sizes = [abs(t.standardised.mean) for t in sorted(e.entangled, key=lambda t: -abs(t.standardised.mean))]
    assert [row[5] for row in panel.table.rows] == [
        mean_of(t.standardised, places=2) for t in sorted(e.entangled, key=lambda t: -abs(t.standardised.mean))
    ]
    assert sizes == sorted(sizes, reverse=True)
    first = titles(panel.svg)[0]
    own = e.effect.mean / e.outcome.before.std(ddof=1)
    assert first.startswith(f"this task: {own:+.2f}")
    change = changed(e.entangled[0].outcome)
    (row,) = [row for row in panel.table.rows if row[0] == e.entangled[0].task]
    assert row[3] == estimate(change)


def test_means_are_over_examples_that_have_both():
    assert means(Outcome("m", "", np.array([1.0, NAN, 3.0]), np.array([2.0, 9.0, 4.0]))) == (2.0, 3.0)


def test_a_table_knows_that_it_lacks_a_number():
    assert Table("", ("a", "b"), (("x", NONE),)).lacks
    assert Table("", ("a", "b"), (("x", f"{NONE} (no interval)"),)).lacks
    assert not Table("", ("a", "b"), (("2010–2012", "−1"),)).lacks
