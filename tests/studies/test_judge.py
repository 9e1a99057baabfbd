"""The evaluation: what cannot be measured is listed with its reason; an instruction is compared where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.studies.small import contrast, counterfactual, study
from trimtab.evaluate import texts
from trimtab.evaluate.effect import effects
from trimtab.report.study import study_html
from trimtab.report.study_markdown import study_markdown
from trimtab.studies import judge
from trimtab.studies.context import Context
from trimtab.studies.judge import _entangled, _prompt_only, instructed
from trimtab.tasks import builtin
from trimtab.tasks.example import Contrast
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.outcome import Outcome

PUSH = Intervention.of("L0.resid_post add 0.5")


def context_of(tmp_path, task, **settings):
    made = study(tmp_path, task, **settings)
    return Context(made.lm, made.parts, made.settings, lambda what, share: None)


def test_tasks_that_do_not_fit_are_listed_with_their_reasons(tmp_path, monkeypatch):
    """To a model of made-up words the tasks in English are all the same few unknown ones."""
    context = context_of(tmp_path, contrast(), others=4)
    others = [name for name in builtin.names() if builtin.task(name).shape == "contrast"]
    rows, left_out = _entangled(context, PUSH)
    assert {row.task for row in rows} | set(left_out) == set(others)
    assert left_out
    assert "\n" not in "".join(left_out.values())
    assert left_out["sentiment"].startswith("0 of 4 examples fit llama; left out: 4 an answer")
    assert "bring" not in left_out["sentiment"]
    assert "chat template" in left_out["refusal"]
    own = Task("sentiment", contrast().examples)
    monkeypatch.setattr(builtin, "task", lambda name: own if name == "sentiment" else builtin.honesty.honesty())
    monkeypatch.setattr(builtin, "names", lambda: ["honesty", "sentiment"])
    rows, left_out = _entangled(context, PUSH)
    assert ([row.task for row in rows], list(left_out)) == (["sentiment"], ["honesty"])
    assert _entangled(context_of(tmp_path, contrast(), others=0), PUSH) == ((), {})


def test_items_are_those_that_no_search_reads(tmp_path, monkeypatch):
    read, real = [], judge.capability
    monkeypatch.setattr(judge, "capability", lambda lm, items, *rest: read.extend(items) or real(lm, items, *rest))
    study(tmp_path, contrast(), others=0, capability=400).run()
    assert {*read} == {*texts.capability("test")}
    assert not {*read} & {*texts.capability("search")}


def test_an_instruction_goes_before_both_prompts(tmp_path):
    task = counterfactual().with_(instruction="w14 w15 w12")
    context = context_of(tmp_path, task)
    lm, examples = context.lm, context.parts.test.examples
    found = _prompt_only(context, effects(lm, measure(lm, context.parts.test, on="gap"), [PUSH]))
    a, d = lm.token("w10"), lm.token("w12")

    def gap(head):
        sides = []
        for side in ("clean", "corrupt"):
            logits = lm.run([f"{head}{getattr(e, side)}" for e in examples]).logits[:, -1]
            sides.append((logits[:, a] - logits[:, d]).double().numpy())
        return sides[0] - sides[1]

    assert isinstance(found, Outcome)
    np.testing.assert_allclose(found.before, gap(""), atol=1e-4)
    np.testing.assert_allclose(found.after, gap("w14 w15 w12 "), atol=1e-4)
    assert np.abs(found.after - found.before).max() > 1e-3
    assert found.groups == context.parts.test.groups


def test_spans_of_words_that_the_instruction_says_too_are_no_trouble():
    task = counterfactual().with_(instruction="w20 w20")
    assert all(e.clean.startswith("w20 w20 w3") and not e.spans for e in instructed(task).examples)
    chat = task.with_(chat=True)
    assert instructed(chat).system == "w20 w20"
    assert instructed(chat).examples == task.examples


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (counterfactual(), "made-up has no instruction"),
        (contrast(), "made-up has no instruction"),
        (
            Task(
                "bare", tuple(Contrast(e.positive, e.negative, e.group) for e in contrast().examples), instruction="w5"
            ),
            "bare is read off its texts as they are",
        ),
    ],
)
def test_where_there_is_no_instruction_it_says_so(tmp_path, task, reason):
    context = context_of(tmp_path, task)
    base = effects(context.lm, measure(context.lm, context.parts.test, on="gap"), [Intervention()])
    assert reason in str(_prompt_only(context, base))


def test_the_report_says_what_was_not_measured(tmp_path):
    made = study(tmp_path, contrast(), others=2).run()
    assert "made-up has no instruction" in made.evaluation.no_prompt
    assert made.evaluation.prompt_only is None
    page, text = study_html(made.findings), study_markdown(made.findings)
    for shown in (page, text):
        assert "made-up has no instruction" in shown
        if made.search.picked is not None:
            assert all(name in shown for name in made.evaluation.left_out)
            assert "examples fit llama" in shown
    assert bool(made.evaluation.left_out) == (made.search.picked is not None)
    asked = study(tmp_path, contrast().with_(instruction="w14 w15"), others=0).run()
    assert asked.evaluation.no_prompt == ""
    assert "There is no comparison with an instruction" not in study_html(asked.findings)


def test_most_counterfactual_tasks_can_be_asked_for_in_words():
    without = {name for name in builtin.names() if not builtin.task(name).instruction}
    assert without == {"docstring", "induction"}
