"""Fields: columns that are mapped, templates that are filled, and the nearest name of what is missing."""

from __future__ import annotations

import pytest

from tests.tasks.rowfiles import CAPITALS, PAIRS, refused, write
from trimtab.tasks.example import Contrast
from trimtab.tasks.files import load_task


def test_columns_are_mapped(tmp_path):
    rows = [{"good": "A", "bad": "B", "UID": 3, "prompt": "P"}, {"good": "C", "bad": "D", "UID": 4, "prompt": ""}]
    task = load_task(
        write(tmp_path / "mine.jsonl", rows),
        mapping={"positive": "good", "negative": "{bad}, {UID}", "group": "UID"},
    )
    assert task.examples == (Contrast("A", "B, 3", "3", prompt="P"), Contrast("C", "D, 4", "4"))


def test_what_is_the_same_in_all_rows():
    words = {"question": "It was", "answers": [" great"], "distractors": (" bad",)}
    task = load_task(PAIRS, every=words)
    assert {(e.question, e.answers, e.distractors) for e in task.examples} == {("It was", (" great",), (" bad",))}


def test_several_columns_are_several_answers():
    rows = [{"q": "Two?", "x": " two", "y": " 2", "z": " three", "p": "A", "n": "B"}]
    mapping = {"positive": "p", "negative": "n", "question": "q", "answers": ["x", "y"], "distractors": "z"}
    (example,) = load_task(rows, mapping=mapping).examples
    assert (example.question, example.answers, example.distractors) == ("Two?", (" two", " 2"), (" three",))


def test_a_column_called_question_is_no_question_without_answers():
    (example,) = load_task([{"positive": "A", "negative": "B", "question": "why?"}]).examples
    assert example.question == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": []}, "answers must be one or more texts"),
        ({"answers": [" Rome"]}, "is both an answer and a distractor"),
        ({"answers": [" Paris", 3]}, "answers must be a text, got 3"),
        ({"spans": "France"}, "spans must map names to texts"),
        ({"spans": {"end": "France"}}, '"end" already names a span'),
    ],
)
def test_broken_counterfactuals(tmp_path, changes, words):
    assert words in refused(write(tmp_path / "mine.jsonl", [CAPITALS[1], CAPITALS[0] | changes]))


def test_missing_columns_name_the_nearest(tmp_path):
    rows = [{"sentence_god": "A", "sentence_bad": "B"}]
    said = refused(write(tmp_path / "mine.csv", rows))
    assert (
        'mine.csv has the columns sentence_god, sentence_bad; of the format BLiMP they lack "sentence_good" (did you'
        in said
    )
    assert 'has no column "sentence_good" (did you mean "sentence_god"?)' in refused(
        rows, mapping={"positive": "sentence_good", "negative": "sentence_bad"}
    )
    assert 'data has no column "god"' in refused(rows, mapping={"positive": "{god}", "negative": "sentence_bad"})
    assert "those of no format that is known" in refused([{"a": "x", "b": "y"}])
    assert 'of the format labelled they lack "label" (did you mean "labels"?)' in refused([{"text": "x", "labels": 1}])


def test_unknown_fields_name_the_nearest():
    assert '"postive" is not a field of a task (did you mean "positive"?): there are positive,' in refused(
        PAIRS, mapping={"postive": "a"}
    )
    assert '"grup" is not a field of a task (did you mean "group"?)' in refused(PAIRS, every={"grup": "a"})
    assert 'unknown metric "logit_dif" (did you mean "logit_diff"?)' in refused(PAIRS, metric="logit_dif")
    assert "contrast rows have no spans" in refused(PAIRS, every={"spans": {"a": "b"}})
    assert "give it in every=" in refused(
        [{"text": "a", "label": 1, "q": "b"}], mapping={"text": "text", "label": "label", "question": "q"}
    )
    assert "counterfactual rows need clean, corrupt, answers, distractors; name the column of distractors" in refused(
        [{"clean": "a", "corrupt": "b", "answers": "c"}]
    )


def test_a_template_needs_its_columns_filled():
    rows = [{"a": "x", "b": "y"}, {"a": "", "b": "z"}, {"a": ["x"], "b": "z"}]
    said = refused(rows, mapping={"positive": "{a} is", "negative": "{b} is"})
    assert 'data row 1: "a" is empty, and "{a} is" needs it' in said
    assert 'data row 2: "a" must be a text to be put into "{a} is", got [\'x\']' in said
    assert "is not a template" in refused(rows, mapping={"positive": "{a is", "negative": "b"})
