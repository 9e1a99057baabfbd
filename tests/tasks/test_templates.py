"""Templates: columns are filled in and found again, by their words or by their characters."""

from __future__ import annotations

import pytest

from trimtab.errors import TaskError
from trimtab.tasks.templates import fields_of, fill


def test_a_word_that_is_in_the_text_twice_is_found_by_its_characters():
    text, spans = fill("A cat likes {animal} food, said {who}.", {"animal": "cat", "who": "Ann"})
    assert text == "A cat likes cat food, said Ann."
    assert spans == {"animal": (12, 15), "who": "Ann"}
    assert text[12:15] == "cat"


def test_columns_that_cannot_name_a_span_are_none():
    text, spans = fill(
        "{text} {end} {a b} {fine}{none}", {"text": "T", "end": "E", "a b": "B", "fine": "F", "none": ""}
    )
    assert text == "T E B F"
    assert spans == {"fine": "F"}


def test_braces_that_are_meant_are_doubled():
    assert fields_of("{{a}} {b}") == ["b"]
    assert fill("{{a}} {b}", {"b": "c"})[0] == "{a} c"
    with pytest.raises(TaskError, match="is not a template"):
        fields_of("{a")
