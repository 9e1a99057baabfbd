"""`trimtab ablation-study`: of scores and of sites, its plan and usage errors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.commands.calls import document
from tests.commands.test_search import _texts  # noqa: F401
from tests.locate.tinytasks import twins
from trimtab.errors import SiteError, TrimtabError
from trimtab.tasks.files import save_task
from trimtab.values.ablation_study import AblationStudy
from trimtab.values.scores import Scores


def test_an_ablation_study_of_scores_and_of_sites(call, tasks, tmp_path):
    scores = Scores(np.arange(8.0).reshape(1, 2, 4), ("example", "layer", "head"), {}, "L{layer}.head[{head}]")
    scores.save(tmp_path / "s")
    task = ("ablation-study", "--task", tasks / "one.jsonl", "--k", "1,2", "--draws", "1", "--length", "24")
    done = call(*task, "--scores", tmp_path / "s", "-o", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert AblationStudy.load(tmp_path / "a").sites == ("L1.head[3]", "L1.head[2]")
    sites = ("--sites", "L0.head[1]", "--sites", "L1.head[0]")
    found = document(call(*task, *sites, "--kinds", "zero", "--json"))
    assert found["kind"] == "ablation-study"
    assert {row["kind"] for row in found["rows"]} == {"zero"}


def test_the_plan_runs_nothing(call, tasks, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.counterfactuals", None)
    study = ("ablation-study", "--task", tasks / "one.jsonl", "--sites", "L0.head[1]", "--k", "1", "--draws", "4")
    plan = document(call(*study, "--dry-run", "--json"))["plan"]
    assert (plan["places"], plan["variants"]) == (["L0.head[1]"], 3 * 5)
    assert document(call(*study, "--k", "1,1", "--dry-run", "--json"))["plan"]["variants"] == 3 * 5


def test_twins_of_another_length_are_not_left_out(call, tmp_path):
    """The study reads clean prompts alone."""
    ragged = twins().of([e.with_(corrupt=f"{e.corrupt} w99") for e in twins().examples])
    save_task(ragged, tmp_path / "ragged.jsonl")
    study = ("ablation-study", "--task", tmp_path / "ragged.jsonl", "--part", "all")
    study = (*study, "--sites", "L0.head[1]", "--k", "1", "--draws", "1")
    assert document(call(*study, "--dry-run", "--json"))["plan"]["examples"] == 6
    found = document(call(*study, "--kinds", "zero", "--length", "24", "--json"))
    assert np.isfinite([row["change"] for row in found["rows"]]).all()


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("--sites", "L0.head[1]", "--k", "1", "--kinds", "zro"), TrimtabError, 'did you mean "zero"'),
        (("--sites", "L99.head[0]", "--k", "1"), SiteError, "out of range"),
        (("--sites", "L0.head[1]", "--k", "1,3"), TrimtabError, "3 parts are to be ablated"),
        (("--sites", "L0.head[0-2]", "--k", "1"), SiteError, "no other place like"),
    ],
)
def test_the_plan_refuses_what_the_study_refuses(call, tasks, words, error, said):
    study = ("ablation-study", "--task", tasks / "one.jsonl", *words)
    refused = [call(*study, *more).exception for more in ((), ("--dry-run",))]
    assert all(isinstance(each, error) and said in str(each) for each in refused)
    assert str(refused[0]) == str(refused[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ablation-study",), "--scores or with --sites"),
        (("ablation-study", "--sites", "L0.head[1]", "--k", "x"), "numbers"),
        (("ablation-study", "--sites", "L0.head[1]", "--k", "inf"), "numbers"),
        (("ablation-study", "--sites", "L0.head[1]", "--k", "1.5,2"), "whole numbers of 1 or more"),
        (("ablation-study", "--sites", "L0.head[1]", "--k", "0"), "whole numbers of 1 or more"),
        (("ablation-study", "--sites", "L0.head[1]", "--part", "x"), "a part is"),
    ],
)
def test_usage(call, tasks, words, said):
    done = call(*words, "--task", tasks / "one.jsonl")
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.replace("│", " ").split())
