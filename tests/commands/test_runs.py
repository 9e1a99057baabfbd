"""`trimtab runs`: what is in a folder of runs, as tables for people and one document for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands.calls import call, document
from trimtab.commands.runs import compare, flat
from trimtab.studies.state import RunState, StageState
from trimtab.studies.store import Store
from trimtab.values import Outcome

FOUND = Outcome("logit_diff", "logits", np.array([1.0, 2.0]), np.array([0.0, 2.0]))
NESTED = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
)


@pytest.fixture(autouse=True)
def _no_store(monkeypatch):
    for name in ("TRIMTAB_RUNS", "TRIMTAB_STORE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def ran(store, name, seed, effect, verdict="found"):
    folder = store.create(name, {"task": "sentiment", "model": "tiny", "search": {"seed": seed, "points": [1, 2]}})
    with folder.lock():
        folder.begin(model_hash="0123456789abcdef", notes="made in a test")
        folder.write("screen", FOUND, "i", 12.34)
        folder.write("verdict", FOUND.with_(unit=f"nats{seed}"), "i", 0.5)
        folder.finish("finished", verdict=verdict, metrics={"effect": effect, "kl": float("nan")})
    store.update(folder)
    return folder


@pytest.fixture
def two(store):
    return ran(store, "first", 0, 1.5), ran(store, "second", 1, 2.0)


def words(result):
    return " ".join(result.stdout.split())


def test_no_runs(tmp_path):
    done = call("runs", "list")
    assert (done.exit_code, done.stdout) == (0, f"no runs in {tmp_path / 'runs'}\n")
    assert document(call("runs", "list", "--json")) == {"store": str(tmp_path / "runs"), "runs": [], "damaged": {}}
    assert not (tmp_path / "runs").exists()
    for command in ("show", "path"):
        done = call("runs", command, "last")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith('error: there is no run "last"')


def test_the_list_as_a_document(two):
    found = document(call("runs", "list", "--json"))
    assert [run["name"] for run in found["runs"]] == ["second", "first"]
    first = found["runs"][1]
    state = two[0].state
    assert first == {
        "id": state.id,
        "name": "first",
        "status": "finished",
        "task": "sentiment",
        "model": "tiny",
        "verdict": "found",
        "created": state.created,
        "updated": state.updated,
        "metrics": {"effect": 1.5, "kl": None},
        "path": str(two[0].path),
    }


def test_the_list_as_a_table_and_its_filters(store, two):
    store.create("third", {})
    done = call("runs", "list", env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [row.id for row in store.list()]
    assert "finished" in done.stdout
    assert words(call("runs", "list", "--name", "first")).count(":") == 1
    names = [run["name"] for run in document(call("runs", "list", "--status", "new", "--json"))["runs"]]
    assert names == ["third"]
    assert call("runs", "list", "--name", "fourth").stdout.startswith("no runs like that in ")
    done = call("runs", "list", "--status", "done")
    assert (done.exit_code, done.stdout) == (2, "")
    assert 'no status "done"' in " ".join(done.stderr.split())


def test_damaged_runs_are_told_of_beside_the_answer(two):
    (two[0].path / "run.json").write_text("{")
    done = call("runs", "list")
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr.startswith(f"left out {two[0].path.name}: ")
    assert document(call("runs", "list", "--json"))["damaged"].keys() == {two[0].path.name}
    done = call("runs", "show", two[0].path.name)
    assert done.exit_code == 1
    assert f"trimtab runs remove {two[0].path.name}" in done.stderr


def test_showing_a_run(two):
    done = call("runs", "show", "last", env={"COLUMNS": "200"})
    shown = words(done)
    for part in (
        f"second {two[1].state.id}: finished",
        "model tiny 0123456789ab",
        "verdict found",
        "notes made in a test",
        "effect 2",
        "kl –",
        "screen 12.3 s",
        "search.seed 1",
        "search.points [1, 2]",
        "stages/screen.safetensors",
    ):
        assert part in shown
    assert "in use" not in shown
    assert "error" not in shown
    found = document(call("runs", "show", two[1].state.id[:5], "--json"))
    assert found["settings"]["search"] == {"seed": 1, "points": [1, 2]}
    assert found["stages"]["screen"]["seconds"] == 12.34
    assert found["metrics"] == {"effect": 2.0, "kl": None}
    assert found["path"] == str(two[1].path)
    assert found["files"]["run.json"] == (two[1].path / "run.json").stat().st_size


def test_a_run_in_use_and_one_that_was_interrupted(store):
    folder = store.create("x", {})
    with folder.lock():
        folder.begin()
        assert f"in use by process {os.getpid()}" in words(call("runs", "show", "last"))
    assert "x " + folder.state.id + ": interrupted" in words(call("runs", "show", "last"))


def test_comparing_two_runs(two):
    a, b = (folder.state for folder in two)
    found = document(call("runs", "diff", a.id, b.id, "--json"))
    assert found == {
        "runs": [a.id, b.id],
        "facts": {"name": ["first", "second"]},
        "settings": {"search.seed": [0, 1]},
        "stages": {"verdict": [a.stages["verdict"].digest, b.stages["verdict"].digest]},
        "metrics": {"effect": [1.5, 2.0, 0.5], "kl": [None, None, None]},
    }
    shown = words(call("runs", "diff", a.id, "last", env={"COLUMNS": "120"}))
    assert "search.seed 0 1" in shown
    assert f"verdict {a.stages['verdict'].digest[:12]} {b.stages['verdict'].digest[:12]}" in shown
    assert "effect 1.5 2 +0.5" in shown
    assert "kl – – –" in shown
    assert "no setting and no stage differs" in words(call("runs", "diff", "last", "last"))


def test_what_only_one_run_has():
    stage = StageState("i", "d", 1.0, "t")
    a = RunState("a", "x", {"a": True, "b": {"c": 1}, "n": None}, "", "", metrics={"m": 1.0}, stages={"screen": stage})
    b = RunState("b", "x", {"a": 1, "b": {"d": 1}}, "", "", metrics={"k": 2.0}, verdict="found")
    found = compare(a, b)
    assert found["facts"] == {"verdict": [None, "found"]}
    assert found["settings"] == {"a": [True, 1], "b.c": [1, None], "b.d": [None, 1]}
    assert found["stages"] == {"screen": ["d", None]}
    assert found["metrics"] == {"m": [1.0, None, None], "k": [None, 2.0, None]}


@given(settings=st.dictionaries(st.text("abc", min_size=1), NESTED, max_size=3))
def test_flat_settings_hold_every_value_under_its_path(settings):
    found = flat(settings)
    for name, value in found.items():
        inside = settings
        for part in name.split("."):
            inside = inside[part]
        assert inside == value
        assert not isinstance(value, dict) or value == {}
    a = RunState("a", "x", settings, "", "")
    assert compare(a, a)["settings"] == {}


def test_paths_and_rebuilding(two, store, tmp_path):
    assert call("runs", "path", "last").stdout == f"{two[1].path}\n"
    assert document(call("runs", "path", two[0].path.name, "--json")) == {"path": str(two[0].path)}
    (two[1].path / "run.json").unlink()
    done = call("runs", "rebuild")
    assert done.stdout == f"runs in {store.root}: 1, left out: 1\n"
    found = document(call("runs", "rebuild", "--json"))
    assert (found["runs"], found["damaged"].keys()) == (1, {two[1].path.name})


def test_another_folder_of_runs(tmp_path, monkeypatch):
    there = Store(tmp_path / "there")
    folder = there.create("x", {})
    for words_ in (["list", "--json"], ["show", "last", "--json"], ["path", "last", "--json"], ["rebuild", "--json"]):
        assert call("runs", *words_, "--store", there.root).exit_code == 0
    assert call("runs", "path", "last").exit_code == 1
    monkeypatch.setenv("TRIMTAB_RUNS", str(there.root))
    assert call("runs", "path", "last").stdout == f"{folder.path}\n"
    assert call("runs", "path", "last", "--store", tmp_path / "nowhere").exit_code == 1


def test_with_json_an_error_is_the_one_document(two):
    done = call("runs", "show", "zz", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"].startswith('there is no run "zz"')


# Removing
# ---------------------------------------------------------------------------------------------------------------------


def test_removing_needs_a_yes_where_nobody_can_be_asked(two):
    done = call("runs", "remove", "last")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--yes" in done.stderr
    assert two[1].path.is_dir()


def test_removing_several(two, store):
    third = ran(store, "third", 2, 0.0)
    done = call("runs", "remove", "last", two[0].state.id, third.path.name, "--yes", "--json")
    assert document(done) == {"removed": [str(third.path), str(two[0].path)]}  # the one that was named twice is once
    assert [row.name for row in store.list()] == ["second"]
    assert call("runs", "remove", "--yes", two[1].path).stdout == f"removed {two[1].path}\n"


def test_nothing_is_removed_where_one_name_is_wrong(two):
    done = call("runs", "remove", "last", "zz", "--yes")
    assert done.exit_code == 1
    assert all(folder.path.is_dir() for folder in two)
    assert call("runs", "remove", "--yes").exit_code == 2


def test_a_run_in_use_stays(two):
    with two[0].lock():
        done = call("runs", "remove", two[0].state.id, "--yes")
    assert done.exit_code == 1
    assert f"in use by process {os.getpid()}" in done.stderr
    assert two[0].path.is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals there")
@pytest.mark.parametrize(("answer", "left", "rc"), [("n\n", 2, 1), ("\n", 2, 1), ("y\n", 1, 0)])
def test_in_a_terminal_it_asks(two, store, answer, left, rc):
    import pty

    ours, theirs = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    run = [sys.executable, "-m", "trimtab.cli", "runs", "remove", "last"]
    with subprocess.Popen(
        run, env=env, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, answer.encode())
        stdout, stderr = process.communicate()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == rc
    assert two[1].path.name in stderr
    assert ("nothing was removed" in stderr) == (rc == 1)
    assert stdout == (f"removed {two[1].path}\n" if rc == 0 else "")
    assert len(store.list()) == left


# The shell
# ---------------------------------------------------------------------------------------------------------------------


def completed(line, **environment):
    words_ = {"_TRIMTAB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")} | words_ | environment
    code = "import sys; sys.argv = ['trimtab']; from trimtab.cli import app; app(prog_name='trimtab')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_the_shell_completes_ids(two, store):
    a, b = (folder.state.id for folder in two)
    assert completed("trimtab runs show ") == [b, a, "last"]
    assert completed(f"trimtab runs remove {a[:5]}") == [a]
    assert completed(f"trimtab runs diff {a} la") == ["last"]
    assert completed("trimtab runs path ", TRIMTAB_RUNS="/nowhere") == []
    assert completed("trimtab runs path ", TRIMTAB_STORE_URL="nonsense") == []
    assert set(completed("trimtab runs ")) >= {"list", "show", "diff", "remove", "rebuild", "path"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['trimtab', 'runs', '--help']\n"
        "from trimtab.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'numpy', 'rich', 'pandas', 'sqlalchemy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_listing_imports_no_torch(two):
    code = (
        "import sys; sys.argv = ['trimtab', 'runs', 'show', 'last']\n"
        "from trimtab.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'xarray'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
