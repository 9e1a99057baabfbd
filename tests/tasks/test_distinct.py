"""Distinct: what is asked the same of a model is one, in tokens and whatever its groups are called."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from tests.commands.calls import TEMPLATE
from tests.tiny import tiny, tokenizer
from trimtab.evaluate.effect import effects
from trimtab.model.lm import LM
from trimtab.tasks.distinct import joined, measured
from trimtab.tasks.example import Contrast, Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.findings import Estimate


@pytest.fixture(scope="module")
def lm():
    own = copy.deepcopy(tokenizer())
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    own.chat_template = TEMPLATE
    return LM(tiny("llama"), own, name="own", check=False)


def films(*questions, answers=("w7",), distractors=("w8",), groups=None):
    names = groups or [f"g{i}" for i in range(len(questions))]
    examples = [
        Contrast(f"w{20 + i} w3", f"w{20 + i} w4", group, question=q, answers=answers, distractors=distractors)
        for i, (q, group) in enumerate(zip(questions, names, strict=True))
    ]
    return Task("films", tuple(examples))


def said(lm, task):
    """Which examples are one: for each the number of the first that is like it."""
    keys = measured(lm, task)
    return [keys.index(key) for key in keys]


def test_questions_that_are_the_same_tokens(lm):
    assert said(lm, films("w5 w6", "w5 w9", "W5  w6", "w5 w9")) == [0, 1, 0, 1]
    assert said(lm, films("w5 w6", "w5  w6").with_(chat=True)) == [0, 0]


def test_answers_belong_to_what_is_asked(lm):
    one, other = films("w5 w6").examples[0], films("w5 w6").examples[0].with_(group="b")
    exchanged = other.with_(answers=other.distractors, distractors=other.answers)
    apart = other.with_(answers=("w9",))
    assert said(lm, Task("t", (one, exchanged, apart))) == [0, 0, 2]


def test_likelihoods_of_texts(lm):
    bare = [Contrast("w5 w6", "w5 w9", "a"), Contrast("w5 w9", "W5 w6", "b"), Contrast("w5 w6", "w5 w8", "c")]
    assert said(lm, Task("t", tuple(bare))) == [0, 0, 2]
    after = [e.with_(prompt="w3") for e in bare]
    assert said(lm, Task("t", (*after, after[0].with_(prompt="w4", group="d")))) == [0, 0, 2, 3]


def test_counterfactuals_need_both_prompts(lm):
    one = Counterfactual("w5 w6", "w5 w7", ("w9",), ("w10",), "a")
    others = (one.with_(clean="W5 w6", group="b"), one.with_(corrupt="w5 w8", group="c"), one.swapped())
    assert said(lm, Task("t", (one, *others))) == [0, 0, 2, 0], "the other way round it is the same gap"
    assert said(lm, Task("t", (one, one.mislabelled()))) == [0, 0]


def test_groups_that_share_a_prompt_are_one_and_no_other(lm):
    task = films("w5 w6", "w5 w9", "w5 w6", "w5 w10", "w5 w9", groups=["a", "b", "c", "d", "b"])
    made = joined(task, measured(lm, task))
    assert made.groups == ("a", "b", "a", "d", "b")
    assert [e.question for e in made.examples] == [e.question for e in task.examples]
    chained = films("w5 w6", "w5 w9", "w5 w9", "w5 w10", groups=["a", "a", "b", "b"])
    assert set(joined(chained, measured(lm, chained)).groups) == {"a"}


def test_fitting_joins_them_and_says_so(lm):
    fitted = fit(lm, films("w5 w6", "w5 w9", "w5 w6", "w5 w10"))
    assert (fitted.distinct, fitted.joined) == (3, 1)
    assert fitted.task.groups == ("g0", "g1", "g0", "g3")
    assert "4 groups count as 3: their 4 examples are read after 3 different prompts" in str(fitted)
    plain = fit(lm, films("w5 w6", "w5 w9"))
    assert (plain.distinct, plain.joined, plain.why_joined) == (2, 0, "")
    assert "count as" not in str(plain)


def test_an_interval_is_over_prompts_and_not_over_copies(lm):
    """Ten copies of two prompts are as sure as two prompts are; as ten groups they would seem surer."""
    edit = Intervention.of("L0.resid_post add 1.0")
    two, ten = films("w5 w6", "w9 w10"), films(*["w5 w6", "w9 w10"] * 5)

    def interval(task):
        found = effects(lm, task, [edit])
        return Estimate.of(found.changes[0], found.groups)

    one, copies, naive = interval(fit(lm, two).task), interval(fit(lm, ten).task), interval(ten)
    assert (copies.low, copies.high) == pytest.approx((one.low, one.high), rel=1e-4)
    assert naive.high - naive.low < 0.5 * (copies.high - copies.low)
    same = interval(fit(lm, films(*["w5 w6"] * 4)).task)
    assert np.isnan(same.low)
    assert torch.isfinite(torch.tensor(same.mean))
