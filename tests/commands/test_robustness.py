"""`trimtab robustness`, `entanglement` and `ablation-study`: files, pages, plans and usage errors."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.commands.calls import document
from tests.commands.test_search import _texts  # noqa: F401
from tests.locate.tinytasks import pairs
from trimtab.commands import robustness as module
from trimtab.errors import EditError
from trimtab.tasks.files import save_task
from trimtab.values.ablation_study import AblationStudy
from trimtab.values.edit import Edit, Intervention
from trimtab.values.entanglement import Entanglement
from trimtab.values.provenance import Provenance
from trimtab.values.robustness import Robustness
from trimtab.values.scores import Scores

VECTORS = ("--methods", "difference_of_means", "--sites", "L*.resid_post", "--length", "24", "--draws", "1")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    where = tmp_path_factory.mktemp("tasks")
    save_task(pairs(24, groups=8), where / "one.jsonl")
    save_task(pairs(24, groups=8, start=50, name="other"), where / "other.jsonl")
    return where


@pytest.fixture
def call(folder):
    app = typer.Typer()
    app.command("robustness")(module.robustness)
    app.command("entanglement")(module.entanglement)
    app.command("ablation-study")(module.ablation_study)
    return lambda *words: CliRunner().invoke(app, [*map(str, words), "--model", str(folder)])


def test_robustness_is_kept_with_its_page(call, tasks, tmp_path):
    files = ("-o", tmp_path / "r", "--html", tmp_path / "p.html")
    done = call("robustness", "--task", tasks / "one.jsonl", *VECTORS, *files)
    assert done.exit_code == 0, done.output
    kept = Robustness.load(tmp_path / "r")
    assert kept.methods == ("difference_of_means",)
    assert kept.sites == ("L0.resid_post", "L1.resid_post")
    assert "Robustness" in (tmp_path / "p.html").read_text(encoding="utf-8")
    line = shlex.split(kept.provenance.options["command"])
    assert line[:2] == ["trimtab", "robustness"]
    assert call(*line[1:], "-o", tmp_path / "again").exit_code == 0
    np.testing.assert_array_equal(Robustness.load(tmp_path / "again").effects, kept.effects)


def test_entanglement_of_vectors_made_here_and_of_files(call, tasks, tmp_path):
    Intervention.of(Edit("L1.resid_post", "add", np.ones(32))).save(tmp_path / "v")
    names = f"{tasks / 'one.jsonl'},{tasks / 'other.jsonl'}"
    words = ("entanglement", "--tasks", names, "--site", "L1.resid_post", "--vector", f"mine={tmp_path / 'v'}")
    done = call(*words, "--length", "24", "-o", tmp_path / "e")
    assert done.exit_code == 0, done.output
    kept = Entanglement.load(tmp_path / "e")
    assert kept.traits[2] == "mine"
    assert kept.matrix.shape == (3, 2)
    assert len(kept.random_kl) == 5
    assert call(*words, "--length", "24", "--draws", "0", "-o", tmp_path / "n").exit_code == 0
    assert Entanglement.load(tmp_path / "n").random_kl == ()
    moved = call(*words, "--length", "24", "--seed", "1", "-o", tmp_path / "m")
    assert moved.exit_code == 0, moved.output
    assert Entanglement.load(tmp_path / "m").groups == kept.groups  # of the same parts


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


def test_plans_run_nothing(call, tasks, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.counterfactuals", None)
    one = tasks / "one.jsonl"
    plan = document(call("robustness", "--task", one, *VECTORS, "--dry-run", "--json"))["plan"]
    assert plan["variants"] == 2 * (3 + 2)
    study = ("ablation-study", "--task", one, "--sites", "L0.head[1]", "--k", "1", "--draws", "4")
    assert document(call(*study, "--dry-run", "--json"))["plan"]["variants"] == 3 * 5
    crossed = ("entanglement", "--tasks", one, "--site", "L1.resid_post", "--dry-run")
    assert "Nothing was run" in call(*crossed).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("robustness", *VECTORS, "--on", "train"), "validation or test"),
        (("robustness", "--methods", "scale", "--sites", "L0.head"), "takes sites alone"),
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


def test_entanglement_needs_a_site_or_files(call, tasks):
    done = call("entanglement", "--tasks", tasks / "one.jsonl")
    assert done.exit_code == 2
    wrong = call("entanglement", "--tasks", tasks / "one.jsonl", "--vector", "mine")
    assert wrong.exit_code == 2


def test_vectors_of_other_models_and_of_one_name_are_refused(call, tasks, tmp_path):
    mine = Intervention.of(Edit("L1.resid_post", "add", np.ones(32)))
    mine.save(tmp_path / "mine")
    mine.with_(provenance=Provenance.now("other", model_hash="ab" * 32)).save(tmp_path / "other")
    Intervention.of(Edit("L1.resid_post", "add", np.ones(16))).save(tmp_path / "narrow")
    words = ("entanglement", "--tasks", tasks / "one.jsonl", "--length", "24", "--vector")
    other = call(*words, f"a={tmp_path / 'other'}")
    assert other.exit_code == 1
    assert "a vector of another model means nothing here" in str(other.exception)
    assert call(*words, f"a={tmp_path / 'other'}", "--any-model").exit_code == 0
    assert isinstance(call(*words, f"a={tmp_path / 'narrow'}", "--dry-run").exception, EditError)
    twice = call(*words, f"a={tmp_path / 'mine'}", "--vector", f"a={tmp_path / 'mine'}")
    assert (twice.exit_code, "twice" in twice.output) == (2, True)
    made_here = call(*words, f"{tasks / 'one.jsonl'}={tmp_path / 'mine'}", "--site", "L1.resid_post")
    assert made_here.exit_code == 2
    assert "another NAME" in " ".join(made_here.output.replace("│", " ").split())
