"""Labelled texts: which label is the positive one, however it is written."""

from __future__ import annotations

import re

import pytest

from trimtab.errors import TaskError
from trimtab.tasks.labelled import sides_of


@pytest.mark.parametrize(
    ("labels", "positive", "sides"),
    [
        ([1, 0], None, [True, False]),
        (["1", "0"], None, [True, False]),
        ([1.0, 0.0], None, [True, False]),
        ([True, False], None, [True, False]),
        (["yes", "No"], None, [True, False]),
        (["POSITIVE", "neg", "0"], None, [True, False, False]),
        ([1, -1], None, [True, False]),
        (["toxic", "clean", "spam"], "clean", [False, True, False]),
        (["yes", "no"], "no", [False, True]),
        ([2, 3], 2.0, [True, False]),
    ],
)
def test_labels_are_read(labels, positive, sides):
    assert sides_of(labels, positive) == sides


@pytest.mark.parametrize(
    ("labels", "positive", "words"),
    [
        ([1, 1], None, "all 2 labels are '1' (2): a contrast needs texts of both sides, no negative one"),
        ([0, "no"], None, "no positive one"),
        (["a", "a"], None, "all 2 labels are 'a'"),
        (["a", "b"], None, "the labels are 'a' (1), 'b' (1): say which of them is the positive one, positive="),
        (["toxic", "clean"], "toxi", "no text has the positive label 'toxi' (did you mean \"toxic\"?)"),
        (["toxic", "toxic"], "toxic", "no negative one"),
    ],
)
def test_labels_that_cannot_be_told_apart(labels, positive, words):
    with pytest.raises(TaskError, match=re.escape(words)):
        sides_of(labels, positive)
