"""Metrics: each against its formula written out in plain numbers, also where rows have different numbers of words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TaskError
from trimtab.model.protocols import Readout
from trimtab.tasks.metrics import BY_NAME, NAMES, Choice, check_name, has_gradient, kl, readout, sequence_log_prob

VOCAB = 11
ROWS = 4
DIFFERENTIABLE = [name for name in BY_NAME if name not in ("rank", "accuracy")]


@st.composite
def cases(draw):
    """Logits of each row, and disjoint answers and distractors, of different numbers in different rows."""
    seed = draw(st.integers(0, 2**31))
    logits = 3 * torch.randn(ROWS, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    answers, distractors = [], []
    for _ in range(ROWS):
        order = draw(st.permutations(range(VOCAB)))
        a, d = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        answers.append(order[:a])
        distractors.append(order[a : a + d])
    return logits, answers, distractors


def formula(name, z, answers, distractors):
    """The metric of one row, in plain Python numbers."""
    total = sum(math.exp(x) for x in z)
    p = [math.exp(x) / total for x in z]
    pa, pd = sum(p[i] for i in answers), sum(p[i] for i in distractors)
    best = max(z[i] for i in answers)
    return {
        "logit_diff": sum(z[i] for i in answers) / len(answers) - sum(z[i] for i in distractors) / len(distractors),
        "log_prob_diff": math.log(pa) - math.log(pd),
        "log_prob": math.log(pa),
        "prob": pa,
        "prob_diff": pa - pd,
        "log_odds": math.log(pa) - math.log(1 - pa),
        "rank": -1 - sum(x > best for x in z),
        "accuracy": float(best > max(z[i] for i in distractors)),
    }[name]


def value_of(made, logits, rows=None):
    """What a readout makes of the last logits (row vocab)."""
    rows = torch.arange(len(logits)) if rows is None else rows
    return made.of(logits[:, None], rows)


@pytest.mark.parametrize("name", BY_NAME)
@given(case=cases())
def test_a_metric_is_its_formula(name, case):
    logits, answers, distractors = case
    found = value_of(readout(name, Choice.of(answers), Choice.of(distractors)), logits)
    expected = [formula(name, z.tolist(), a, d) for z, a, d in zip(logits, answers, distractors, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", BY_NAME)
@given(case=cases())
def test_rows_of_a_batch_find_their_own_words(name, case):
    logits, answers, distractors = case
    made = readout(name, Choice.of(answers), Choice.of(distractors))
    rows = torch.tensor([2, 0, 2])
    assert torch.equal(value_of(made, logits[rows], rows), value_of(made, logits)[rows])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@given(case=cases())
def test_gradients_are_those_of_the_formula(name, case):
    logits, answers, distractors = case
    made = readout(name, Choice.of(answers), Choice.of(distractors))
    assert made.differentiable
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(value_of(made, leaf).sum(), leaf)
    assert torch.isfinite(found).all()
    row, token, h = 1, answers[1][0], 1e-6
    ends = []
    for sign in (1, -1):
        z = logits[row].clone()
        z[token] += sign * h
        ends.append(formula(name, z.tolist(), answers[row], distractors[row]))
    assert float(found[row, token]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["rank", "accuracy"])
def test_metrics_that_move_in_steps_say_so(name):
    assert not readout(name, Choice.of([[1]]), Choice.of([[2]])).differentiable
    assert {name for name in NAMES if not has_gradient(name)} == {"rank", "accuracy"}


@pytest.mark.parametrize("name", BY_NAME)
@given(case=cases())
def test_of_every_metric_more_is_better(name, case):
    """Answers that are made likelier never lower it, and distractors that are made likelier never raise it."""
    logits, answers, distractors = case
    made = readout(name, Choice.of(answers), Choice.of(distractors))
    before = value_of(made, logits)
    for words, sign in ((answers, 1), (distractors, -1)):
        moved = logits.clone()
        for row, ids in enumerate(words):
            moved[row, ids] += 2.0
        assert (sign * (value_of(made, moved) - before) >= -1e-12).all()


def test_units_and_names():
    made = {name: readout(name, Choice.of([[1]]), Choice.of([[2]])) for name in BY_NAME}
    assert {name: one.name for name, one in made.items()} == {name: name for name in BY_NAME}
    assert made["logit_diff"].unit == "logit"
    assert made["log_odds"].unit == "nat"
    assert all(one.rows == 1 for one in made.values())


def test_log_odds_stay_finite_where_all_is_certain():
    logits = torch.zeros(2, VOCAB)
    logits[0, 3], logits[1, 3] = 200.0, -200.0
    found = value_of(readout("log_odds", Choice.of([[3], [3]]), Choice.of([[1], [1]])), logits)
    assert torch.isfinite(found).all()
    assert found[0] > 20 > -20 > found[1]


def test_half_precision_is_widened_first():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)).bfloat16()
    choices = Choice.of([[1, 2], [3]]), Choice.of([[4], [5]])
    found = value_of(readout("log_prob", *choices), logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, value_of(readout("log_prob", *choices), logits.float()))


def test_a_choice_repeats_what_does_not_count():
    choice = Choice.of([[5, 6, 7], [8]])
    assert choice.ids.tolist() == [[5, 6, 7], [8, 8, 8]]
    assert choice.real.tolist() == [[True, True, True], [True, False, False]]


def test_a_metric_of_ones_own_is_a_function_of_logits():
    def top(logits, rows):
        return logits[:, -1].amax(-1) + rows

    made = readout(top, Choice.of([[1], [1]]), Choice.of([[2], [2]]))
    logits = torch.randn(2, VOCAB)
    assert made.name == "top"
    assert made.rows == 2
    assert torch.equal(value_of(made, logits), logits.amax(-1) + torch.arange(2))
    assert made.differentiable
    assert has_gradient(top)
    top.differentiable = False
    assert not readout(top, Choice.of([[1], [1]]), Choice.of([[2], [2]])).differentiable
    assert not has_gradient(top)


def test_a_readout_is_a_metric_as_it_is():
    own = Readout(lambda logits, rows: logits[:, -1, 0], name="first", differentiable=False)
    assert readout(own, Choice.of([[1]]), Choice.of([[2]])) is own
    assert not has_gradient(own)


@pytest.mark.parametrize("of", [{"rows": 2}, {"tokens": torch.tensor([[1], [2]])}])
def test_a_readout_made_for_its_rows_reads_as_many_examples_and_no_other_number(of):
    own = Readout(lambda logits, rows: logits[:, -1, 0], name="first", **of)
    assert readout(own, Choice.of([[1], [1]]), Choice.of([[2], [2]])) is own
    for n in (1, 3):
        with pytest.raises(TaskError, match=f"first was made for 2 examples, and these are {n}: make it again"):
            readout(own, Choice.of([[1]] * n), Choice.of([[2]] * n))
    assert has_gradient(own)
    assert not has_gradient(replace(own, differentiable=False))


def test_kl_and_whole_texts_say_where_they_belong():
    for work in (lambda: check_name("kl"), lambda: readout("kl", Choice.of([[1]]), Choice.of([[2]]))):
        with pytest.raises(TaskError, match=r"clean prompts, which have to be run first.*kl_to_clean"):
            work()
    check_name("sequence_log_prob")
    with pytest.raises(TaskError, match=r"sequence_log_prob reads whole texts.*log_prob_diff"):
        readout("sequence_log_prob", Choice.of([[1]]), Choice.of([[2]]))


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(TaskError, match=r'"logit_dif" \(did you mean "logit_diff"\?\): there are log_prob_diff'):
        readout("logit_dif", Choice.of([[1]]), Choice.of([[2]]))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_the_likelihood_of_a_sequence_is_a_sum_over_its_tokens(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    width, rows = max(lengths), len(lengths)
    logits = torch.randn(rows, width, VOCAB, dtype=torch.float64, generator=generator)
    targets = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]
    weight = torch.randn(rows, dtype=torch.float64, generator=generator)
    for row, n in enumerate(lengths):
        logits[row, n:] = logits[row, n - 1]  # as the engine fills short rows: with their last position
    made = sequence_log_prob(Choice.of(targets), "all", weight, "seq")
    expected = []
    for row, tokens in enumerate(targets):
        total = 0.0
        for pos, token in enumerate(tokens):
            z = logits[row, pos].tolist()
            total += z[token] - math.log(sum(math.exp(x) for x in z))
        expected.append(float(weight[row]) * total)
    assert made.ragged
    assert made.of(logits, torch.arange(rows)).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    order = torch.arange(rows).flip(0)
    assert made.of(logits[order], order).tolist() == pytest.approx(expected[::-1], rel=1e-9, abs=1e-12)


@given(st.integers(0, 2**31))
def test_kl_is_that_of_torch_and_nothing_where_nothing_is(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, other = 2 * torch.randn(2, 3, 5, VOCAB, dtype=torch.float64, generator=generator)
    clean = torch.log_softmax(logits, -1)
    real = torch.tensor([[True] * 5, [True, True, True, False, False], [True] + [False] * 4])
    rows = torch.tensor([2, 0, 1])
    found = kl(clean, real, "all").of(other[rows], rows)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(other[rows], -1), clean[rows], log_target=True, reduction="none"
    ).sum(-1)
    assert torch.equal(found.isnan(), ~real[rows])
    assert torch.allclose(found[real[rows]], expected[real[rows]], rtol=1e-10, atol=1e-13)
    assert (found[real[rows]] >= 0).all()
    assert torch.allclose(kl(clean, real, "all").of(logits, torch.arange(3))[real], torch.zeros(9, dtype=torch.float64))


def test_what_is_impossible_weighs_nothing_in_a_kl():
    logits = torch.zeros(1, 1, 4, dtype=torch.float64)
    logits[..., 3] = -math.inf
    clean = torch.log_softmax(logits, -1)
    moved = logits.clone()
    moved[..., 0] = 1.0
    found = kl(clean, torch.ones(1, 1, dtype=torch.bool)).of(moved, torch.arange(1))
    total = math.log(math.e + 2)
    assert float(found) == pytest.approx(sum(1 / 3 * (math.log(1 / 3) - (x - total)) for x in (1, 0, 0)))
