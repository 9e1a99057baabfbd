"""The database of the index: its table, opening it, mending what is of no use, and waiting for other processes.

It knows what a row holds and not where it comes from; `studies.store` compares rows with the files.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, URL, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from trimtab.errors import FileError, MissingExtra, StudyError, TrimtabError
from trimtab.studies.disk import writing

T = TypeVar("T")

SCHEMA = 1  # in the table's name: another trimtab's table is not touched
INDEX = "index.sqlite"
TRIES = 8
WAIT = 10.0  # seconds for another process's transaction, which takes milliseconds

_log = logging.getLogger("trimtab.studies")


class Base(DeclarativeBase):
    """The tables of the index."""


class Row(Base):
    """A run as the index knows it: what `run.json` said when its stamp was read.

    A database at a URL may serve many folders of runs: `root` is which one. `metrics` holds NaN and the infinities,
    which JSON lacks, as text; `numbers` gives floats.
    """

    __tablename__ = f"trimtab_runs_{SCHEMA}"

    root: Mapped[str] = mapped_column(primary_key=True)
    folder: Mapped[str] = mapped_column(primary_key=True)
    stamp: Mapped[str]
    id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
    task: Mapped[str]
    model: Mapped[str]
    model_hash: Mapped[str]
    settings_hash: Mapped[str] = mapped_column(index=True)
    verdict: Mapped[str | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[str] = mapped_column(index=True)
    updated: Mapped[str]

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.root) / self.folder

    @property
    def numbers(self) -> dict[str, float]:
        """The headline numbers by name."""
        return {name: float(value) for name, value in self.metrics.items()}


class Index:
    """The index of the runs in the folder `root`: `index.sqlite` there, or the database at `url`.

    `known` counts the runs that an index which was lost would have held, for what is said of it.
    """

    def __init__(self, root: Path, url: str | None, known: Callable[[], int]) -> None:
        self.root, self.url, self.known = root, url, known
        self.engine: Engine | None = None
        self._inode = 0  # of the index when it was opened

    def do(self, work: Callable[[Session], T]) -> T:
        """Do something in one transaction: again where another process was in the way, and in an index made anew
        where this one is of no use."""
        mended = 0
        for attempt in range(TRIES):
            try:
                if self.engine is None:
                    self.engine = self._open()
                with Session(self.engine, expire_on_commit=False) as session, session.begin():
                    return work(session)
            except (DatabaseError, ValueError) as error:
                if isinstance(error, TrimtabError):
                    raise
                if _busy(error):
                    time.sleep(random.uniform(0.005, 0.02) * 2**attempt)
                elif self._full(_reason(error)):
                    with writing(self.root / INDEX):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                elif mended == 2:
                    raise FileError(f"the index {self._where()} cannot be used: {_reason(error)}") from error
                else:
                    mended += 1
                    self._mend(_reason(error))
        raise FileError(f"the index {self._where()} is busy with other processes: try again in a while")

    def read_only(self, reason: str) -> None:
        """Go on without a file: runs can be read though their index cannot be written, on a full disk say."""
        self.engine = self._without(reason)

    def _full(self, reason: str) -> bool:
        """Whether SQLite failed for want of room, which it calls an I/O error where it cannot map its files."""
        if "disk I/O error" in reason and not self.url:
            with suppress(OSError):
                return shutil.disk_usage(self.root).free < 2**20
        return "disk is full" in reason

    def _open(self) -> Engine:
        """Connect to the index, and make it where it is not there."""
        if self.url:
            return self._made(_connect(self.url))
        path = self.root / INDEX
        try:
            with self._making():
                self._inode = _inode(path)
                engine = self._made(_connect(URL.create("sqlite", database=str(path))))
                self._inode = _inode(path)
                return engine
        except PermissionError as error:
            return self._without(error.strerror or str(error))

    def _made(self, engine: Engine) -> Engine:
        if engine.dialect.name == "sqlite":
            with suppress(sqlite3.Error), closing(engine.raw_connection()) as raw:  # what is damaged shows below
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # processes read while another one writes
        if not inspect(engine).has_table(Row.__tablename__):
            Base.metadata.create_all(engine)
            if runs := self.known():
                _log.warning("made the index %s anew from the files, with %d runs", self._where(), runs)
        return engine

    def _mend(self, reason: str) -> None:
        """Make way for an index of use, where this one failed."""
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.dispose()
        if self.url or "no such table" in reason:
            return  # what is missing will be made; a database that somebody gave is not deleted
        if "readonly" in reason or "unable to open" in reason:
            self.engine = self._without(reason)
            return
        path = self.root / INDEX
        with self._making(), writing(path):
            if _inode(path) == self._inode:  # else another process has done so
                for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                    name.unlink(missing_ok=True)

    def _without(self, reason: str) -> Engine:
        """An index in memory, for runs in a folder that cannot be written."""
        _log.warning(
            "the index %s cannot be written: the files of all runs are read instead (%s)", self._where(), reason
        )
        engine = _connect(URL.create("sqlite"))
        Base.metadata.create_all(engine)
        return engine

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Only one process at a time makes or deletes an index."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / ".index.lock")
        try:
            with writing(self.root / INDEX, Timeout, PermissionError):
                lock.acquire(timeout=60)
        except Timeout:
            raise FileError(f"the index {self._where()} is being made by another process: try again later") from None
        try:
            yield
        finally:
            lock.release()

    def _where(self) -> str:
        return make_url(self.url).render_as_string(hide_password=True) if self.url else str(self.root / INDEX)


def _connect(url: str | URL) -> Engine:
    try:
        url = make_url(url)
        if url.get_backend_name() != "sqlite":
            return create_engine(url, poolclass=NullPool)
        pool = NullPool if url.database else StaticPool
        options = {"timeout": WAIT} if url.database else {"check_same_thread": False}
        engine = create_engine(url, poolclass=pool, connect_args=options)
    except ModuleNotFoundError as error:
        raise MissingExtra("postgres", "an index in this database") from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise StudyError(f"the URL of the index must be like postgresql://user@host/name ({_reason(error)})") from None

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # one that begins by reading could not wait for its turn to write

    return engine


def _busy(error: Exception) -> bool:
    """Whether another process was in the way, so that trying again may do."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)  # PostgreSQL: serialization failure, deadlock
    return isinstance(error, IntegrityError) or state in ("40001", "40P01") or "is locked" in str(error)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0
