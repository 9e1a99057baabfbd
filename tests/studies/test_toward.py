"""A study steers to the side that is asked for: the same task with its two sides exchanged."""

from __future__ import annotations

import numpy as np
import pytest

import trimtab
from tests.model.tinies import fresh
from tests.studies.small import SMALL, contrast, counterfactual, study
from trimtab.errors import StudyError
from trimtab.report.study import study_html
from trimtab.studies.findings import command, python
from trimtab.studies.plan import plan
from trimtab.studies.settings import Settings
from trimtab.studies.study import Study
from trimtab.tasks.files import save_task


def task():
    return contrast().with_(poles=("tens", "twelves"), instruction="w10 w10")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A study towards each side, in one store."""
    root, told = tmp_path_factory.mktemp("runs"), []
    made = [study(root, task(), toward=side) for side in ("positive", "negative")]
    for one in made:
        one.run(lambda stage, what, share: told.append((stage, what)))
    assert not any(what.startswith("as in") for _, what in told), "nothing is taken over from the other side"
    return made


def test_the_effect_is_of_the_exchanged_number(both):
    """By hand: plain passes over the questions, and the log odds of what were the distractors."""
    positive, negative = both
    assert [e.question for e in negative.parts.test.examples] == [e.question for e in positive.parts.test.examples]
    np.testing.assert_allclose(negative.evaluation.outcome.before, -positive.evaluation.outcome.before, atol=1e-4)
    lm = negative.lm
    prompts = lm.prompts([e.question for e in negative.parts.test.examples])
    logits = lm.run(prompts, edit=negative.intervention).logits[:, -1]
    after = (logits[:, lm.token("w12")] - logits[:, lm.token("w10")]).numpy()
    np.testing.assert_allclose(negative.evaluation.outcome.after, after, atol=1e-4)
    assert negative.search.picked is not None
    assert negative.search.points[negative.search.picked].effect.low > 0


def test_the_page_says_to_which_side_and_why_no_instruction_is_compared(both):
    positive, negative = both
    assert positive.evaluation.prompt_only is not None
    assert negative.evaluation.prompt_only is None
    assert "an instruction of made-up asks for tens, and this study steers to twelves" in study_html(negative.findings)
    assert negative.findings.name == "made-up towards twelves"
    assert "made-up towards twelves" in negative.verdict.sentences[0]
    assert negative.intervention.name.startswith("made-up towards twelves")
    assert "towards" not in positive.findings.name + positive.verdict.sentences[0]


def test_it_is_part_of_what_is_printed_to_do_it_again(both):
    positive, negative = both
    assert "--toward negative" in command(negative.settings)
    assert "toward='negative'" in python(negative.settings)
    assert "toward" not in command(positive.settings)


def test_an_instruction_that_is_given_asks_for_the_side_that_is_steered_to(tmp_path):
    path = tmp_path / "made-up.jsonl"
    save_task(task(), path)
    given = {**SMALL, "task": str(path), "toward": "negative"}
    lm = fresh("llama", check=False)
    asked = [Study(Settings.of(**given, **more), lm=lm).task.instruction for more in ({}, {"instruction": "w12 w12"})]
    assert asked == ["", "w12 w12"]
    made = {
        side: trimtab.study(task(), model=lm, toward=side, instruction="w12 w12") for side in ("positive", "negative")
    }
    assert {side: study.task.instruction for side, study in made.items()} == {
        "positive": "w12 w12",
        "negative": "w12 w12",
    }


@pytest.mark.parametrize("do", [plan, lambda made: made.run()], ids=["plan", "run"])
def test_a_counterfactual_task_has_no_other_side(tmp_path, do):
    with pytest.raises(StudyError, match=r"made-up is counterfactual.*Leave it out, and take what is found the other"):
        do(study(tmp_path, counterfactual(), toward="negative"))


def test_no_other_word_is_taken(tmp_path):
    with pytest.raises(StudyError, match=r"toward: .*'positive' or 'negative'.*got 'down'"):
        study(tmp_path, toward="down")
