"""A figure is complete in itself, wherever it is shown or saved."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from trimtab.errors import FileError, TrimtabError
from trimtab.figures import Bar, Drawing, Figure, Range, Value, bars, heatmap, ranges
from trimtab.figures.figure import PAPER
from trimtab.figures.style import DARK, PALETTE, figure_css, palette_css, standalone_css

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</style><script>alert('x')</script>&\u202e"


def drawn(unit="logits", label="L3.head[1]"):
    return bars([Bar(label, Value(0.5, 0.25, 0.75))], about="effects", unit=unit)


def mapped(wide=3):
    names = [[str(j) for j in range(wide)]] * 2
    return heatmap(np.eye(2, wide), ["0", "1"], names[0], names, about="map", unit="nats", across="head")


def figure(**changes):
    return Figure(**{"title": "Effects", "drawings": (Drawing(drawn()), Drawing(mapped(), "B", "below")), **changes})


def test_one_picture_holds_all_drawings_apart():
    root = ET.fromstring(figure().svg)
    assert root.tag == f"{SVG}svg"
    groups = root.findall(f"{SVG}g")
    assert [g.get("class") for g in groups] == ["chart bars", "chart map"]
    (ax, _), (bx, _) = (map(float, re.findall(r"[\d.]+", g.get("transform"))) for g in groups)
    assert ax + Drawing(drawn()).size[0] < bx
    assert {"Effects", "B"} <= {t.text for t in root.iter(f"{SVG}text")}


def test_drawings_go_on_in_the_next_line_and_stay_inside():
    several = figure(drawings=tuple(Drawing(drawn()) for _ in range(5)))
    root = ET.fromstring(several.svg)
    places = [tuple(map(float, re.findall(r"[\d.]+", g.get("transform")))) for g in root.findall(f"{SVG}g")]
    assert len({y for _, y in places}) == 3
    _, _, width, height = map(float, root.get("viewBox").split())
    wide, high = Drawing(drawn()).size
    assert all(x + wide <= width <= PAPER + 20 and y + high <= height for x, y in places)


def test_every_class_that_is_drawn_has_a_colour_of_its_own():
    spread = ranges([Range("0", np.arange(5.0), (("x", 4.0),))], about="spread", unit="nats")
    picture = figure(drawings=(Drawing(drawn()), Drawing(mapped()), Drawing(spread))).svg
    style, rest = picture.split("</style>")
    used = {name for names in re.findall(r'class="([^"]*)"', rest) for name in names.split()}
    known = set(re.findall(r"\.([a-z]\w*)", style))
    assert used - known <= {"bars", "map", "ranges"}
    assert "var(" not in style


def test_nothing_is_fetched_or_run_and_words_stay_words():
    nasty = Figure(NASTY, (Drawing(drawn(NASTY, NASTY), NASTY, NASTY),), NASTY)
    for text in (nasty.svg, nasty.html, nasty._repr_html_()):
        assert "<script" not in text
        assert "\u202e" not in text
        assert not re.search(r'(href|src|url\()[="\']', text)
    ET.fromstring(nasty.svg)


def test_a_picture_of_its_own_is_light_and_dark():
    css = standalone_css()
    light, dark = css.split(DARK)[:2]
    assert f".chart .bar {{ fill: {PALETTE['bar'][0]}; }}" in light
    assert f".chart .bar {{ fill: {PALETTE['bar'][1]}; }}" in dark
    assert ".chart .line {" not in dark


def test_rules_of_drawings_touch_nothing_else_of_a_page():
    for css in (standalone_css(), figure_css()):
        flat = re.sub(r"@media[^{]*\{", "", css)
        selectors = re.findall(r"(?:^|[}\n])\s*([^{}\n@]+?)\s*\{", flat)
        assert selectors
        assert all(part.strip().startswith(".chart") for s in selectors for part in s.split(","))


def test_the_palette_has_what_the_rules_ask_for():
    assert set(re.findall(r"var\(--([\w-]+)\)", figure_css())) <= set(PALETTE)
    assert all(f"--{name}: {light};" in palette_css() for name, (light, _) in PALETTE.items())


def test_it_shows_itself_and_is_saved(tmp_path):
    shown = figure()
    assert shown._repr_svg_() == shown.svg
    assert shown._repr_html_().count("<svg") == 2
    assert "below" in shown._repr_html_()
    shown.save(tmp_path / "a.svg")
    shown.save(tmp_path / "a.html")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == shown.svg
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_saved_is_said(tmp_path):
    with pytest.raises(TrimtabError, match=r"saved as \.svg or \.html.*rsvg-convert"):
        figure().save(tmp_path / "a.png")
    with pytest.raises(FileError, match="Check that its folder exists"):
        figure().save(tmp_path / "no" / "a.svg")
    with pytest.raises(TrimtabError, match="viewBox"):
        Figure("x", (Drawing("<svg></svg>"),)).svg  # noqa: B018
