"""Examples: what makes one, what is refused, and what the other way round is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TaskError
from trimtab.tasks.example import Contrast, Counterfactual

FRANCE = Counterfactual(
    "The capital of France is",
    "The capital of Italy is",
    (" Paris",),
    (" Rome",),
    "Europe",
    {"subject": "France", "what": (4, 11)},
    {"subject": "Italy"},
)
FILM = Contrast("I loved it.", "I hated it.", "film", question="It was", answers=(" great",), distractors=(" bad",))
texts = st.text(min_size=1, max_size=8).filter(str.strip)


def test_a_single_word_is_one_answer():
    example = Counterfactual("a", "b", " c", [" d", " e"], "g")
    assert (example.answers, example.distractors) == ((" c",), (" d", " e"))
    assert Contrast("a", "b", "g", question="q", answers=" c", distractors=" d").answers == (" c",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clean": ""}, "clean must be a text"),
        ({"clean": "  \n"}, "clean must be a text"),
        ({"corrupt": None}, "corrupt must be a text"),
        ({"group": 3}, "group must be a text"),
        ({"group": ""}, "group must be a text"),
        ({"corrupt": "The capital of France is"}, "same text"),
        ({"answers": ()}, "answers must be one or more texts"),
        ({"answers": ("",)}, "answers must be one or more texts"),
        ({"answers": 5}, "answers must be one or more texts"),
        ({"answers": (" a", " a")}, "answers repeat"),
        ({"answers": (" Rome", " Paris")}, "both an answer and a distractor"),
        ({"spans": {"text": "France"}}, '"text" already names a span'),
        ({"spans": {"end": "France"}}, '"end" already names a span'),
        ({"corrupt_spans": {"a b": "Italy"}}, "cannot name a span"),
        ({"spans": {"last": "France"}}, "cannot name a span"),
    ],
)
def test_a_broken_counterfactual_is_refused(changes, words):
    with pytest.raises(TaskError, match=words):
        FRANCE.with_(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positive": ""}, "positive must be a text"),
        ({"negative": "I loved it."}, "positive and negative are the same"),
        ({"question": ""}, "follow a question"),
        ({"answers": ()}, "answers must be one or more texts"),
        ({"distractors": (" great",)}, "both an answer and a distractor"),
    ],
)
def test_a_broken_contrast_is_refused(changes, words):
    with pytest.raises(TaskError, match=words):
        FILM.with_(**changes)


def test_one_text_under_two_systems_is_a_contrast():
    pair = Contrast("Hello", "Hello", "g", positive_system="Be kind.", negative_system="Be rude.")
    assert pair.swapped().positive_system == "Be rude."
    assert pair.swapped().swapped() == pair


def test_swapping_exchanges_what_belongs_to_each_side():
    swapped = FRANCE.swapped()
    assert (swapped.clean, swapped.corrupt) == (FRANCE.corrupt, FRANCE.clean)
    assert (swapped.answers, swapped.distractors) == (FRANCE.distractors, FRANCE.answers)
    assert swapped.spans == {"subject": "Italy", "what": (4, 11)}
    assert swapped.corrupt_spans == {"subject": "France"}
    assert swapped != FRANCE
    other = FILM.swapped()
    assert (other.positive, other.answers, other.question) == ("I hated it.", (" great",), "It was")


@given(texts, texts, texts, texts, texts)
def test_swapping_twice_changes_nothing(one, other, yes, no, place):
    if one != other and yes != no:
        spans = {"s": place}, {"s": place + "x"}
        example = Counterfactual(one, other, yes, no, "g", *spans)
        assert example.swapped().swapped() == example
        assert Contrast(one, other, "g").swapped().swapped() == Contrast(one, other, "g")


def test_examples_are_equal_by_what_they_hold():
    again = FRANCE.with_()
    assert again == FRANCE
    assert again is not FRANCE
    assert hash(again) == hash(FRANCE)
    assert FRANCE.with_(group="Asia") != FRANCE
    assert FRANCE.with_(spans={"subject": "France"}) != FRANCE
    assert (
        repr(FRANCE)
        == "Counterfactual('The capital of France is' / 'The capital of Italy is': ' Paris' against ' Rome')"
    )
