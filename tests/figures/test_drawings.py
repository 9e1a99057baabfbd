"""Drawings: values lie where their axes say, interval ends too, in the order of their numbers, inside the frame."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.figures.reading import Svg, inside, near, number, on
from trimtab.figures import Bar, Curve, Mark, Row, Spot, bars, curves, draws, heatmap, histogram, pareto, slopes
from trimtab.figures.colours import contrast, ramp
from trimtab.figures.dots import RADIUS, stacked
from trimtab.figures.heatmap import DARK, LIGHT, STEPS, diverging_css, shade
from trimtab.figures.scales import Scale, linear, logarithmic
from trimtab.values.findings import Estimate

NAN = float("nan")
finite = st.floats(-1e6, 1e6, allow_nan=False)


def grid(values, **options):
    n, wide = values.shape
    names = [[f"L{i}@{j}" for j in range(wide)] for i in range(n)]
    rows, columns = [str(i) for i in range(n)], [str(j) for j in range(wide)]
    return Svg(heatmap(values, rows, columns, names, about="map", unit="nats", across="span", **options))


def test_a_map_has_layer_0_at_the_bottom_and_columns_from_the_left():
    svg = grid(np.arange(30 * 5).reshape(30, 5) / 100)
    cells = {(i, j): svg.titled(f"L{i}@{j}: ")[0] for i in range(30) for j in range(5)}
    downs = {number(cells[i, 0], "y") - number(cells[i + 1, 0], "y") for i in range(29)}
    rights = {number(cells[3, j + 1], "x") - number(cells[3, j], "x") for j in range(4)}
    assert min(downs) == pytest.approx(max(downs), abs=0.02)
    assert min(downs) > 0
    assert min(rights) == pytest.approx(max(rights), abs=0.02)
    assert min(rights) > 0
    label = {e.text: number(e, "y") for e in svg.root.iter("text") if e.get("text-anchor") == "end"}
    for i in (0, 10, 28):
        middle = number(cells[i, 0], "y") + number(cells[i, 0], "height") / 2
        assert label[str(i)] == pytest.approx(middle + 4, abs=1)
    inside(svg)


def test_a_map_names_its_values_and_frames_the_largest():
    values = np.array([[0.1, -2.0], [0.5, 0.0], [NAN, 1.0]])
    svg = grid(values, outlined=2)
    assert [c.text for e in svg.titled("L") for c in e][:4] == ["L0@0: +0.100 nats".replace(" nats", "\u00a0nats"),
        "L0@1: −2.00\u00a0nats", "L1@0: +0.500\u00a0nats", "L1@1: 0\u00a0nats"]  # fmt: skip
    assert svg.titled("L2@0")[0].get("class") == "none"
    frames = {(e.get("x"), e.get("y")) for e in svg.all("rect", "frame")}
    assert frames == {
        (svg.titled(f"L{i}@{j}")[0].get("x"), svg.titled(f"L{i}@{j}")[0].get("y")) for i, j in ((0, 1), (2, 1))
    }
    words = svg.words()
    assert {"−2.0", "0", "+2.0", "nats", "–"} <= set(words)
    assert svg.titled("L0@1")[0].get("class") == "d0"
    assert svg.titled("L1@1")[0].get("class") == f"d{STEPS // 2}"


def test_long_names_of_columns_are_slanted_and_stay_inside():
    names = [["x"] * 3] * 2
    columns = ["the_first_subject_token", "b", "a_name_far_longer_than_there_is_room_for_it"]
    svg = Svg(heatmap(np.ones((2, 3)), ["0", "1"], columns, names, about="", unit="", across="span"))
    slanted = [e for e in svg.root.iter("text") if e.get("transform")]
    assert len(slanted) == 3
    for e in slanted:
        assert number(e, "x") - 0.56 * 11.5 * len(e.text) * 0.71 > 0
        assert number(e, "y") + 0.56 * 11.5 * len(e.text) * 0.71 < svg.height
    assert "…" in slanted[2].text
    assert not [e for e in grid(np.ones((2, 3))).root.iter("text") if e.get("transform")]
    inside(svg)


def test_a_map_without_a_number_to_show():
    svg = grid(np.zeros((2, 2)))
    assert "no value differs from zero" in svg.words()
    assert not svg.all("rect", "frame")


@given(st.lists(finite, min_size=2, max_size=20))
def test_shades_are_even_and_grow_with_the_value(values):
    most = max(map(abs, values)) or 1.0
    steps = [int(shade(value, most)[1:]) for value in sorted(values)]
    assert steps == sorted(steps)
    assert all(int(shade(-v, most)[1:]) + int(shade(v, most)[1:]) == STEPS - 1 for v in values if abs(v / most) not in
               [(2 * k + 1) / (STEPS - 1) for k in range(STEPS // 2)])  # fmt: skip
    assert shade(0, most) == f"d{STEPS // 2}"
    assert shade(most, most) == f"d{STEPS - 1}"


@pytest.mark.parametrize("ends", [LIGHT, DARK])
def test_the_colours_of_a_map_leave_the_middle_on_both_sides_alike(ends):
    colours = ramp(ends, STEPS)
    away = [contrast(colour, colours[STEPS // 2]) for colour in colours]
    assert away[: STEPS // 2 + 1] == sorted(away[: STEPS // 2 + 1], reverse=True)
    assert away[STEPS // 2 :] == sorted(away[STEPS // 2 :])
    for low, high in zip(colours[: STEPS // 2], reversed(colours[STEPS // 2 + 1 :]), strict=True):
        assert low[2] > low[0]  # blue
        assert high[0] > high[2]  # orange
    assert all(diverging_css().count(f".d{i} {{") == 2 for i in range(STEPS))


ROWS = [
    Bar("L14.resid_post@last", Estimate(1.62, 1.3, 1.9, 40), Estimate(0.03, -0.03, 0.1, 40)),
    Bar("L12.head[7]", Estimate(-0.4, -0.7, -0.1, 40), Estimate(0.05, 0.0, 0.1, 40)),
    Bar("L4.head[1]", Estimate(0.2, -0.1, 0.5, 40), Estimate(0.0, -0.1, 0.1, 40), pale=True),
]


def test_bars_and_their_intervals_end_where_their_values_are():
    svg = Svg(bars(ROWS, about="bars", unit="nats"))
    axis = svg.axis()
    assert {0, 0.5, 1, 1.5, 2} <= axis.keys()
    whiskers = svg.all("line", "whisker")
    controls = svg.all("line", "control")
    dots = svg.all("circle", "control")
    for i, row in enumerate(ROWS):
        bar = svg.all("rect", "bar")[i]
        ends = sorted((number(bar, "x"), number(bar, "x") + number(bar, "width")))
        assert ends == [near(x) for x in sorted((on(axis, 0), on(axis, row.value.mean)))]
        middle, low, high = whiskers[3 * i : 3 * i + 3]
        assert (number(middle, "x1"), number(middle, "x2")) == (
            near(on(axis, row.value.low)),
            near(on(axis, row.value.high)),
        )
        assert number(low, "x1") == number(middle, "x1")
        assert number(high, "x1") == number(middle, "x2")
        assert number(middle, "y1") == near(number(bar, "y") + number(bar, "height") / 2)
        below = controls[3 * i]
        assert (number(below, "x1"), number(below, "x2")) == (
            near(on(axis, row.control.low)),
            near(on(axis, row.control.high)),
        )
        assert number(dots[i], "cx") == near(on(axis, row.control.mean))
        assert number(below, "y1") > number(bar, "y") + number(bar, "height")
    ys = [number(bar, "y") for bar in svg.all("rect", "bar")]
    assert ys == sorted(ys)
    assert number(dots[0], "cy") < ys[1]
    assert [("pale" in bar.get("class")) for bar in svg.all("rect", "bar")] == [False, False, True]
    assert [e.text for e in svg.all("text", "strong")] == ["+1.62", "−0.40", "+0.20"]
    inside(svg)


def test_a_bar_without_a_number_says_so_and_one_without_an_interval_has_none():
    rows = [Bar("a", Estimate(NAN, NAN, NAN, 0)), Bar("b", Estimate(1.0, NAN, NAN, 1))]
    svg = Svg(bars(rows, about="bars", unit=""))
    assert "– (no value)" in svg.words()
    assert len(svg.all("rect", "bar")) == 1
    assert not svg.all("line", "whisker")


def test_long_names_stand_above_their_bars():
    short, long = (Svg(bars([Bar(name, Estimate(1, 0.5, 2, 9))], about="", unit="")) for name in ("L1", "L1." * 12))
    assert long.all("text", "mono")[0].text == "L1." * 12
    assert number(long.all("text", "mono")[0], "y") < number(long.all("rect", "bar")[0], "y")
    assert number(long.all("rect", "bar")[0], "width") > number(short.all("rect", "bar")[0], "width") * 0.9
    cut = Svg(bars([Bar("L1." * 60, Estimate(1, 0.5, 2, 9))], about="", unit="")).all("text", "mono")[0].text
    assert "…" in cut
    assert cut.startswith("L1.L1.")
    assert cut.endswith("L1.")


@pytest.mark.parametrize("aim", [1, -1])
def test_a_histogram_counts_and_colours_the_wrong_side(aim):
    values = np.array([-0.3, -0.1, 0.1, 0.15, 0.9, 1.0, 1.1, 2.0, NAN])
    svg = Svg(histogram(values, about="", axis="change", aim=aim))
    boxes = [e for e in svg.all("rect") if e.get("class") in ("bar", "wrong")]
    counts = [int(re.search(r": (\d+) of 8$", e[0].text)[1]) for e in boxes]
    assert sum(counts) == 8
    heights = [number(e, "height") / count for e, count in zip(boxes, counts, strict=True)]
    assert heights == [pytest.approx(heights[0], abs=0.05)] * len(boxes)
    axis = svg.axis()
    zero = on(axis, 0)
    for e in boxes:
        right = number(e, "x") >= zero
        assert e.get("class") == ("bar" if right == (aim > 0) else "wrong")
    (mean,) = svg.all("line", "mean")
    assert number(mean, "x1") == near(on(axis, np.nanmean(values)))
    inside(svg)


CURVES = [
    Curve("L14 · all", (Mark(2.0, Estimate(1.0, 0.8, 1.2, 9), allowed=False), Mark(-1.0, Estimate(-0.5, -0.7, -0.2, 9)),
                        Mark(1.0, Estimate(0.75, 0.5, 0.9, 9), picked=True))),
    Curve("L16 · all", (Mark(1.0, Estimate(0.25, NAN, NAN, 1)), Mark(2.0, Estimate(NAN, NAN, NAN, 0)))),
]  # fmt: skip


def test_curves_pass_through_their_points():
    svg = Svg(curves(CURVES, about="", x_axis="coefficient", y_axis="effect"))
    across, up = svg.axis(), svg.axis(across=False)
    (path,) = svg.all("path", "line")
    points = [tuple(map(float, pair.split())) for pair in path.get("d")[1:].split("L")]
    wanted = [(-1.0, -0.5), (1.0, 0.75), (2.0, 1.0)]
    assert [x for x, _ in points] == [near(on(across, x)) for x, _ in wanted]
    assert [y for _, y in points] == [near(on(up, y)) for _, y in wanted]
    spreads = svg.all("line", "spread")
    assert [number(e, "y1") for e in spreads] == [near(on(up, low)) for low in (-0.7, 0.5, 0.8)]
    assert [number(e, "y2") for e in spreads] == [near(on(up, high)) for high in (-0.2, 0.9, 1.2)]
    (ring,) = svg.all("circle", "ring")
    assert (number(ring, "cx"), number(ring, "cy")) == (near(on(across, 1.0)), near(on(up, 0.75)))
    assert [e[0].text.split(":")[0] for e in svg.root.iter() if "hollow" in (e.get("class") or "")] == [
        "L14 · all, coefficient 2"
    ]
    assert [e.text for e in svg.all("text", "mono")] == ["L14 · all", "L16 · all"]
    inside(svg)


def test_lines_differ_in_colour_and_in_shape():
    six = [Curve(f"line {i}", (Mark(0, Estimate(i, i, i, 9)), Mark(1, Estimate(i + 1, i, i + 2, 9)))) for i in range(6)]
    svg = Svg(curves(six, about="", x_axis="", y_axis=""))
    assert {re.search(r"s\d", e.get("class"))[0] for e in svg.all("path", "line")} == {f"s{i}" for i in range(6)}
    shapes = []
    for e in (e for e in svg.root.iter() if "point" in (e.get("class") or "").split() and not len(e)):  # the legend's
        corners = [tuple(map(float, p.split(","))) for p in (e.get("points") or "0,0").split()]
        shapes.append((e.tag, tuple((round(x - corners[0][0], 1), round(y - corners[0][1], 1)) for x, y in corners)))
    assert len(set(shapes)) == 6


@pytest.mark.parametrize("aim", [1, -1])
def test_slopes_join_before_and_after(aim):
    before, after = np.array([-1.0, 0.5, 0.2, NAN]), np.array([1.5, 0.25, 0.2, 1.0])
    svg = Svg(slopes(before, after, about="", unit="nats", aim=aim))
    up = svg.axis(across=False)
    lines = svg.all("line", "slope")
    assert [number(e, "y1") for e in lines] == [near(on(up, y)) for y in before[:3]]
    assert [number(e, "y2") for e in lines] == [near(on(up, y)) for y in after[:3]]
    assert ["wrong" in e.get("class") for e in lines] == ([False, True, False] if aim > 0 else [True, False, False])
    (mean,) = svg.all("line", "mean")
    assert (number(mean, "y1"), number(mean, "y2")) == (near(on(up, before[:3].mean())), near(on(up, after[:3].mean())))
    assert {"−0.10", "0.65"} <= set(svg.words())
    inside(svg)


def spot(x, y, **marks):
    return Spot(f"spot {x}", x, Estimate(y, y - 0.1, y + 0.1, 9), **marks)


SPOTS = [
    spot(0.1, 1.5, allowed=False, front=True),
    spot(0.001, 0.2, front=True),
    spot(0.01, 1.0, front=True, picked=True),
    spot(0.01, -0.5),
    spot(0.0, 0.0),
    spot(NAN, 1.0),
]


def test_points_of_the_chart_lie_by_decades_and_the_front_is_joined_in_order():
    svg = Svg(pareto(SPOTS, about="", x_axis="KL", y_axis="effect", limit=0.05))
    at = {x: number(svg.titled(f"spot {x}:")[0], "cx") for x in (0.1, 0.001, 0.01, 0.0)}
    assert at[0.01] - at[0.001] == pytest.approx(at[0.1] - at[0.01], abs=0.02)
    assert at[0.0] < at[0.001]
    across, up = svg.axis(), svg.axis(across=False)
    assert [across[x] for x in (0.001, 0.01, 0.1)] == [near(at[x]) for x in (0.001, 0.01, 0.1)]
    (limit,) = svg.all("line", "limit")
    assert number(limit, "x1") == near(at[0.01] + (at[0.1] - at[0.01]) * np.log10(5))
    (path,) = svg.all("path", "front")
    points = [tuple(map(float, pair.split())) for pair in path.get("d")[1:].split("L")]
    assert points == [(near(at[x]), near(on(up, y))) for x, y in ((0.001, 0.2), (0.01, 1.0), (0.1, 1.5))]
    (ring,) = svg.all("circle", "ring")
    assert (number(ring, "cx"), number(ring, "cy")) == (near(at[0.01]), near(on(up, 1.0)))
    assert len(svg.all("circle", "spot")) == 5
    assert [e[0].text.split(":")[0] for e in svg.all("circle", "hollow")] == ["spot 0.1"]
    assert {"limit 0.05", "picked", "KL", "effect"} <= set(svg.words())
    inside(svg)


def test_a_chart_without_a_limit_draws_none():
    svg = Svg(pareto(SPOTS[:2], about="", x_axis="", y_axis="", limit=NAN))
    assert not svg.all("line", "limit")
    assert not svg.all("circle", "ring")


def test_draws_lie_at_their_values_below_the_picked_line():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.2, 20)
    picked = Estimate(1.3, 1.0, 1.6, 40)
    rows = [Row("Random", "p = 0.048", values), Row("Empty", "", np.array([])), Row("One", "", np.array([0.5, NAN]))]
    svg = Svg(draws(rows, picked, about="", axis="effect"))
    axis = svg.axis()
    dots = svg.all("circle", "draw")
    assert [number(e, "cx") for e in dots] == [near(on(axis, v)) for v in [*values, 0.5]]
    for i, a in enumerate(dots):
        for b in dots[:i]:
            apart = np.hypot(number(a, "cx") - number(b, "cx"), number(a, "cy") - number(b, "cy"))
            assert apart >= 2 * RADIUS - 0.02
    (line,), (band,) = svg.all("line", "picked"), svg.all("rect", "band")
    assert number(line, "x1") == near(on(axis, 1.3))
    assert number(band, "x") == near(on(axis, 1.0))
    assert number(band, "x") + number(band, "width") == near(on(axis, 1.6))
    means = [number(e, "x1") for e in svg.all("line", "average")]
    assert means == [near(on(axis, values.mean())), near(on(axis, 0.5))]
    assert "– (no draw has a value)" in svg.words()
    assert "picked +1.30" in svg.words()
    inside(svg)


@given(st.lists(st.floats(0, 400), max_size=40))
def test_stacked_dots_of_a_level_keep_apart(places):
    levels = stacked(places)
    for level in set(levels):
        row = sorted(x for x, n in zip(places, levels, strict=True) if n == level)
        assert all(b - a >= 2 * RADIUS for a, b in pairwise(row))


@given(st.lists(finite, min_size=1, max_size=20), st.booleans())
def test_straight_scales_cover_their_values_and_keep_their_order(values, zero):
    scale = linear(values, 40, 400, zero=zero)
    slack = 1e-8 * (scale.high - scale.low)
    assert scale.low <= min(values) + slack
    assert scale.high >= max(values) - slack
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(40 <= place <= 400 for place in places)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(a < b for (a, _), (b, _) in pairwise(ticks))
    assert len({words for _, words in ticks}) == len(ticks)
    assert all(scale.low - 1e-6 * abs(scale.low) <= tick <= scale.high + 1e-6 * abs(scale.high) for tick, _ in ticks)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20))
def test_logarithmic_scales_too(values):
    scale = logarithmic(values, 40, 400)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(40 < place < 400 for place in places)
    assert scale.ticks()
    assert scale(0) == 40


def test_a_scale_can_run_backwards():
    up = Scale(0, 10, 200, 20)
    assert [up(v) for v in (0, 5, 10, 99, -1)] == [200, 110, 20, 20, 200]
