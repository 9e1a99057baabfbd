"""The index: at every moment it says of the runs what their files say, whatever became of it or of them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from trimtab.errors import FileError, MissingExtra, StudyError
from trimtab.studies.folder import STATUSES, RunFolder, settings_hash
from trimtab.studies.store import Row, Store

ASKED = {"task": "sentiment", "model": "tiny", "seed": 1}
REBUILT = r"made the index .*index\.sqlite anew from the files, with {} runs"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    for name in ("TRIMTAB_RUNS", "TRIMTAB_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def ran(store, name="study", status="finished", asked=ASKED, **end):
    folder = store.create(name, asked)
    with folder.lock():
        folder.begin()
        folder.finish(status, **end)
    store.update(folder)
    return folder


def listed(store, **wanted):
    return [row.path for row in store.list(**wanted)]


def notes(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "trimtab.studies"]


def integrity(root):
    with closing(sqlite3.connect(root / "index.sqlite")) as base:
        return base.execute("PRAGMA integrity_check").fetchone()[0], base.execute("PRAGMA journal_mode").fetchone()[0]


# Creating, listing, finding
# ---------------------------------------------------------------------------------------------------------------------


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


# Removing
# ---------------------------------------------------------------------------------------------------------------------


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


# Damage
# ---------------------------------------------------------------------------------------------------------------------


def missing(root):
    for path in root.glob("index.sqlite*"):
        path.unlink()


def garbage(root):
    missing(root)
    (root / "index.sqlite").write_bytes(b"this is not a database " * 500)


def empty(root):
    missing(root)
    (root / "index.sqlite").touch()


def cut(root):
    data = (root / "index.sqlite").read_bytes()
    missing(root)
    (root / "index.sqlite").write_bytes(data[: len(data) // 2])


def execute(*statements):
    def damage(root):
        with closing(sqlite3.connect(root / "index.sqlite")) as base:
            for statement in statements:
                base.execute(statement)
            base.commit()

    return damage


TABLE = Row.__tablename__
DAMAGE = {
    "missing": missing,
    "garbage": garbage,
    "empty": empty,
    "cut": cut,
    "dropped": execute(f"DROP TABLE {TABLE}"),
    "old schema": execute(f"ALTER TABLE {TABLE} RENAME TO trimtab_runs_0"),
    "old columns": execute(f"ALTER TABLE {TABLE} DROP COLUMN verdict"),
    "bad json": execute(f"UPDATE {TABLE} SET metrics = '{{'"),
}


@pytest.mark.parametrize("opened", [True, False], ids=["in use", "opened after"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_an_index_of_no_use_is_made_anew_with_one_note(store, kind, opened, caplog):
    a, b = ran(store, "a", verdict="found"), ran(store, "b")
    if not opened:
        store = Store(store.root)
    with closing(sqlite3.connect(store.root / "index.sqlite")) as base:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    DAMAGE[kind](store.root)
    assert listed(store) == [b.path, a.path]
    assert [row.verdict for row in store.list()] == [None, "found"]
    assert len(notes(caplog)) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "with 2 runs" in notes(caplog)[0]
    assert store.find("last") == b
    c = ran(store, "c")
    assert listed(Store(store.root)) == [c.path, b.path, a.path]
    assert integrity(store.root) == ("ok", "wal")
    assert len(notes(caplog)) == 1


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_new_run_finds_its_way_into_an_index_of_no_use(store, kind):
    a = ran(store, "a")
    DAMAGE[kind](store.root)
    b = ran(store, "b")
    assert listed(store) == [b.path, a.path]


def test_an_index_is_not_made_anew_without_need(store, caplog):
    ran(store)
    for _ in range(3):
        Store(store.root).list()
    assert notes(caplog) == []


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


def test_an_index_that_another_process_writes_is_waited_for(store, caplog, monkeypatch):
    folder = ran(store)
    waits = []
    monkeypatch.setattr("trimtab.studies.store.WAIT", 0.01)
    store = Store(store.root)
    with closing(sqlite3.connect(store.root / "index.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def wait(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                other.execute("COMMIT")

        monkeypatch.setattr("time.sleep", wait)
        store.update(folder)
        assert len(waits) == 3
        assert notes(caplog) == []
        other.execute("BEGIN IMMEDIATE")
        assert listed(store) == [folder.path]  # read from the files after a while
        assert "is busy with other processes" in notes(caplog)[0]
        assert integrity(store.root) == ("ok", "wal")


def test_an_index_that_cannot_be_written_is_done_without(store, caplog):
    a, b = ran(store, "a"), ran(store, "b")
    missing(store.root)
    (store.root / "index.sqlite").mkdir()
    other = Store(store.root)
    assert listed(other) == [b.path, a.path]
    other.update(a)
    assert other.find("last") == b
    assert len(notes(caplog)) == 1
    assert "cannot be written" in notes(caplog)[0]


def test_a_folder_of_somebody_else_can_be_read(store, caplog, monkeypatch):
    a = ran(store, "a")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    assert listed(Store(store.root)) == [a.path]
    assert "Permission denied" in notes(caplog)[0]


def test_a_full_disk_is_one_error(store, caplog):
    folder = ran(store)
    store.list()

    @event.listens_for(store._engine, "connect")
    def small(connection, _):
        connection.execute("PRAGMA max_page_count = 1")

    with folder.lock():
        folder.begin()
        folder.finish("finished", metrics={f"m{n}": n for n in range(5000)})
    for work in (lambda: store.update(folder), store.rebuild):
        with pytest.raises(FileError, match=r"the disk is full: .*index\.sqlite could not be written, with .* MB free"):
            work()
    assert notes(caplog) == []
    assert store.find("last") == folder  # reading goes on without an index
    assert len(store.list()[0].numbers) == 5000
    assert len(notes(caplog)) == 1
    assert len(Store(store.root).list()[0].numbers) == 5000


def test_an_io_error_is_a_full_disk_only_where_there_is_no_room(store, caplog, monkeypatch):
    folder = ran(store)

    def failing(*_):
        raise sqlite3.OperationalError("disk I/O error")

    def spoil():
        store.list()
        event.listen(store._engine, "connect", failing)

    spoil()
    store.update(folder)  # taken for damage: deleted and made anew
    assert len(notes(caplog)) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    spoil()
    with pytest.raises(FileError, match=r"the disk is full: .* with 0\.0 MB free"):
        store.update(folder)
    assert listed(store) == [folder.path]
    assert (store.root / "index.sqlite").is_file()


# Two at once
# ---------------------------------------------------------------------------------------------------------------------

BUSY = """
    import sys
    from trimtab.studies.store import Store
    root, name = sys.argv[1:]
    store = Store(root)
    for n in range(20):
        folder = store.create(f"{name}", {"n": n})
        with folder.lock():
            folder.begin(model=name)
            store.update(folder)
            assert [row.id for row in store.list(status="running", name=name)] == [folder.state.id]
            folder.finish("finished", metrics={"n": n})
        store.update(folder)
    assert len(store.list(name=name)) == 20
"""


@pytest.mark.parametrize("before", ["nothing", "garbage"])
def test_processes_share_a_store(tmp_path, before):
    root = tmp_path / "runs"
    if before != "nothing":
        ran(Store(root), "before")
    if before == "garbage":
        garbage(root)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    run = [sys.executable, "-c", textwrap.dedent(BUSY), root]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*run, name], env=env, **pipe) for name in ("left", "right")]
    for process in both:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    store = Store(root)
    rows = {row.folder: (row.name, row.status, row.numbers) for row in store.list()}
    assert len(rows) == 40 + (before != "nothing")
    for name in ("left", "right"):
        mine = [numbers["n"] for n, status, numbers in rows.values() if (n, status) == (name, "finished")]
        assert sorted(mine) == list(range(20))
    assert integrity(root) == ("ok", "wal")
    assert store.rebuild() == len(rows)
    assert {row.folder: (row.name, row.status, row.numbers) for row in store.list()} == rows


# A database at a URL
# ---------------------------------------------------------------------------------------------------------------------


def test_one_database_serves_several_folders_of_runs(tmp_path, caplog):
    url = f"sqlite:///{tmp_path / 'team.sqlite'}"
    here, there = Store(tmp_path / "here", url), Store(tmp_path / "there", url)
    a, b = ran(here, "a"), ran(there, "b")
    assert (listed(here), listed(there)) == ([a.path], [b.path])
    assert here.rebuild() == 1
    here.remove("last")
    assert (listed(here), listed(there)) == ([], [b.path])
    assert not (tmp_path / "here" / "index.sqlite").exists()
    assert notes(caplog) == []


def test_a_database_that_somebody_gave_is_never_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("important " * 100)
    store = Store(tmp_path / "runs", f"sqlite:///{tmp_path / 'thesis.txt'}")
    folder = store.create("x", {})  # the run counts, the index only helps to find it
    assert folder.state.name == "x"
    with pytest.raises(FileError, match=r"the index sqlite:.*thesis\.txt cannot be used: file is not a database"):
        store.list()
    assert (tmp_path / "thesis.txt").read_text() == "important " * 100


@pytest.mark.parametrize("url", ["nonsense", "nonsense://host/name"])
def test_a_url_that_is_none(tmp_path, url):
    with pytest.raises(StudyError, match="must be like postgresql://user@host/name"):
        Store(tmp_path / "runs", url).create("x", {})


def test_postgresql_without_its_driver(tmp_path):
    pytest.importorskip("sqlalchemy")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match=r"trimtab\[postgres\]"):
            Store(tmp_path / "runs", "postgresql://u:secret@localhost/x").create("x", {})
    else:
        pytest.skip("the driver is installed")


def test_the_table_is_one_that_postgresql_takes():
    made = str(CreateTable(Row.__table__).compile(dialect=postgresql.dialect()))
    assert "metrics JSON NOT NULL" in made
    assert "PRIMARY KEY (root, folder)" in made
    assert "verdict VARCHAR," in made


@pytest.mark.skipif("TRIMTAB_TEST_POSTGRES" not in os.environ, reason="needs a server: its URL in this variable")
def test_a_store_on_a_real_postgresql(tmp_path):
    url = os.environ["TRIMTAB_TEST_POSTGRES"]
    store = Store(tmp_path / "runs", url)
    a = ran(store, "é", verdict="found \0 here", metrics={"x": float("nan")})
    b = ran(store, "b", "failed")
    store = Store(tmp_path / "runs", url)
    assert listed(store) == [b.path, a.path]
    assert [row.verdict for row in store.list()] == [None, "found   here"]
    assert store.find("last") == b
    assert store.unfinished("b", settings_hash(ASKED)) == b
    store.remove("last")
    shutil.rmtree(a.path)
    assert store.list() == []


# Whatever happens
# ---------------------------------------------------------------------------------------------------------------------


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
