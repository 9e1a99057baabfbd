"""Numbers and words as a page shows them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.figures.numbers import (
    NONE,
    common_places,
    counted,
    date,
    duration,
    estimate,
    exact,
    fixed,
    interval_of,
    mean_of,
    number,
    probability,
    share,
    with_unit,
)
from trimtab.figures.svg import drawing, element, legible, shortened, text, title
from trimtab.report.panels.text import differences, setting, without_nan, words
from trimtab.values.findings import Estimate

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("written", [number, share, probability, duration, exact, lambda x: fixed(x, 2)])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_no_number_is_a_dash(written, value):
    assert written(value) == NONE


@given(st.floats(-1e12, 1e12))
def test_numbers_can_be_read_back_to_their_digits(value):
    shown = number(value)
    plain = shown.replace("−", "-").replace(",", "")
    if "×" in plain:
        factor, power = plain.split("×10")
        digits = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))
        plain = f"{factor}e{''.join(digits[c] for c in power)}"
    assert float(plain) == pytest.approx(value, rel=6e-3)
    assert "-" not in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Estimate(1.307, 1.02, 1.6, 9), "+1.31 [1.02, 1.60]"),
        (Estimate(-0.0312, -0.0359, -0.0268, 9), "−0.0312 [−0.0359, −0.0268]"),
        (Estimate(1234.0, 1100.0, 1300.0, 9), "+1,234 [1,100, 1,300]"),
        (Estimate(0.001, -0.4, 0.4, 9), "0.00 [−0.40, 0.40]"),
        (Estimate(2.0, 2.0, 2.0, 9), "+2.00 [2.00, 2.00]"),
        (Estimate(0.0, 0.0, 0.0, 9), "0 [0, 0]"),
        (Estimate(0.5, NAN, NAN, 1), "+0.500 (no interval)"),
        (Estimate(NAN, NAN, NAN, 0), NONE),
        (Estimate(0.5, 0.1, INF, 1), "+0.500 (no interval)"),
    ],
)
def test_estimates_are_rounded_as_their_intervals_allow(value, shown):
    assert estimate(value) == shown


def test_a_column_shares_its_places():
    column = [Estimate(1.62, 1.3, 1.9, 9), Estimate(0.001, -0.01, 0.01, 9), Estimate(NAN, NAN, NAN, 0)]
    places = common_places(column)
    assert [mean_of(value, places=places) for value in column] == ["+1.62", "0.00", NONE]
    assert [interval_of(value, places) for value in column] == ["[1.30, 1.90]", "[−0.01, 0.01]", NONE]
    assert common_places([]) == 2
    assert common_places([Estimate(12.0, NAN, NAN, 1)]) == 1


def test_small_things_said_of_numbers():
    assert (share(0.994), share(0.0005), share(1e-9)) == ("99\u00a0%", "0.1\u00a0%", "<0.1\u00a0%")
    assert (probability(0.1), probability(0.0996), probability(0.05)) == ("0.10", "0.10", "0.050")
    assert (duration(0), duration(0.02), duration(59.6), duration(3599.6)) == (
        "0.0\u00a0s", "<0.1\u00a0s", "1\u00a0min 0\u00a0s", "1\u00a0h 0\u00a0min")  # fmt: skip
    assert (exact(2.0), exact(-0.05), exact(1e-7)) == ("2", "−0.05", "1.0×10⁻⁷")
    assert date("2026-11-20T10:12:00+01:00") == "20 November 2026, 09:12 UTC"
    assert (counted(0, "draw"), with_unit(NONE, "nats"), with_unit("1", "")) == ("0 draws", NONE, "1")


def test_settings_are_as_they_are_written():
    assert setting({"a": [1, 2.5], "b": {"c": None}, "d": True}) == "a: 1, 2.5, b: c: none, d: yes"
    assert (setting(NAN), setting([]), setting({}), setting(-0.5), setting(0)) == (NONE, "none", "none", "-0.5", "0")


def test_numbers_that_are_none_leave_a_sentence():
    assert without_nan("moves by nan [-inf, +nan]") == f"moves by {NONE} [{NONE}, {NONE}]"
    assert without_nan("Nancy's nan-bread, information, @nan_site") == "Nancy's nan-bread, information, @nan_site"


def marked(parts):
    return "".join(f"<{text}>" if differs else text for text, differs in parts)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (
            "bad. We will not go there.",
            "good. We will go there.",
            ("<bad>. We will <not> go there.", "<good>. We will go there."),
        ),
        ("same", "same", ("same", "same")),
        ("", "new", ("", "<new>")),
        ("a b c", "x b y", ("<a b c>", "<x b y>")),  # one word alike between others is chance
        ("a  b", "a  c", ("a  <b>", "a  <c>")),
        ("one\ntwo", "one\nthree four", ("one\n<two>", "one\n<three four>")),
    ],
)
def test_differences_word_by_word(before, after, shown):
    assert tuple(map(marked, differences(before, after))) == shown


@given(st.text("ab ,.\n", max_size=30), st.text("ab ,.\n", max_size=30))
def test_differences_keep_both_texts(before, after):
    parts = differences(before, after)
    assert tuple("".join(text for text, _ in side) for side in parts) == (before, after)
    assert all(text == text.strip() for side in parts for text, differs in side if differs)


def test_code_keeps_every_character_in_its_words():
    code = "trimtab study  x \\\n\t--limit 0.05"
    assert "".join(words(code)) == code
    assert "--limit" in words(code)


def test_svg_escapes_words_and_attributes():
    wild = "</text><script>\"'&\u202e\x07"
    made = drawing(10, 10.25, wild, text(wild, 1.0, -0.001), title(wild), element("g", class_=wild))
    assert "<script" not in made
    assert "\u202e" not in made
    assert made.count("&lt;script&gt;") == 4
    assert "&quot;" in made
    assert 'y="0"' in made
    assert re.search(r'viewBox="0 0 10 10.25"', made)


def test_long_words_lose_their_middle():
    name = "L14.resid_post@a_very_long_span_name"
    cut = shortened(name, 120, mono=True)
    assert len(cut) < len(name)
    assert cut.startswith("L14.resi")
    assert cut.endswith("name")
    assert shortened("short", 120) == "short"


@given(st.text(max_size=20))
def test_legible_text_has_no_control_characters(words):
    shown = legible(words)
    assert all(c.isprintable() or c in "\n\t\u00a0" for c in shown)
    if all(c.isprintable() for c in words):
        assert shown == words
