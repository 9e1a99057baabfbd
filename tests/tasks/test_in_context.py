"""Few-shot prompts of a counterfactual task: what they show, what they ask, and what is never shown."""

from __future__ import annotations

import pytest

from tests.evaluate.tinies import questions
from trimtab.errors import TaskError
from trimtab.tasks import builtin
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.in_context import in_context
from trimtab.tasks.task import Task

CAPITALS = builtin.task("capitals")


def pairs(n=8, groups=4):
    examples = []
    for i in range(n):
        j = (i + 1) % n
        span, other = {"subject": f"c{i}"}, {"subject": f"c{j}"}
        examples.append(
            Counterfactual(f"of c{i} is", f"of c{j} is", (f" a{i}",), (f" a{j}",), f"g{i % groups}", span, other)
        )
    return Task("pairs", tuple(examples))


def shown(example):
    """The (query, answer) pairs that a prompt shows, and its query."""
    *lines, last = example.clean.split("\n")
    return [tuple(line.split(":")) for line in lines], last.removesuffix(":")


def test_shots_are_true_and_the_query_is_open():
    task = in_context(CAPITALS, shots=4, most=30)
    true = {
        e.clean[slice(*s)] if isinstance(s := e.spans["subject"], tuple) else s: e.answers[0] for e in CAPITALS.examples
    }
    assert len(task) == 30
    for example in task.examples:
        pairs_, query = shown(example)
        assert len(pairs_) == len({q for q, _ in pairs_}) == 4
        assert all(true[q] == answer for q, answer in pairs_)
        assert example.answers == (true[query],)
        assert query not in {q for q, _ in pairs_}
        assert true[query] not in {answer for _, answer in pairs_}
        start, stop = example.spans["query"]
        assert example.clean[start:stop] == query


def test_the_corrupt_twin_asks_for_another_query_after_the_same_shots():
    for example in in_context(CAPITALS, shots=3, most=20).examples:
        (clean, query), (corrupt, other) = (
            shown(example),
            (
                [tuple(line.split(":")) for line in example.corrupt.split("\n")[:-1]],
                example.corrupt.split("\n")[-1].removesuffix(":"),
            ),
        )
        assert clean == corrupt
        assert query != other
        assert example.answers != example.distractors


def test_every_query_is_asked_once():
    task = in_context(CAPITALS, shots=0)
    queries = [example.clean for example in task.examples]
    assert len(queries) == len(set(queries)) == len(CAPITALS) // 3  # three templates for each country
    assert all(query.endswith(":") for query in queries)


def test_shots_come_from_other_groups_where_there_are_enough():
    def groups_shown(made):
        for example in made.examples:
            for query, _ in shown(example)[0]:
                yield example.group, f"g{int(query[1:]) % 2}"

    assert all(own != other for own, other in groups_shown(in_context(pairs(groups=2), shots=4)))
    assert any(own == other for own, other in groups_shown(in_context(pairs(groups=2), shots=5)))


def test_shuffled_answers_are_dealt_to_others():
    plain, mixed = (in_context(pairs(), shots=4, shuffled=s, seed=3) for s in (False, True))
    for one, other in zip(plain.examples, mixed.examples, strict=True):
        (_, query), (pairs_, same) = shown(one), shown(other)
        assert query == same
        assert one.answers == other.answers
        assert all(answer != f" a{q[1:]}" for q, answer in pairs_)
        assert {answer for _, answer in pairs_} == {f" a{q[1:]}" for q, _ in pairs_}


def test_without_the_span_whole_prompts_are_the_queries():
    example = in_context(pairs(), shots=1, item="nothing", separator=". ", most=1).examples[0]
    first, query = example.clean.split(". ")
    assert first.startswith("of c")
    assert query.endswith(" is")
    assert example.spans["query"] == (len(first) + 2, len(example.clean))


def test_the_same_seed_gives_the_same_prompts():
    assert in_context(pairs(), seed=1) == in_context(pairs(), seed=1)
    assert in_context(pairs(), seed=1) != in_context(pairs(), seed=2)
    assert in_context(pairs(), shots=2).name == "pairs, 2 shots"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: in_context(questions(4)), "is a contrast task"),
        (lambda: in_context(pairs(), shots=-1), "0 or more"),
        (lambda: in_context(pairs(), shots=1, shuffled=True), "two at least"),
        (lambda: in_context(pairs(), shots=8), "7 examples to show"),
        (lambda: in_context(pairs(), shots=7), "too few for 7 shots"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(TaskError, match=message):
        make()
