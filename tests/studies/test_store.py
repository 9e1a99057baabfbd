"""The store: at every moment it says of the runs what their files say, whatever became of them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.studies.stores import ASKED, DAMAGE, integrity, listed, notes, ran
from trimtab.errors import FileError, StudyError
from trimtab.studies.folder import RunFolder
from trimtab.studies.state import STATUSES, settings_hash
from trimtab.studies.store import Store


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    for name in ("TRIMTAB_RUNS", "TRIMTAB_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def test_nothing_is_written_before_there_is_a_run(store, caplog):
    assert (store.list(), store.rebuild(), store.unfinished("x", "y")) == ([], 0, None)
    with pytest.raises(StudyError, match='there is no run "last": there are no runs in'):
        store.find("last")
    assert not store.root.exists()
    store.create("x", {})
    assert notes(caplog) == []
    assert integrity(store.root) == ("ok", "wal")


def test_where_the_runs_are(tmp_path, monkeypatch):
    assert Store().root == tmp_path / "runs"
    monkeypatch.setenv("TRIMTAB_RUNS", str(tmp_path / "there"))
    assert Store().root == tmp_path / "there"
    assert Store("here").root == tmp_path / "here"
    monkeypatch.setenv("TRIMTAB_STORE_URL", "sqlite:///other.sqlite")
    assert Store().url == "sqlite:///other.sqlite"
    assert Store(url="sqlite:///third.sqlite").url == "sqlite:///third.sqlite"


def test_a_row_says_what_run_json_says(store):
    folder = store.create("study", ASKED)
    with folder.lock():
        folder.begin(model_hash="abc", task="other")
        folder.finish("finished", verdict="found", metrics={"effect": 1.5, "kl": float("nan"), "x": float("inf")})
    store.update(folder)
    (row,) = store.list()
    state = folder.state
    for name in ("id", "name", "status", "task", "model", "model_hash", "settings_hash", "verdict", "created"):
        assert getattr(row, name) == getattr(state, name), name
    assert row.updated == state.updated
    assert row.path == folder.path
    assert repr(row.numbers) == repr({"effect": 1.5, "kl": float("nan"), "x": float("inf")})


def test_the_latest_comes_first_and_filters_hold_together(store):
    a = ran(store, "a")
    b = ran(store, "b", "failed", {"task": "other", "model": "tiny"}, error="x")
    c = store.create("a", {"task": {"name": "other"}, "model": "large"})
    assert listed(store) == [c.path, b.path, a.path]
    assert listed(store, limit=2) == [c.path, b.path]
    assert listed(store, limit=0) == []
    assert listed(store, name="a") == [c.path, a.path]
    assert listed(store, status="failed") == [b.path]
    assert listed(store, status="new", name="a") == [c.path]
    assert listed(store, task="other") == [c.path, b.path]
    assert listed(store, model="tiny", task="other") == [b.path]
    assert listed(store, name="A") == listed(store, name="%") == []


def test_a_running_run_that_nobody_holds_is_listed_as_interrupted(store):
    folder = store.create("study", ASKED)
    with folder.lock():
        folder.begin()
        store.update(folder)
        assert [row.status for row in store.list()] == ["running"]
        assert listed(store, status="running") == [folder.path]
        assert listed(store, status="interrupted") == []
    assert [row.status for row in store.list()] == ["interrupted"]
    assert listed(store, status="running") == []
    assert listed(store, status="interrupted") == [folder.path]
    assert listed(store, status="interrupted", limit=1) == [folder.path]


def ids(monkeypatch, *given):
    left = iter(given)
    real = os.urandom
    monkeypatch.setattr("secrets.token_hex", lambda n: next(left) if n == 3 else real(n).hex())


def test_every_way_to_name_a_run(store, monkeypatch):
    ids(monkeypatch, "aa1111", "aa2222", "bb1111")
    first, second, third = (store.create(name, ASKED) for name in ("one", "two", "three"))
    assert store.find(first.path.name) == first
    assert store.find("aa2222") == second
    assert store.find("b") == third
    assert store.find("last") == third
    assert store.find(str(first.path)) == first
    assert store.find(f"runs/{first.path.name}").path == first.path
    assert store.find(f"{first.path}/").path == first.path


def test_a_run_elsewhere_is_found_by_its_path_and_left_out_of_the_index(store, tmp_path):
    other = RunFolder.create(tmp_path / "elsewhere", "x", {})
    store.create("y", {})
    store.update(other)
    assert store.find(str(other.path)) == other
    assert [row.name for row in store.list()] == ["y"]


def test_names_that_fit_no_run_or_several(store, monkeypatch):
    ids(monkeypatch, "aa1111", "aa2222", "bb1111")
    for name in ("one", "two", "three"):
        store.create(name, ASKED)
    with pytest.raises(StudyError, match=r'"aa" may be any of 2 runs: aa2222 \(two\), aa1111 \(one\)\. Give more'):
        store.find("aa")
    with pytest.raises(StudyError, match=r'no run "bb1112".*did you mean "bb1111".*latest: bb1111 \(three\), aa2222'):
        store.find("bb1112")
    with pytest.raises(StudyError, match='did you mean "last"'):
        store.find("lest")
    for nothing in ("", "zz", "../runs", "%", "one"):
        with pytest.raises(StudyError, match="there is no run"):
            store.find(nothing)


def test_what_an_earlier_run_left_unfinished(store):
    key = settings_hash(ASKED)
    assert store.unfinished("study", key) is None
    ran(store)
    assert store.unfinished("study", key) is None
    first = ran(store, status="failed")
    assert store.unfinished("study", key) == first
    second = store.create("study", dict(reversed(ASKED.items())))
    assert store.unfinished("study", key) == second
    assert store.unfinished("other", key) is None
    assert store.unfinished("study", settings_hash(ASKED | {"seed": 2})) is None
    with second.lock():
        second.begin()
        store.update(second)
        with pytest.raises(StudyError, match="in use by process"), store.unfinished("study", key).lock():
            pass
        second.finish("finished")
    assert store.unfinished("study", key) == first  # seen though nobody told the index


def test_removing(store):
    first, second = ran(store), ran(store)
    assert store.remove(first.state.id) == first.path
    assert listed(store) == [second.path]
    assert {p.name for p in store.root.iterdir() if not p.name.startswith(("index", ".index"))} == {second.path.name}
    with pytest.raises(StudyError, match="there is no run"):
        store.remove(first.path.name)


def test_a_run_in_use_is_not_removed(store):
    folder = store.create("x", {})
    with folder.lock():
        with pytest.raises(StudyError, match="in use by process"):
            store.remove("last")
        (folder.path / "run.json").write_text("{")
        with pytest.raises(StudyError, match="in use by process"):
            store.remove(folder.path.name)
    assert folder.path.is_dir()


def test_damaged_runs_can_be_removed_and_nothing_else(store, tmp_path):
    folder = store.create("x", {})
    (folder.path / "run.json").write_text("{")
    empty = store.root / "20250101-000000-x-abcdef"
    empty.mkdir()
    (store.root / "notes").mkdir()
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileError, match=f"trimtab runs remove {folder.path.name}"):
        store.find(folder.path.name)
    for which in ("notes", str(tmp_path / "mine"), str(store.root / "notes")):
        with pytest.raises(StudyError, match="there is no run"):
            store.remove(which)
    assert store.remove(folder.path.name) == folder.path
    assert store.remove(str(empty)) == empty
    assert store.list() == []
    assert dict(store.damaged) == {}
    assert (tmp_path / "mine").is_dir()
    assert (store.root / "notes").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_of_a_link_to_a_run_only_the_link_is_removed(store, tmp_path):
    other = RunFolder.create(tmp_path / "archive", "x", {})
    store.create("y", {})
    link = store.root / other.path.name
    link.symlink_to(other.path)
    assert store.find(other.state.id).path == link
    store.remove(other.state.id)
    assert not [p for p in store.root.iterdir() if p.is_symlink()]
    assert other.state.name == "x"
    assert [row.name for row in store.list()] == ["y"]


def test_a_run_is_gone_though_deleting_it_was_cut_short(store, monkeypatch):
    folder = ran(store)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        store.remove("last")
    assert store.list() == []
    assert [p for p in store.root.iterdir() if p.name.endswith(".removed")]
    assert store.rebuild() == 0
    assert not [p for p in store.root.iterdir() if p.name.endswith(".removed")]
    assert not folder.path.exists()


def test_rebuilding_skips_what_is_damaged_and_says_so(store, caplog):
    good = ran(store, "good")
    bad, newer, none = (store.create(name, {}) for name in ("bad", "newer", "none"))
    (bad.path / "run.json").write_bytes(b"\xff\x00")
    found = json.loads((newer.path / "run.json").read_text())
    (newer.path / "run.json").write_text(json.dumps(found | {"version": 99}))
    (none.path / "run.json").unlink()
    (store.root / "a note.txt").touch()
    assert store.rebuild() == 1
    assert listed(store) == [good.path]
    assert store.damaged.keys() == {bad.path.name, newer.path.name, none.path.name}
    assert "install a newer trimtab" in store.damaged[newer.path.name]
    assert len(notes(caplog)) == 3
    (newer.path / "run.json").write_text(json.dumps(found))
    assert store.rebuild() == 2
    assert store.damaged.keys() == {bad.path.name, none.path.name}


def test_a_run_that_is_damaged_after_it_was_listed_is_listed_no_more(store):
    a, b = ran(store, "a"), ran(store, "b")
    assert listed(store) == [b.path, a.path]
    (a.path / "run.json").write_text("{")
    assert listed(store) == [b.path]
    assert store.damaged.keys() == {a.path.name}
    shutil.rmtree(a.path)
    assert listed(store) == [b.path]
    assert dict(store.damaged) == {}


class Anything(RuleBasedStateMachine):
    """The files and the index are changed in any order, by the store and behind its back."""

    @initialize(asked=st.just(None))
    def start(self, asked):
        import tempfile

        self.root = Path(tempfile.mkdtemp())
        self.store = Store(self.root)

    def some(self, number):
        folders = sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        return folders[number % len(folders)] if folders else None

    @rule(name=st.sampled_from(["a", "b"]), seed=st.integers(0, 1))
    def create(self, name, seed):
        self.store.create(name, {"seed": seed})

    @rule(number=st.integers(0, 9), status=st.sampled_from(["finished", "failed", "interrupted", "running"]))
    def run(self, number, status, told=True):
        path = self.some(number)
        try:
            folder = RunFolder.open(path) if path else None
        except FileError:
            return
        if folder is None:
            return
        with folder.lock():
            folder.begin(model=f"m{number}")
            if status != "running":
                folder.finish(status, verdict=status, metrics={"n": number})
        if told:
            self.store.update(folder)

    @rule(number=st.integers(0, 9), status=st.sampled_from(["finished", "failed"]))
    def run_untold(self, number, status):
        self.run(number, status, told=False)

    @rule(number=st.integers(0, 9))
    def remove(self, number):
        if path := self.some(number):
            assert self.store.remove(path.name) == path
            assert not path.exists()

    @rule(number=st.integers(0, 9))
    def delete_by_hand(self, number):
        if path := self.some(number):
            shutil.rmtree(path)

    @rule(number=st.integers(0, 9), text=st.sampled_from(["", "{}", "[1]", '{"version": 9}']))
    def damage_a_run(self, number, text):
        if path := self.some(number):
            (path / "run.json").write_text(text)

    @rule(number=st.integers(0, 9))
    def rename_by_hand(self, number):
        if path := self.some(number):
            path.rename(path.with_name(f"{path.name[:-7]}x{path.name[-7:]}"))

    @rule(kind=st.sampled_from(sorted(DAMAGE)))
    def damage_the_index(self, kind):
        if not (self.root / "index.sqlite").is_file() or kind in ("cut", "garbage", "empty", "missing"):
            if (self.root / "index.sqlite").is_file():
                DAMAGE[kind](self.root)
            return
        try:
            DAMAGE[kind](self.root)
        except sqlite3.Error:
            return  # it is of no use already

    @rule()
    def come_anew(self):
        self.store = Store(self.root)

    @rule()
    def rebuild(self):
        assert self.store.rebuild() == len(self.truth())

    def truth(self):
        found = {}
        for path in self.root.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                try:
                    state = RunFolder.open(path).state
                except FileError:
                    continue
                found[path.name] = (state.id, state.name, state.status, state.model, state.verdict, dict(state.metrics))
        return found

    @invariant()
    def the_index_says_what_the_files_say(self):
        if not hasattr(self, "root"):
            return
        rows, truth = self.store.list(), self.truth()
        assert {r.folder: (r.id, r.name, r.status, r.model, r.verdict, r.numbers) for r in rows} == truth
        assert [r.created for r in rows] == sorted((r.created for r in rows), reverse=True)
        damaged = {p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")} - truth.keys()
        assert self.store.damaged.keys() == damaged
        for status in STATUSES:
            wanted = {name for name, row in truth.items() if row[2] == status}
            assert {r.folder for r in self.store.list(status=status)} == wanted

    def teardown(self):
        if hasattr(self, "root"):
            shutil.rmtree(self.root, ignore_errors=True)


TestAnything = Anything.TestCase


TestAnything.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
