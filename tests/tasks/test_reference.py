"""What typical values are taken over: the task's own prompts, another task's, or prompts as they are."""

from __future__ import annotations

import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of
from trimtab.errors import TaskError
from trimtab.tasks.measure import measure
from trimtab.tasks.reference import name_of, reference_prompts

LM, TASK = lm_of("llama"), twins(3)


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_a_task_is_read_where_its_number_is(on):
    for reference, read in ((None, TASK), (twins(6), twins(6)), (pairs(4), pairs(4))):
        found = reference_prompts(LM, TASK, reference, on)
        assert torch.equal(found.ids, measure(LM, read, on=on).prompts.ids)


def test_prompts_are_taken_as_they_are_and_texts_are_not():
    prompts = LM.prompts(["w5 w6", "w7"])
    assert reference_prompts(LM, TASK, prompts, "clean") is prompts
    with pytest.raises(TaskError, match=r"got list: make prompts of texts with lm\.prompts\(texts\)"):
        reference_prompts(LM, TASK, ["w5 w6", "w7"], "clean")


def test_its_name_tells_it_from_others():
    assert name_of(TASK) == f"twins ({TASK.digest[:12]})"
    one, other = (LM.prompts(texts) for texts in (["w5 w6", "w7"], ["w5 w6", "w8"]))
    assert name_of(one).startswith("2 prompts (")
    assert name_of(one) != name_of(other)
