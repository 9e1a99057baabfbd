"""Tasks: parts that share no group, samples spread over groups, labels shuffled by balanced coins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TaskError
from trimtab.model.protocols import Readout
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.task import SHARES, Task

sizes = st.lists(st.integers(1, 9), min_size=3, max_size=25)
seeds = st.integers(0, 2**32 - 1)


def task_of(sizes, shape="counterfactual"):
    """A task with groups of these sizes, their examples mixed."""
    made = []
    for group, size in enumerate(sizes):
        for i in range(size):
            one, other = f"clean {group} {i}", f"corrupt {group} {i}"
            if shape == "contrast":
                made.append((i, Contrast(one, other, f"group {group}")))
            else:
                made.append((i, Counterfactual(one, other, (f" a{i}",), (f" d{i}",), f"group {group}")))
    return Task("made", tuple(example for _, example in sorted(made, key=lambda pair: pair[0])))


@given(sizes, seeds)
def test_no_group_is_in_two_parts_and_every_example_in_one(sizes, seed):
    task = task_of(sizes)
    parts = task.split(seed)
    groups = [set(part.groups) for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert Counter(e for part in parts for e in part.examples) == Counter(task.examples)
    where = {example: i for i, example in enumerate(task.examples)}
    for part in parts:
        assert len(part) > 0
        order = [where[example] for example in part.examples]
        assert order == sorted(order)
        assert (part.metric, part.name) == (task.metric, task.name)


@given(sizes, seeds)
def test_a_split_is_the_same_for_the_same_seed(sizes, seed):
    assert task_of(sizes).split(seed) == task_of(sizes).split(seed)


@given(st.integers(12, 120), seeds)
def test_parts_have_their_shares_where_groups_allow(number, seed):
    task = task_of([1] * number)
    for part, share in zip(task.split(seed), SHARES, strict=True):
        assert abs(len(part) - share * number) <= 1.5
    halves = task.split(seed, (2, 1, 1))
    assert abs(len(halves.train) - number / 2) <= 1.5


def test_other_seeds_split_otherwise():
    task = task_of([2] * 20)
    assert len({task.split(seed).test.digest for seed in range(5)}) > 1


def test_a_large_group_leaves_no_part_empty():
    assert sorted(len(part) for part in task_of([50, 1, 1]).split()) == [1, 1, 50]


@pytest.mark.parametrize("sizes", [[4], [4, 4]])
def test_fewer_than_three_groups_cannot_be_split(sizes):
    with pytest.raises(TaskError, match=rf"{len(sizes)} group\(s\), group 0.*three or more"):
        task_of(sizes).split()


@pytest.mark.parametrize("shares", [(1, 1), (0.5, 0.5, 0), (1, -1, 1)])
def test_shares_are_three_positive_numbers(shares):
    with pytest.raises(TaskError, match="three positive numbers"):
        task_of([2, 2, 2]).split(shares=shares)


@given(sizes, st.integers(1, 60), seeds)
def test_taking_some_is_spread_over_the_groups(sizes, most, seed):
    task = task_of(sizes)
    taken = task.take(most, seed)
    assert len(taken) == min(most, len(task))
    assert set(taken.examples) <= set(task.examples)
    assert taken == task_of(sizes).take(most, seed)
    had, has = Counter(task.groups), Counter(taken.groups)
    for one in had:
        for other in had:
            if has[one] < has[other] - 1:  # only a group with nothing left has fewer
                assert has[one] == had[one]


def test_at_least_one_is_taken():
    with pytest.raises(TaskError, match="at least one"):
        task_of([2, 2, 2]).take(0)


@given(sizes, seeds, st.sampled_from(["counterfactual", "contrast"]))
def test_shuffling_swaps_exactly_half(sizes, seed, shape):
    task = task_of(sizes, shape)
    shuffled = task.shuffled(seed)
    pairs = list(zip(task.examples, shuffled.examples, strict=True))
    swapped = sum(one != other for one, other in pairs)
    for one, other in pairs:
        if shape == "contrast":
            assert other in (one, one.swapped())
        else:
            assert (one.clean, one.corrupt) == (other.clean, other.corrupt)
            assert {one.answers, one.distractors} == {other.answers, other.distractors}
    assert swapped in (len(task) // 2, -(-len(task) // 2))
    assert shuffled == task_of(sizes, shape).shuffled(seed)
    assert shuffled.groups == task.groups


def test_other_seeds_shuffle_otherwise():
    assert len({task_of([9, 9, 9]).shuffled(seed).digest for seed in range(5)}) == 5


def test_a_task_has_one_shape_and_no_repeats():
    one = Counterfactual("a", "b", " c", " d", "g")
    with pytest.raises(TaskError, match="no examples"):
        Task("t", ())
    with pytest.raises(TaskError, match="Contrast, Counterfactual"):
        Task("t", (one, Contrast("a", "b", "g")))
    with pytest.raises(TaskError, match="1 examples more than once"):
        Task("t", (one, one.with_()))


def test_the_digest_is_of_what_is_measured():
    task = task_of([2, 2, 2])
    assert task.with_(name="other", about="words", poles=("a", "b"), source="here") == task
    for change in ({"metric": "rank"}, {"chat": True}, {"system": "Be kind."}, {"read": "last"}):
        assert task.with_(**change) != task
    assert task.only([0, 1]) != task
    assert task.only(range(len(task))) == task


def test_metrics_of_ones_own_are_told_apart_by_what_they_do():
    """Two lambdas have one name; a study that took the one for the other would report results of the wrong metric."""

    def scaled(by):
        return lambda logits, rows: by * logits[:, -1, 3]

    task = Task("one", (Counterfactual("a b", "c b", (" d",), (" e",), "g"),))
    metrics = [lambda logits, rows: logits[:, -1, 3], lambda logits, rows: logits[:, -1, 4], scaled(1.0), scaled(2.0)]
    assert len({task.with_(metric=metric).digest for metric in metrics}) == 4
    assert task.with_(metric=scaled(2.0)).digest == task.with_(metric=scaled(2.0)).digest


@dataclass
class Weighed:
    """A metric of one's own that holds a tensor in a field."""

    by: object

    def __call__(self, logits, rows):
        return logits[:, -1] @ self.by

    def read(self, logits, rows):
        return self(logits, rows)


def closing_over(held):
    return lambda logits, rows: logits[:, -1] @ held


def nested(held):
    inner = closing_over(held)
    return lambda logits, rows: -inner(logits, rows)


def by_default(held):
    def function(logits, rows, by=held):
        return logits[:, -1] @ by

    return function


def by_keyword(held):
    def function(logits, rows, *, by=held):
        return logits[:, -1] @ by

    return function


def weighed_by(held, logits, rows):
    return logits[:, -1] @ held


def linear(held):
    layer = torch.nn.Linear(len(held), 1, bias=False)
    layer.weight.data[:] = torch.as_tensor(np.asarray(held))
    return lambda logits, rows: layer(logits[:, -1])[:, 0]


HOLDING = {
    "a cell": closing_over,
    "a function in a cell": nested,
    "a readout": lambda held: Readout(closing_over(held), rows=2),
    "a readout in a cell": lambda held: nested(Readout(closing_over(held))),
    "rows of a readout": lambda held: Readout(closing_over(held), rows=2).of_rows([0]),
    "a default": by_default,
    "a keyword": by_keyword,
    "a partial": lambda held: partial(weighed_by, held),
    "a dataclass": Weighed,
    "a method": lambda held: Weighed(held).read,
    "containers": lambda held: closing_over({"a": [(held,)]}),
    "a module": linear,
}
ARRAYS = {
    "float32": lambda x: x,
    "bfloat16": lambda x: x.bfloat16(),
    "gradient": lambda x: x.clone().requires_grad_(),
    "transposed": lambda x: x.reshape(50, -1).T,
    "sparse": lambda x: x.to_sparse(),
    "numpy": lambda x: x.numpy(),
    "objects": lambda x: x.numpy().astype(object),
    "pandas": lambda x: pd.Series(x.numpy()),
}


def digest_with(metric):
    return Task("one", (Counterfactual("a b", "c b", (" d",), (" e",), "g"),), metric=metric).digest


def differing(kind="float32"):
    """Three times 5,000 numbers, whose `repr` is abbreviated: the first two equal, the third not in the middle."""
    made = [torch.arange(5000.0) for _ in range(3)]
    made[2][2500] = -1.0
    return [ARRAYS[kind](x) for x in made]


@pytest.mark.parametrize("holds", HOLDING)
def test_metrics_that_hold_large_tensors_are_told_apart_by_every_number_wherever_they_hold_them(holds):
    first, same, other = (digest_with(HOLDING[holds](x)) for x in differing())
    assert first == same
    assert first != other


@pytest.mark.parametrize("kind", ARRAYS)
def test_so_are_those_that_hold_arrays_of_any_kind(kind):
    first, same, other = (digest_with(closing_over(x)) for x in differing(kind))
    assert first == same
    assert first != other


def test_tensors_are_told_apart_by_dtype_and_shape_too():
    zeros = torch.zeros(2000)
    held = [zeros, zeros.reshape(2, 1000), zeros.to(torch.int32), zeros[:1999], zeros.numpy(), torch.zeros(0)]
    assert len({digest_with(closing_over(x)) for x in held}) == len(held)


def test_what_has_no_order_has_one_digest_however_it_was_filled():
    for one, other in (({0, 8}, {8, 0}), ({"a": 1, "b": 2}, {"b": 2, "a": 1})):
        assert list(one) != list(other)
        assert digest_with(closing_over(one)) == digest_with(closing_over(other))


def test_functions_within_functions_are_told_by_their_code_and_not_by_their_place():
    def made(power):
        source = f"def metric(logits, rows):\n return sum((lambda z: z**{power})(z) for z in logits[:, -1].T)"
        names = {}
        exec(source, names)
        return names["metric"]

    assert digest_with(made(2)) == digest_with(made(2))
    assert digest_with(made(2)) != digest_with(made(3))


def test_a_metric_that_holds_on_to_itself_has_a_digest():
    def made(by):
        def function(logits, rows):
            return by * logits[:, -1, 0] if len(rows) else function(logits, rows)

        return function

    assert digest_with(made(1)) == digest_with(made(1))
    assert digest_with(made(1)) != digest_with(made(2))


def test_readouts_are_told_apart_by_what_they_read():
    own = closing_over(torch.arange(3))
    reads = [{}, {"rows": 2}, {"tokens": torch.arange(3)}, {"ragged": True}, {"unit": "nat"}, {"differentiable": False}]
    assert len({digest_with(Readout(own, **read)) for read in reads}) == len(reads)


@pytest.mark.parametrize("make", [lambda: closing_over([1.0]), lambda: partial(weighed_by, [1.0])])
def test_a_metric_that_says_that_it_has_no_gradient_is_another_one(make):
    stepped = make()
    stepped.differentiable = False
    assert digest_with(make()) == digest_with(make())
    assert digest_with(make()) != digest_with(stepped)
