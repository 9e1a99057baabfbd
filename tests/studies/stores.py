"""Stores of runs, for the tests of the store and of its index."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from trimtab.studies.index import Row

ASKED = {"task": "sentiment", "model": "tiny", "seed": 1}


REBUILT = r"made the index .*index\.sqlite anew from the files, with {} runs"


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


TABLE = Row.__tablename__


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
