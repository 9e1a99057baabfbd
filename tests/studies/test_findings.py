"""How to do a study again: what is printed is run, and finds the same."""

from __future__ import annotations

import shlex

import pytest

from tests.commands.calls import call, document, saved
from tests.studies.small import SMALL, contrast, digests, study
from trimtab.errors import StudyError
from trimtab.report.study import study_html
from trimtab.report.study_markdown import study_markdown
from trimtab.studies.findings import findings
from trimtab.studies.folder import RunFolder
from trimtab.studies.settings import Settings
from trimtab.studies.store import Store
from trimtab.studies.study import Study


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def brought(model, tmp_path_factory):
    """A study of a task that was made in Python and bears the name of a built-in one."""
    given = {**SMALL, "task": "sentiment", "model": str(model), "toward": "negative", "split": "of no file of ours"}
    task = contrast().with_(name="sentiment", poles=("w10 said", "w12 said"))
    return Study(Settings.of(**given), task=task, store=Store(tmp_path_factory.mktemp("my runs"))).run()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIMTAB_RUNS", raising=False)


def test_the_command_does_a_task_made_in_python_again(brought):
    words = shlex.split(findings(brought.folder).command)
    assert words[:3] == ["trimtab", "run", str(brought.folder.path / "task.jsonl")]
    done = document(call(*words[1:], "--json"))
    again = brought.store.find(done["run"])
    assert {name: stage.digest for name, stage in again.state.stages.items()} == digests(brought)


def test_the_python_does_a_task_made_in_python_again(brought, capsys):
    known: dict[str, Study] = {}
    exec(findings(brought.folder).python, known)
    assert capsys.readouterr().out == f"{brought.verdict}\n"
    assert digests(known["study"]) == digests(brought)
    assert known["study"].folder.path.parent == brought.store.root


def test_the_intervention_is_found_from_anywhere(brought, capsys):
    known: dict[str, object] = {}
    exec(findings(brought.folder).reuse, known)
    assert known["found"] == brought.intervention
    assert capsys.readouterr().out.strip()


def test_the_store_is_named_where_it_is_not_the_default(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "runs", "truth", Settings.of(task="truth").plain())
    assert findings(folder).command == "trimtab run truth"
    assert findings(folder).reuse == "", "there is no intervention yet"
    monkeypatch.setenv("TRIMTAB_RUNS", "others")
    assert shlex.split(findings(folder).command) == ["trimtab", "run", "truth", "--store", str(tmp_path / "runs")]
    assert f"store={str(tmp_path / 'runs')!r}" in findings(folder).python


def test_a_path_that_python_would_read_otherwise(tmp_path):
    folder = RunFolder.create(tmp_path, "mine", Settings.of(task='C:\\new "tasks"\\mine.csv').plain())
    given: list[str] = []
    written = findings(folder).python.replace("import trimtab", "").replace("trimtab.study", "ask")
    with pytest.raises(AttributeError):
        exec(written, {"ask": lambda task, **settings: given.append(task)})
    assert given == ['C:\\new "tasks"\\mine.csv']


def test_where_no_command_can_be_written_that_is_said(tmp_path):
    def mine(logits, rows):
        return logits[:, -1, 3]

    def stop(stage, what, share):
        raise KeyboardInterrupt

    made = study(tmp_path, contrast().with_(metric=mine))
    with pytest.raises(KeyboardInterrupt):
        made.run(stop)
    found = findings(made.folder)
    assert (found.command, found.python) == ("", "")
    for page in (study_html(found), study_markdown(found)):
        assert "The command cannot be written: its task was made in Python with a function as its metric" in page
    refused = call("runs", "reproduce", "last", "--store", tmp_path)
    assert refused.exit_code == 1
    assert "with a function as its metric" in " ".join(refused.stderr.split())


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    for name in ("missing.csv", "tasks/missing"):
        with pytest.raises(StudyError, match=f"there is no file {name}"):
            Study(Settings.of(task=name), store=Store(tmp_path / "runs")).run()
