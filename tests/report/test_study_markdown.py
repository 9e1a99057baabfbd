"""A study in a terminal: short, lined up, and nothing in it but text."""

from __future__ import annotations

import re

import pytest

from tests.report.findings import empty, ended, made, missing, nasty, started
from trimtab.figures.numbers import interval_of, mean_of
from trimtab.report.study_markdown import TOP, code, prose, study_markdown, table


@pytest.fixture(scope="module")
def text():
    return study_markdown(made())


def test_the_verdict_comes_first(text):
    study = made()
    assert text.startswith(f"# {study.name}\n\n**FOUND**. Adding the difference of means at ")
    assert all(sentence in text for sentence in study.verdict.sentences)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Key numbers",
        "## Controls",
        "## Sites",
    ]
    assert len(text.splitlines()) < 60
    assert f"Again: `{study.command}`" in text


def test_controls_and_sites_have_their_numbers(text):
    study = made()
    for control in study.evaluation.controls:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {control.name} ")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:3] == ["yes", str(len(control.effects))]
        assert cells[4:6] == [mean_of(control.difference), interval_of(control.difference)]
    rows = [line for line in text.splitlines() if line.startswith("| `L")]
    assert len(rows) == TOP
    assert rows[0].startswith("| `L14.resid_post@last`   | works ")
    assert sum("does not work" in row for row in rows) == 1


def _blocks(text):
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]


@pytest.mark.parametrize("make", [made, missing, nasty])
def test_tables_line_up(make):
    blocks = _blocks(study_markdown(make()))
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(line) for line in block}) == 1
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in block]
        assert len(set(bars)) == 1


@pytest.mark.parametrize("make", [started, empty, ended, missing])
def test_what_is_missing_is_said(make):
    text = study_markdown(make())
    assert not re.search(r"\b(nan|inf)\b", text)
    if make is started:
        assert "**UNFINISHED** (not run yet: screen, validate, steer, evaluate, verdict)" in text
        assert "## " not in text
    if make is empty:
        assert "No control was run." in text
        assert "0 of 0 candidates work." in text
        assert "Again" not in text
    if make is ended:
        assert "**NOT FOUND**. No intervention qualifies" in text
        assert "No point of the search qualifies." in text
    if make is missing:
        assert "– stands where there is no number" in text


def test_candidates_stand_in_for_sites_that_are_not_tested_yet():
    text = study_markdown(made(validation=None, search=None, evaluation=None, verdict=None))
    assert "Not put to the test yet:" in text
    assert "| `L14.resid_post@last`" in text


def test_no_text_becomes_markup_or_a_terminal_code():
    text = study_markdown(nasty())
    assert "\x1b" not in text
    assert "\u202e" not in text
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert not re.search(r"(?<!\\)<[a-z/]", outside)
    assert "alert" in outside


def test_the_marks_of_markdown_are_escaped():
    assert prose("*a* `b` | <c> _d_ e_f [0, 1]") == "\\*a\\* \\`b\\` \\| \\<c> \\_d\\_ e_f [0, 1]"
    assert prose("[a](b)") == "[a]\\(b)"
    assert prose("p <0.001 & &lt; &#60;") == "p <0.001 & \\&lt; \\&#60;"
    assert code("``") == "``` `` ```"
    assert code("") == "` `"
    assert table(("a",), [("b|c",)]).splitlines()[2] == "| b\\|c |"
