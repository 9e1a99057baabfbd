"""The counterfactual tasks that come with the package: that they are what they say, in the bundled model's tokens."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib import import_module

import pytest

from trimtab.tasks.builtin import task as built_in
from trimtab.tasks.builtin.agreement import ATTRACTORS, SUBJECTS
from trimtab.tasks.builtin.capitals import PAIRS
from trimtab.tasks.builtin.gender import PAIRS as PROFESSIONS
from trimtab.tasks.example import RESERVED
from trimtab.tasks.groups import refuse_leaks
from trimtab.tasks.measure import sides
from trimtab.tasks.task import LEAST
from trimtab.values.span import Span

NAMES = (
    "ioi",
    "greater-than",
    "capitals",
    "induction",
    "arithmetic",
    "agreement",
    "gender",
    "docstring",
    "colours",
)
every = pytest.mark.parametrize("name", NAMES)
task = cache(built_in)


def ids(lm, text):
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def fitted(lm, name):
    """The examples that the bundled tokenizer can do."""
    whole = task(name)
    kept = [
        i
        for i, e in enumerate(whole.examples)
        if len(ids(lm, e.clean)) == len(ids(lm, e.corrupt))
        and all(len(ids(lm, word)) == 1 for word in (*e.answers, *e.distractors))
    ]
    return whole.only(kept)


def places(example):
    """(characters in clean, characters in corrupt) of each span."""
    return {
        name: (
            Span.of(span).locate(example.clean),
            Span.of(example.corrupt_spans.get(name, span)).locate(example.corrupt),
        )
        for name, span in example.spans.items()
    }


def said(example, name, side="clean"):
    """The words that a span covers."""
    start, end = places(example)[name][side == "corrupt"]
    return getattr(example, side)[start:end]


# Every task
# ---------------------------------------------------------------------------------------------------------------------


@every
def test_it_is_named_like_its_file_and_the_same_each_time(name):
    assert task(name).name == name
    assert built_in(name) == task(name)
    assert task(name).shape == "counterfactual"
    assert task(name).metric == "logit_diff"
    assert task(name).about
    assert task(name).source
    assert len(set(task(name).poles)) == 2
    assert task(name).poles != ("positive", "negative")


@every
def test_enough_examples_are_left_in_enough_groups(bundled, name):
    left = fitted(bundled, name)
    groups = Counter(left.groups)
    assert len(task(name)) >= 96
    assert len(left) >= LEAST
    assert len(groups) >= 12
    assert max(groups.values()) <= len(left) / 8


@every
def test_no_example_is_there_twice_and_no_text_in_two_groups(name):
    examples = task(name).examples
    assert len({(e.clean, e.corrupt) for e in examples}) == len(examples)
    refuse_leaks(examples, [str(i) for i in range(len(examples))], name)


@every
def test_answers_are_tokens_of_their_own(bundled, name):
    for example in fitted(bundled, name).examples:
        answers = {ids(bundled, word)[0] for word in example.answers}
        distractors = {ids(bundled, word)[0] for word in example.distractors}
        assert len(answers) == len(example.answers)
        assert len(distractors) == len(example.distractors)
        assert not answers & distractors
        for prompt in (example.clean, example.corrupt):  # the prompt's tokens stay when an answer follows
            assert ids(bundled, prompt + example.answers[0]) == [
                *ids(bundled, prompt),
                *ids(bundled, example.answers[0]),
            ]


@every
def test_clean_and_corrupt_correspond_token_by_token(bundled, name):
    left = fitted(bundled, name)
    both = sides(bundled, left)
    named = tuple(left.examples[0].spans)
    assert named
    assert all(tuple(e.spans) == named for e in left.examples)
    for span in named:
        for clean, corrupt in zip(both.positive.spans[span], both.negative.spans[span], strict=True):
            assert clean == corrupt  # the same positions, so as many


@every
def test_only_the_tokens_of_spans_differ(bundled, name):
    clean, corrupt = sides(bundled, fitted(bundled, name))
    for row, differ in enumerate(clean.ids != corrupt.ids):
        covered = {position for spans in clean.spans.items() if spans[0] not in RESERVED for position in spans[1][row]}
        first = clean.ids.shape[1] - int(clean.mask[row].sum())  # the row is padded on the left
        changed = {int(position) - first for position in differ.nonzero()}
        assert changed
        assert changed <= covered


@every
def test_swapping_twice_gives_the_example_back(name):
    for example in task(name).examples:
        assert places(example.swapped()) == {key: pair[::-1] for key, pair in places(example).items()}
        assert places(example.swapped().swapped()) == places(example)


@every
def test_the_bundled_model_shows_the_behaviour(bundled, name):
    few = fitted(bundled, name).take(12)
    means = []
    for side in ("clean", "corrupt"):
        logits = bundled.run([getattr(e, side) for e in few.examples]).logits[:, -1]
        found = [
            row[[ids(bundled, word)[0] for word in e.answers]].mean()
            - row[[ids(bundled, word)[0] for word in e.distractors]].mean()
            for row, e in zip(logits, few.examples, strict=True)
        ]
        means.append(float(sum(found)) / len(found))
    assert means[0] > 0.8
    assert means[1] < -0.3


# Each task
# ---------------------------------------------------------------------------------------------------------------------


def test_ioi_asks_for_the_name_that_is_not_said_again():
    orders = Counter()
    for e in task("ioi").examples:
        (io,), (subject,) = e.answers, e.distractors
        assert [said(e, span) for span in ("IO", "S1", "S2")] == [io.strip(), subject.strip(), subject.strip()]
        assert said(e, "S2", "corrupt") == io.strip()
        assert (e.clean.count(subject.strip()), e.corrupt.count(io.strip())) == (2, 2)
        orders[e.clean.index(io.strip()) < e.clean.index(subject.strip())] += 1
    assert orders[True] == orders[False]


def test_later_years_are_later():
    for e in task("greater-than").examples:
        for text, right, wrong in (
            (e.clean, e.answers, e.distractors),
            (e.corrupt, (*e.answers, *e.distractors), ("0",)),
        ):
            year, prefix = re.fullmatch(r".*?(\d{4})\D+(\d{2})", text).groups()
            assert year.startswith(prefix)
            for last in "0123456789":
                assert all(int(prefix + tens + last) > int(year) for tens in right)
                assert all(int(prefix + tens + last) <= int(year) for tens in wrong)
        assert said(e, "century") + said(e, "tens") + "9" == re.search(r"\d{4}", e.clean)[0]


def test_capitals_belong_to_their_countries():
    capital = dict(entry for pair in PAIRS for entry in pair)
    assert len(capital) == 2 * len(PAIRS)  # no country is in two groups
    assert len(set(capital.values())) == len(capital)
    for e in task("capitals").examples:
        assert e.answers == (f" {capital[said(e, 'subject')]}",)
        assert e.distractors == (f" {capital[said(e, 'subject', 'corrupt')]}",)
        assert {said(e, "subject"), said(e, "subject", "corrupt")} == set(e.group.split(", "))


def test_induction_goes_on_as_before():
    for e in task("induction").examples:
        for text, (answer,) in ((e.clean, e.answers), (e.corrupt, e.distractors)):
            words = text.split()
            repeated = words.index(words[-1])
            assert words.count(words[-1]) == 2
            assert words[-2] == words[repeated - 1]
            assert f" {words[repeated + 1]}" == answer
        assert e.answers[0] not in e.corrupt
        assert e.distractors[0] not in e.clean


def test_sums_are_right():
    groups = {}
    for e in task("arithmetic").examples:
        for text, (answer,) in ((e.clean, e.answers), (e.corrupt, e.distractors)):
            *shots, last = text.split("\n")
            solved = [re.fullmatch(r"(\d) ([+-]) (\d) = (\d)", line).groups() for line in shots]
            asked = re.fullmatch(r"(\d) ([+-]) (\d) = ", last).groups()
            for a, sign, b, result in (*solved, (*asked, answer)):
                assert int(a) + int(b) * (1 if sign == "+" else -1) == int(result)
            assert asked not in [shot[:3] for shot in solved]
            fact = (asked[1], *(sorted(asked[::2]) if asked[1] == "+" else asked[::2]))
            assert groups.setdefault(fact, e.group) == e.group


def test_verbs_agree_with_their_subject():
    attractors = Counter()
    for e in task("agreement").examples:
        assert said(e, "subject") == said(e, "subject", "corrupt") + "s"
        assert said(e, "subject", "corrupt") in SUBJECTS.split()
        assert set(e.answers) == {" are", " were"}
        assert set(e.distractors) == {" is", " was"}
        attractors[said(e, "attractor") in ATTRACTORS.split()] += 1
    assert attractors[True] == attractors[False]
    assert not set(SUBJECTS.split()) & set(ATTRACTORS.split())


def test_no_profession_is_in_two_groups():
    professions = [word for pair in PROFESSIONS for word in pair]
    assert len(set(professions)) == len(professions)
    for e in task("gender").examples:
        assert (said(e, "profession"), said(e, "profession", "corrupt")) in PROFESSIONS
        assert (e.answers, e.distractors) == ((" she",), (" he",))


def test_docstrings_follow_the_definition():
    for e in task("docstring").examples:
        for text, (answer,) in ((e.clean, e.answers), (e.corrupt, e.distractors)):
            compile(text + f'{answer}: x\n    """', "docstring", "exec")
            self, *names = re.search(r"\((.*)\)", text)[1].split(", ")
            assert self == "self"
            described = re.findall(r"^    [:@]\w+ (\w+):", text, re.MULTILINE)
            assert described == names[:2]
            assert answer == f" {names[2]}"


def test_colours_are_those_that_were_said():
    for e in task("colours").examples:
        for side, (answer,) in (("clean", e.answers), ("corrupt", e.distractors)):
            text, thing = getattr(e, side), said(e, "object", side)
            stated, question = text.rsplit(".", 1)
            assert question.split()[-3:].count(thing) == 1
            colours = dict(re.findall(r"(?:my|the) (\w+) (?:is|was painted|was) (\w+)", stated))
            assert len(set(colours.values())) == 3
            assert f" {colours[thing]}" == answer


@pytest.mark.parametrize(("name", "constant"), [("induction", "WORDS"), ("docstring", "NAMES"), ("colours", "OBJECTS")])
def test_no_word_is_in_two_sets(name, constant):
    words = [
        word for line in getattr(import_module(f"trimtab.tasks.builtin.{name}"), constant) for word in line.split()
    ]
    assert [word for word, times in Counter(words).items() if times > 1] == []
