import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import PromptError
from trimtab.values import Span

TEXT = "When Mary and John went to the store, John gave a drink to"


@given(st.text(max_size=20), st.text(min_size=1, max_size=5), st.text(max_size=20))
def test_a_located_span_holds_its_text(before, word, after):
    text = before + word + after
    start, end = Span(word, occurrence=0).locate(text)
    assert text[start:end] == word
    assert start == text.index(word)


def test_occurrences_count_from_both_ends():
    assert Span("John", occurrence=0).locate(TEXT) == (14, 18)
    assert Span("John", occurrence=1).locate(TEXT) == (38, 42)
    assert Span("John", occurrence=-1).locate(TEXT) == (38, 42)


def test_occurrences_may_overlap():
    assert Span("aa", occurrence=1).locate("aaa") == (1, 3)


def test_an_ambiguous_span_says_where_it_occurs():
    message = re.escape('"John" occurs 2 times (at characters 14, 38)')
    with pytest.raises(PromptError, match=message + r'.*Span\("John", occurrence=0\)'):
        Span("John").locate(TEXT)


def test_an_absent_span_is_suggested_the_nearest_word():
    with pytest.raises(PromptError, match=r'"Jon" does not occur in .*did you mean "John"'):
        Span("Jon").locate(TEXT)


def test_an_occurrence_that_is_not_there():
    with pytest.raises(PromptError, match=r"occurs 2 times.*occurrence 2 must be between -2 and 1"):
        Span("John", occurrence=2).locate(TEXT)


def test_characters():
    assert Span.of((5, 9)).locate(TEXT) == (5, 9)
    with pytest.raises(PromptError, match=f"5..99 ends beyond the {len(TEXT)} characters"):
        Span.of((5, 99)).locate(TEXT)


def test_of_takes_text_pairs_and_spans():
    span = Span("Mary")
    assert Span.of("Mary") == span
    assert Span.of(span) is span
    assert Span.of([5, 9]) == Span(start=5, end=9)


@pytest.mark.parametrize("value", [3, None, (1, 2, 3), {"text": "a"}])
def test_of_refuses_anything_else(value):
    with pytest.raises(PromptError, match="a span is a substring, a pair"):
        Span.of(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either a substring or a range"),
        ({"text": "a", "start": 0, "end": 1}, "either a substring or a range"),
        ({"text": ""}, "is empty"),
        ({"text": 3}, "must be a string"),
        ({"start": 1}, "needs start and end"),
        ({"start": 1, "end": 2, "occurrence": 0}, "needs start and end, and nothing else"),
        ({"start": 3, "end": 3}, "0 <= start < end"),
        ({"start": -1, "end": 3}, "0 <= start < end"),
        ({"start": 1.0, "end": 3}, "start of a span must be a whole number, got 1.0"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(PromptError, match=message):
        Span(**fields)
