"""`trimtab entanglement`: vectors made here and those of files, its plan and usage errors."""

from __future__ import annotations

import numpy as np

from tests.commands.test_search import _texts  # noqa: F401
from trimtab.errors import EditError
from trimtab.values.edit import Edit, Intervention
from trimtab.values.entanglement import Entanglement
from trimtab.values.provenance import Provenance


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


def test_the_plan_runs_nothing(call, tasks, monkeypatch):
    monkeypatch.setattr("trimtab.model.lm.LM.counterfactuals", None)
    crossed = ("entanglement", "--tasks", tasks / "one.jsonl", "--site", "L1.resid_post", "--dry-run")
    assert "Nothing was run" in call(*crossed).stdout


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
