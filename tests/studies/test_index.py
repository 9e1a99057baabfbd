"""The index: of no use, busy, full or at a URL, it is mended or done without."""

from __future__ import annotations

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
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from tests.studies.stores import ASKED, DAMAGE, garbage, integrity, listed, missing, notes, ran
from trimtab.errors import FileError, MissingExtra, StudyError
from trimtab.studies.index import Row
from trimtab.studies.state import settings_hash
from trimtab.studies.store import Store


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    for name in ("TRIMTAB_RUNS", "TRIMTAB_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


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


def test_an_index_that_another_process_writes_is_waited_for(store, caplog, monkeypatch):
    folder = ran(store)
    waits = []
    monkeypatch.setattr("trimtab.studies.index.WAIT", 0.01)
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

    @event.listens_for(store._index.engine, "connect")
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
        event.listen(store._index.engine, "connect", failing)

    spoil()
    store.update(folder)  # taken for damage: deleted and made anew
    assert len(notes(caplog)) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    spoil()
    with pytest.raises(FileError, match=r"the disk is full: .* with 0\.0 MB free"):
        store.update(folder)
    assert listed(store) == [folder.path]
    assert (store.root / "index.sqlite").is_file()


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
