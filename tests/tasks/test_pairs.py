"""Pairs: each text once, never across groups; opposite systems on one question; twins of a template."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TaskError
from trimtab.tasks.groups import refuse_leaks
from trimtab.tasks.pairs import from_labels, from_systems, from_template
from trimtab.tasks.templates import NEAR

TRUTH = ("Tell the truth.", "Lie.")


def test_systems_differ_and_nothing_else_does():
    task = from_systems(
        ["Is snow hot?", "Is fire cold?", "Is ice warm?"],
        *TRUTH,
        answers=["No", "Never"],
        distractors="Yes",
        groups=["snow", "fire", "snow"],
        poles=("honest", "not honest"),
    )
    assert task.chat
    assert task.groups == ("snow", "fire", "snow")
    for example in task.examples:
        assert example.positive == example.negative == example.question
        assert (example.positive_system, example.negative_system) == TRUTH
        assert (example.answers, example.distractors) == (("No", "Never"), ("Yes",))


def test_questions_may_have_words_of_their_own_and_another_one_asked():
    task = from_systems(["A?", "B?"], *TRUTH, answers=["a", "b"], distractors=[["c"], ["d", "e"]], asked="So?")
    assert [e.question for e in task.examples] == ["So?", "So?"]
    assert [e.answers for e in task.examples] == [("a", "b"), ("a", "b")]
    assert [e.distractors for e in task.examples] == [("c",), ("d", "e")]
    each = from_systems(["A?", "B?"], *TRUTH, answers=[["a"], ["b"]], distractors="c", asked=["One?", "Two?"])
    assert [(e.question, e.answers) for e in each.examples] == [("One?", ("a",)), ("Two?", ("b",))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"questions": []}, "there are no questions"),
        ({"questions": ["A?", ""]}, "number 1 is ''"),
        ({"positive_system": "Lie."}, "positive and negative are the same"),
        ({"groups": ["a"]}, "groups must be one for each of 2, got 1"),
        ({"groups": ["a", None]}, "groups: number 1 is missing"),
        ({"asked": ["A?"]}, "asked must be one for each of 2"),
        ({"answers": [["a"]]}, "answers must be one for each of 2"),
        ({"answers": []}, "answers must be one or more texts"),
        ({"questions": ["A?", "A?"], "groups": ["a", "b"]}, "same text is in two groups"),
    ],
)
def test_faults_of_systems(changes, words):
    given_ = {
        "questions": ["A?", "B?"],
        "positive_system": "x",
        "negative_system": "Lie.",
        "answers": "a",
        "distractors": "b",
    }
    with pytest.raises(TaskError, match=words):
        from_systems(**(given_ | changes))


texts = st.lists(st.text("abcd ", min_size=1, max_size=6).filter(str.strip), min_size=2, max_size=30)


@given(texts, st.randoms(use_true_random=False), st.booleans())
def test_each_text_is_in_one_pair_of_its_group(texts, random, grouped):
    labels = [random.randint(0, 1) for _ in texts]
    groups = [random.choice("xyz") for _ in texts] if grouped else None
    by_text = {}
    for i, text in enumerate(texts):
        by_text.setdefault(text, []).append((labels[i], groups[i] if groups else None))
    if grouped and any(len({group for _, group in found}) > 1 for found in by_text.values()):
        with pytest.raises(TaskError):
            from_labels(texts, labels, groups)
        return
    clear = {text: found[0] for text, found in by_text.items() if len({label for label, _ in found}) == 1}
    counts = Counter(clear.values())
    expected = {group: min(counts[0, group], counts[1, group]) for _, group in counts}
    if not any(expected.values()):
        with pytest.raises(TaskError):
            from_labels(texts, labels, groups)
        return
    task = from_labels(texts, labels, groups)
    used = [text for example in task.examples for text in (example.positive, example.negative)]
    assert len(used) == len(set(used))
    for example in task.examples:
        assert clear[example.positive][0] == 1
        assert clear[example.negative][0] == 0
        assert clear[example.positive][1] == clear[example.negative][1]
        if grouped:
            assert example.group == clear[example.positive][1]
    found = Counter(clear[example.positive][1] for example in task.examples)
    assert {group: found[group] for group in expected} == expected  # as many pairs as there can be
    assert task == from_labels(texts, labels, groups)


def test_texts_that_begin_alike_are_paired():
    texts = ["Cats bark.", "Ice is hot.", "Cats meow.", "Ice is cold.", "Snow is white.", "Snow is black."]
    task = from_labels(texts, [0, 0, 1, 1, 1, 0])
    assert {(e.positive, e.negative) for e in task.examples} == {
        ("Cats meow.", "Cats bark."),
        ("Ice is cold.", "Ice is hot."),
        ("Snow is white.", "Snow is black."),
    }
    assert len(set(task.groups)) == 3


def test_a_question_may_hold_the_text():
    task = from_labels(
        ["Ice is cold.", "Ice is hot.", "Snow is white.", "Snow is black."],
        [True, False, True, False],
        question="{text} That is",
        answers=" true",
        distractors=[" false", " wrong"],
        poles=("true", "false"),
    )
    assert [e.question for e in task.examples] == ["Ice is cold. That is", "Snow is black. That is"]
    assert task.examples[0].distractors == (" false", " wrong")
    assert task.poles == ("true", "false")


def test_texts_with_both_labels_are_left_out():
    task = from_labels(["a b", "a c", "d", "d"], [1, 0, 1, 0])
    assert [(e.positive, e.negative) for e in task.examples] == [("a b", "a c")]


@pytest.mark.parametrize("label", [None, float("nan"), ""])
def test_a_missing_label_is_named(label):
    with pytest.raises(TaskError, match="labels: number 2 is missing"):
        from_labels(["a", "b", "c"], [1, 0, label])


def test_groups_without_both_sides_leave_nothing():
    with pytest.raises(TaskError, match="no group has texts of both sides"):
        from_labels(["a", "b"], [1, 0], ["x", "y"])


def test_one_text_in_two_groups_is_refused():
    with pytest.raises(TaskError, match=r"'a' is in group 'x' \(text 0\) and in group 'y' \(text 2\)"):
        from_labels(["a", "b", "a"], [1, 0, 1], ["x", "x", "y"])


CITIES = [
    {"city": city, "land": land}
    for city, land in (
        ("Rome", "Italy"), ("Oslo", "Norway"), ("Lima", "Peru"), ("Graz", "Austria"), ("Linz", "Austria"),
        ("Bern", "Switzerland"), ("Turin", "Italy"), ("Milan", "Italy"), ("Basel", "Switzerland"), ("Paris", "France"),
        ("Lyon", "France"), ("Nice", "France"), ("Madrid", "Spain"), ("Lisbon", "Portugal"), ("Vienna", "Austria"),
        ("New York City", "America"), ("Rio de Janeiro", "Brazil"),
    )
]  # fmt: skip
TEMPLATES = ("{city} is in", "People who live in {city} live in")


def test_twins_of_a_template_differ_in_subject_and_answer():
    task = from_template(TEMPLATES, CITIES, answer=" {land}")
    land = {row["city"]: row["land"] for row in CITIES}
    for e in task.examples:
        clean, corrupt = e.spans["city"], e.corrupt_spans["city"]
        template = next(t for t in TEMPLATES if t.replace("{city}", clean) == e.clean)
        assert template.replace("{city}", corrupt) == e.corrupt
        assert e.answers == (f" {land[clean]}",)
        assert e.distractors == (f" {land[corrupt]}",)
        assert land[clean] != land[corrupt]
    assert {e.spans["city"] for e in task.examples} == set(land)
    assert task == from_template(TEMPLATES, CITIES, answer=" {land}")


def test_no_prompt_of_a_template_is_in_two_groups():
    task = from_template(TEMPLATES, CITIES, answer=" {land}")
    refuse_leaks(task.examples, task.groups, "cities")
    members = {}
    for e in task.examples:
        members.setdefault(e.group, set()).update((e.spans["city"], e.corrupt_spans["city"]))
    assert all(2 <= len(cities) <= NEAR + 1 for cities in members.values())
    assert len(members) >= 3
    task.split()


def test_candidates_are_counted():
    task = from_template(TEMPLATES[0], CITIES, answer=" {land}", candidates=2)
    assert max(Counter(e.clean for e in task.examples).values()) == 2
    assert len(from_template(TEMPLATES[0], CITIES, answer=" {land}", candidates=1)) <= len(CITIES)


def test_groups_of_a_column_are_kept():
    rows = [{**row, "size": "short" if len(row["city"]) < 6 else "long"} for row in CITIES]
    task = from_template(TEMPLATES[0], rows, answer=" {land}", group="size")
    size = {row["city"]: row["size"] for row in rows}
    assert all(e.group == size[e.spans["city"]] == size[e.corrupt_spans["city"]] for e in task.examples)


def test_a_subject_with_two_answers_has_both():
    rows = [*CITIES[:3], {"city": "Rome", "land": "Georgia"}]
    examples = [e for e in from_template(TEMPLATES[0], rows, answer=" {land}").examples if e.clean == "Rome is in"]
    assert examples
    assert all(e.answers == (" Italy", " Georgia") for e in examples)


def test_several_answers_of_a_row():
    task = from_template("{city} is in", CITIES[:3], answer=(" {land}", " lovely {land}"))
    assert task.examples[0].answers == (" Italy", " lovely Italy")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"templates": "{cty} is in"}, r'needs a column "cty" \(did you mean "city"\?\)'),
        ({"answer": " {lnd}"}, r'needs a column "lnd" \(did you mean "land"\?\)'),
        ({"group": "continent"}, 'needs a column "continent"'),
        ({"samples": []}, "got 0 samples"),
        ({"templates": ()}, "a template and samples"),
        (
            {"samples": [{"city": "Rome", "land": "Italy"}, {"city": "Turin", "land": "Italy"}]},
            "have different answers",
        ),
    ],
)
def test_faults_of_templates(changes, words):
    with pytest.raises(TaskError, match=words):
        from_template(**({"templates": "{city} is in", "samples": CITIES, "answer": " {land}"} | changes))
