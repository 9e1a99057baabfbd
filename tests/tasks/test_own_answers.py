"""Own answers: what the model itself says, wrong against right, in pairs of one group."""

from __future__ import annotations

import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.errors import TaskError
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.own_answers import own_answers
from trimtab.tasks.task import Task

LM = lm_of("llama", torch.float64)


def said(clean, choices):
    logits = LM.run(clean, "logits")["logits"][0, -1]
    return max(choices, key=lambda word: float(logits.flatten()[int(word.strip()[1:])]))


def asked(n=12, groups=3):
    """Prompts in three groups whose right answer, every other time, is what the model says."""
    choices = [f"w{i}" for i in range(10, 16)]
    made = []
    for i in range(n):
        clean = words(*range(20 + i, 23 + i + i % 3))
        best = said(clean, choices)
        right = best if i % 2 else next(word for word in choices if word != best)
        others = tuple(word for word in choices if word != right)
        made.append(
            Counterfactual(clean, words(60 + i, *range(21 + i, 23 + i + i % 3)), (right,), others, f"g{i % groups}")
        )
    return Task("asked", tuple(made)), choices


def test_wrong_answers_stand_against_right_ones_of_their_group():
    task, choices = asked()
    made = own_answers(LM, task, batch_size=5)
    assert made.poles == ("wrong", "right")
    assert made.read == "last"
    answered = {e.clean + said(e.clean, choices): (e.group, said(e.clean, choices) in e.answers) for e in task.examples}
    for pair in made.examples:
        assert answered[pair.positive] == (pair.group, False)
        assert answered[pair.negative] == (pair.group, True)
    least = {g: [list(answered.values()).count((g, ok)) for ok in (False, True)] for g in ("g0", "g1", "g2")}
    assert sorted(made.groups) == sorted(g for g, counts in least.items() for _ in range(min(counts)))
    assert len({pair.positive for pair in made.examples}) == len(made)


def test_what_has_no_answers_of_one_kind_is_refused():
    with pytest.raises(TaskError, match="contrast examples"):
        own_answers(LM, pairs())
    with pytest.raises(TaskError, match="chat"):
        own_answers(LM, Task("talk", twins().examples, chat=True))
    task, _ = asked(groups=12)
    with pytest.raises(TaskError, match="answers 6 of 12 prompts"):
        own_answers(LM, task)
