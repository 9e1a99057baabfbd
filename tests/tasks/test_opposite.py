"""The opposite of a contrast task has the opposite number, and what has none is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.model.tinies import lm_of
from tests.studies.small import contrast, counterfactual
from trimtab.errors import TaskError
from trimtab.evaluate.effect import effects
from trimtab.tasks import builtin
from trimtab.tasks.example import Contrast
from trimtab.tasks.opposite import opposite
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention


def test_everything_that_has_a_side_is_exchanged():
    task = builtin.task("honesty")
    turned = opposite(task)
    for e, o in zip(task.examples, turned.examples, strict=True):
        assert (o.positive, o.negative, o.question, o.group) == (e.negative, e.positive, e.question, e.group)
        assert (o.positive_system, o.negative_system) == (e.negative_system, e.positive_system)
        assert (o.answers, o.distractors) == (e.distractors, e.answers)
    assert turned.poles == ("deceptive", "honest")
    assert (turned.name, turned.metric, turned.chat, turned.instruction) == (task.name, task.metric, task.chat, "")
    assert opposite(task, "Lie.").instruction == "Lie."
    assert turned.digest != task.digest
    assert opposite(turned).examples == task.examples


@pytest.mark.parametrize("metric", ["log_prob_diff", "logit_diff", "prob_diff"])
def test_its_number_is_the_opposite(metric):
    lm, task = lm_of("llama"), contrast(groups=3).with_(metric=metric)
    one, other = (effects(lm, each, [Intervention()]).base for each in (task, opposite(task)))
    assert np.abs(one).max() > 1e-6
    np.testing.assert_allclose(other, -one, atol=1e-5)


def test_without_a_question_the_two_sides_are_exchanged():
    pair = Contrast("w10", "w12", group="g", prompt="w3")
    assert opposite(Task("pairs", (pair,))).examples == (pair.swapped(),)


def test_what_has_no_opposite_is_refused():
    with pytest.raises(TaskError, match=r"made-up is counterfactual.*Only a contrast task has an opposite"):
        opposite(counterfactual())

    def mine(logits, rows):
        return logits[:, -1, 3]

    with pytest.raises(TaskError, match="the metric of made-up is the function mine"):
        opposite(contrast().with_(metric=mine))
