"""Figures of monitors: points of a ROC curve counted one by one, rings and frames at the tokens that are flagged."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from tests.figures.reading import Svg, inside, near, number, on
from trimtab.values.estimate import Estimate
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.monitor import Calibration, GroupReport, Monitor, MonitorReport, auroc
from trimtab.values.monitor_figures import MOST_GROUPS, roc
from trimtab.values.watched import Watched

R = np.random.default_rng(0)
POSITIVE, NEGATIVE = R.normal(1, 1, 40), R.normal(0, 1, 40)
STREAMED = Estimate(0.8, 0.6, 0.9, 40), Estimate(0.25, 0.1, 0.4, 40)
NONE = Estimate(np.nan, np.nan, np.nan, 0)


def report(groups=4, streamed=STREAMED, positive=POSITIVE, negative=NEGATIVE):
    names = tuple(f"g{i % groups}" for i in range(40))
    parts = tuple(GroupReport(f"g{i}", 40 // groups, 0.9 - 0.02 * i, 0.9, 0.1 + 0.04 * i) for i in range(groups))
    three = Estimate(0.75, 0.65, 0.85, 40), Estimate(0.7, 0.5, 0.8, 40), Estimate(0.1, 0.0, 0.2, 40)
    area = Estimate(auroc(positive, negative), 0.6, 0.9, 40)
    error = Estimate(0.1, 0.0, 0.2, 80)
    rates = (area, error, 0.05, *three, *streamed)
    return MonitorReport("m at L1.mlp_out", "t", positive, negative, *rates, parts, 10, names)


def test_the_curve_is_the_best_that_any_threshold_does():
    points = roc(POSITIVE, NEGATIVE, np.arange(41) / 40)
    every = [tuple(float((side > t).mean()) for side in (NEGATIVE, POSITIVE)) for t in [*POSITIVE, *NEGATIVE, -np.inf]]
    for x, y in points:
        assert y == max(found for flagged, found in every if flagged == x)
    assert points[-1] == (1.0, 1.0)
    steps = sum((b[0] - a[0]) * a[1] for a, b in pairwise(points))
    assert steps == pytest.approx(auroc(POSITIVE, NEGATIVE))


def test_ties_are_flagged_together():
    assert roc(np.array([1.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.25, 0.5, 1.0])) == [
        (0.0, 0.0),
        (0.5, 0.5),
        (1.0, 1.0),
    ]


def test_a_report_shows_its_rates_where_they_are():
    found = report()
    svg = Svg(found.plot().drawings[0].svg)
    across, up = svg.axis(), svg.axis(across=False)
    for name, x, y in (
        ("at its threshold", found.false_positive_rate, found.true_positive_rate),
        ("after every token", *reversed(STREAMED)),
    ):
        (point,) = svg.titled(name)
        corners = [tuple(map(float, pair.split(","))) for pair in point.get("points").split()]
        middle = [(min(ends) + max(ends)) / 2 for ends in zip(*corners, strict=True)]
        assert middle[0] == pytest.approx(on(across, x.mean), abs=1)
        assert middle[1] == pytest.approx(on(up, y.mean), abs=1)
        strokes = [(number(e, "y1"), number(e, "y2")) for e in svg.all("line", "spread")]
        assert (near(on(up, y.low)), near(on(up, y.high))) in strokes
    inside(svg)
    assert not Svg(report(streamed=(NONE, NONE)).plot().drawings[0].svg).titled("after every token")


def test_a_report_shows_both_sides_and_the_worst_groups_first():
    _, margins, groups = report().plot().drawings
    said = [e.text for e in Svg(margins.svg).root.iter("title")]
    assert any(words.startswith("side positive: 40 values") for words in said)
    assert f"median {np.median(NEGATIVE):.3f}".replace("-", "−") in next(s for s in said if "side negative" in s)
    names = [e.text.split(":")[0] for e in Svg(groups.svg).root.iter("title")]
    assert names == ["all groups", "g3", "g2", "g1", "g0"]
    many = report(groups=40).plot().drawings[2]
    assert many.svg.count('class="bar"') == MOST_GROUPS
    assert "Left out: the 20 best groups" in many.caption


def test_a_report_shows_itself(tmp_path):
    found = report()
    assert found.plot().title == "Monitor of m at L1.mlp_out, on t"
    assert f"AUROC {found.auroc.mean:.2f}" in found.plot().caption
    assert "0.050 if every probability were right" in found.plot().caption
    html = found._repr_html_()
    assert html.count("<svg") == 3
    assert str(found) in html
    found.plot().save(tmp_path / "report.html")


def watched(rows=2, threshold=1.0, read="all", new=5):
    """Margins of new tokens that rise by one a token from −2 on, a row later by a token than the one before."""
    monitor = Monitor(
        LinearProbe("L1.resid_post", [1.0, 0.0], 0.0, 1.0, task="m", read=read),
        Calibration("platt"), 0.5, 0.05, stream_threshold=threshold,
    )  # fmt: skip
    tokens = [["p", *(f"{row}t{i}" for i in range(new))] for row in range(rows)]
    margins = np.array([[0.0, *(2.0 * i - row for i in range(new))] for row in range(rows)])
    return Watched(tokens, (1,) * rows, {"m": monitor}, {"m": margins})


def test_few_texts_are_lines_with_a_ring_at_the_token_that_is_flagged():
    seen = watched()
    (made,) = seen.plot().drawings
    svg = Svg(made.svg)
    across, up = svg.axis(), svg.axis(across=False)
    first, running = seen.flagged("m"), seen.running("m")
    assert first == (2, 3)
    rings = [(number(e, "cx"), number(e, "cy")) for e in svg.all("circle", "ring")]
    assert rings == [(near(on(across, j + 1)), near(on(up, running[row, j]))) for row, j in enumerate(first)]
    assert [e.text for e in svg.all("text", "mono")] == ["1: 0t00t10t20t30t4", "2: 1t01t11t21t31t4", "threshold"]
    assert "; flagged" in svg.titled("1: 0t00t10t20t30t4, tokens generated 3")[0][0].text
    paths = [e for e in svg.all("path", "line") if "s2" in e.get("class").split()]
    ends = [tuple(map(float, pair.split())) for pair in paths[0].get("d")[1:].split("L")]
    assert ends == [(near(on(across, x)), near(on(up, 1.0))) for x in (1, 5)]
    assert made.caption.startswith("Mean margin of the tokens generated so far.")
    inside(svg)


@pytest.mark.parametrize(("rows", "new"), [(8, 5), (2, 60)])
def test_many_texts_or_tokens_are_a_map_of_margins_less_the_threshold(rows, new):
    seen = watched(rows, new=new)
    (made,) = seen.plot().drawings
    svg = Svg(made.svg)
    running, cells = seen.running("m"), {}
    for e in svg.root.iter("rect"):
        match = len(e) and re.match(r"text (\d+), (\d+) “.*”: (\S+)", e[0].text)
        if match:
            cells[int(match[1]) - 1, int(match[2]) - 1] = (e, match[3])
    assert len(cells) == rows * new
    for (row, j), (e, said) in cells.items():
        more = running[row, j] - 1.0
        assert float(said.replace("−", "-")) == pytest.approx(more, rel=0.01)
        assert (int(e.get("class")[1:]) > 10) == (more > 0) or abs(more) < 0.05 * abs(running - 1).max()
    tops = [number(cells[row, 0][0], "y") for row in range(rows)]
    assert tops == sorted(tops)
    frames = {(number(e, "x"), number(e, "y")) for e in svg.all("rect", "frame")}
    places = [(row, j) for row, j in enumerate(seen.flagged("m")) if j is not None]
    assert frames == {(number(cells[at][0], "x"), number(cells[at][0], "y")) for at in places}
    assert len(frames) == (3 if rows == 8 else 2)


@pytest.mark.parametrize("rows", [2, 8])
def test_a_monitor_without_a_threshold_for_every_token_shows_margins_alone(rows):
    (made,) = watched(rows, threshold=None, read="last").plot().drawings
    assert made.caption == "Margin of the last token."
    assert "threshold" not in made.svg
    assert 'class="ring"' not in made.svg
    assert 'class="frame"' not in made.svg


def test_a_row_that_ended_has_no_points_behind_its_end():
    seen = watched()
    margins = seen.margins["m"].copy()
    margins[1, 3:] = np.nan
    short = Watched([seen.tokens[0], seen.tokens[1][:3]], (1, 1), seen.monitors, {"m": margins})
    said = [e.text for e in Svg(short.plot().drawings[0].svg).root.iter("title")]
    assert sum(words.startswith("1: ") for words in said) == 5
    assert sum(words.startswith("2: ") for words in said) == 2


def test_what_was_watched_shows_texts_and_figure():
    html = watched()._repr_html_()
    assert html.index("0t3</span>") < html.index("<svg")
