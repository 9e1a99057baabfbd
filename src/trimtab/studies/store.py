"""The index over a folder of runs: which runs there are, to be listed, found and resumed without opening each.

The files are the truth. The index, `index.sqlite` in that folder or a database at a URL, is compared with them whenever
it is asked: what was added, changed or deleted by hand is taken in, and an index that is missing, damaged or of another
trimtab is made anew. It knows what `run.json` says and nothing of what the stages found.
"""

from __future__ import annotations

import builtins
import errno
import logging
import math
import os
import random
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, URL, Engine, Select, create_engine, delete, event, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from trimtab.errors import FileError, MissingExtra, StudyError, TrimtabError, nearest
from trimtab.studies.folder import RUN, RunFolder, writing

T = TypeVar("T")

SCHEMA = 1  # in the table's name: another trimtab's table is not touched
INDEX = "index.sqlite"
TRIES = 8
WAIT = 10.0  # seconds for another process's transaction, which takes milliseconds
FOLDER = re.compile(r"\d{8}-\d{6}-.+-[0-9a-f]{6}")

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


class Store:
    """The runs in one folder.

    `root` is that folder: else the environment variable TRIMTAB_RUNS, else ./runs. `url` is that of a database for the
    index, such as postgresql://host/name: else TRIMTAB_STORE_URL, else `index.sqlite` in the folder. Nothing is written
    before there is a run.
    """

    def __init__(self, root: str | Path | None = None, url: str | None = None) -> None:
        self.root = Path(root or os.environ.get("TRIMTAB_RUNS") or "runs").absolute()
        self.url = url or os.environ.get("TRIMTAB_STORE_URL") or None
        self.damaged: Mapping[str, str] = {}
        """The folders whose run.json could not be read when the store last looked, and why."""
        self._engine: Engine | None = None
        self._inode = 0  # of the index when it was opened
        self._new = ""  # the run just created here, which no lost index has known

    def create(self, name: str, settings: Mapping[str, object]) -> RunFolder:
        """A new run, on disk and in the index."""
        folder = RunFolder.create(self.root, name, settings)
        self._new = folder.path.name
        self.update(folder)
        self._new = ""
        return folder

    def update(self, folder: RunFolder) -> None:
        """Take in what the files of a run say now.

        A run that is not in this store's folder is left out. An index that fails is told of in the log, not raised: it
        takes the run in when it is next asked. Only a full disk is a FileError here, and a URL that is none a
        StudyError.
        """
        if folder.path.absolute().parent != self.root:
            return
        row = self._row(folder.path.name)
        try:
            self._do(lambda session: session.merge(row))
        except FileError as error:
            if isinstance(error.__cause__, OSError):
                raise
            _log.warning("%s", error)

    def find(self, which: str) -> RunFolder:
        """A run by its folder's name, its id, the beginning of its id, "last", or a path."""
        return RunFolder.open(self.locate(which))

    def locate(self, which: str) -> Path:
        """The folder of the run that `find` finds, or of a damaged one. StudyError where there is none, or several."""
        which, rows = str(which), self._rows(self._runs())
        folders = {row.folder: row.path for row in rows} | {name: self.root / name for name in self.damaged}
        if which in folders:
            return folders[which]
        here = Path(which).absolute()
        if which == "last" and rows:
            return rows[0].path
        found = [row for row in rows if row.id == which] or [row for row in rows if which and row.id.startswith(which)]
        if len(found) == 1:
            return found[0].path
        if found:
            several = ", ".join(f"{row.id} ({row.name})" for row in found[:8]) + (", …" if len(found) > 8 else "")
            raise StudyError(f'"{which}" may be any of {len(found)} runs: {several}. Give more of the id')
        if which and ((here / RUN).is_file() or here in folders.values()):
            return here
        if not folders:
            raise StudyError(f'there is no run "{which}": there are no runs in {self.root}')
        hint = nearest(which, [*(row.id for row in rows), *folders, "last"])
        latest = ", ".join(f"{row.id} ({row.name})" for row in rows[:5]) or ", ".join(folders)
        raise StudyError(f'there is no run "{which}" in {self.root}{hint}. The latest: {latest}')

    def list(
        self,
        *,
        name: str | None = None,
        status: str | None = None,
        task: str | None = None,
        model: str | None = None,
        limit: int | None = None,
    ) -> builtins.list[Row]:
        """The runs that have exactly this name, status, task and model, the latest first."""
        query = self._runs()
        for column, wanted in ((Row.name, name), (Row.task, task), (Row.model, model)):
            query = query if wanted is None else query.where(column == _text(wanted))
        if status is not None:  # a run that says "running" may be an interrupted one, which is seen below
            query = query.where(Row.status.in_((status, "running") if status == "interrupted" else (status,)))
        found: builtins.list[Row] = []
        for row in self._rows(query):
            if limit is not None and len(found) >= limit:
                break
            if row.status == "running":
                with suppress(FileError):  # removed just now
                    row.status = RunFolder(row.path).state.status
            if status in (None, row.status):
                found.append(row)
        return found

    def rebuild(self) -> int:
        """Make the index anew from the files alone, and give the number of runs in it.

        A damaged folder is left out, and is told of in the log and in `damaged`.
        """
        if not self.root.is_dir():
            return 0

        def work(session: Session) -> int:
            session.execute(delete(Row).where(Row.root == str(self.root)))
            self._sync(session)
            return session.scalar(select(func.count()).select_from(Row).where(Row.root == str(self.root))) or 0

        count = self._do(work)
        for name, reason in self.damaged.items():
            _log.warning("left out %s: %s", name, reason)
        self._sweep()
        return count

    def remove(self, which: str) -> Path:
        """Delete a run, damaged or not, and give the path it had. StudyError while a process uses it."""
        path = self.locate(which)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.removed")
        with writing(path):
            if path.is_symlink():
                path.unlink()
            elif path.parent == self.root and path.name in self.damaged:
                if holder := RunFolder(path).holder():
                    raise StudyError(f"the run {path.name} is in use by process {holder}: wait until it has finished")
                path.rename(aside)
            else:
                with RunFolder.open(path).lock():
                    path.rename(aside)  # from here on it is gone, whatever becomes of the rest
            shutil.rmtree(aside, ignore_errors=True)
        self._rows(self._runs().limit(0))
        return path

    def unfinished(self, name: str, settings_hash: str) -> RunFolder | None:
        """The latest run of this name with these settings (by `folder.settings_hash`) that has not finished.

        It may be one that another process is at: then its `lock` says so.
        """
        query = self._runs().where(Row.name == _text(name), Row.settings_hash == settings_hash)
        rows = self._rows(query.where(Row.status != "finished").limit(1))
        return RunFolder(rows[0].path) if rows else None

    def _runs(self) -> Select[Row]:
        return select(Row).where(Row.root == str(self.root)).order_by(Row.created.desc(), Row.folder.desc())

    def _rows(self, query: Select[Row]) -> builtins.list[Row]:
        """What a query finds once the index agrees with the files."""

        def work(session: Session) -> builtins.list[Row]:
            self._sync(session)
            return list(session.scalars(query))

        if not self.root.is_dir():
            self.damaged = {}
            return []
        try:
            return self._do(work)
        except FileError as error:
            if self.url:
                raise
            self._engine = self._without(str(error))  # runs can be read though their index cannot, on a full disk say
            return self._do(work)

    def _sync(self, session: Session) -> None:
        """Bring the index to what the files say now."""
        here = Row.root == str(self.root)
        known = {row.folder: row.stamp for row in session.execute(select(Row.folder, Row.stamp).where(here))}
        seen, damaged = self._stamps(), {}
        for name, stamp in seen.items():
            if known.get(name) != stamp:
                try:
                    session.merge(self._row(name))
                except FileError as error:
                    damaged[name] = str(error)
        if gone := [name for name in known if name not in seen or name in damaged]:
            session.execute(delete(Row).where(here, Row.folder.in_(gone)))
        self.damaged = {name: reason for name, reason in damaged.items() if (self.root / name).is_dir()}

    def _stamps(self) -> dict[str, str]:
        """The folders of runs by name, each with the stamp of its `run.json`."""
        with os.scandir(self.root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        stamps = {name: _stamp(self.root / name) for name in names}
        return {name: stamp for name, stamp in stamps.items() if stamp or FOLDER.fullmatch(name)}

    def _row(self, name: str) -> Row:
        """The row of a run as its files are now; FileError where it is damaged."""
        stamp = _stamp(self.root / name)  # first, so that a change in between shows the next time
        state = RunFolder(self.root / name).stored
        return Row(
            root=str(self.root),
            folder=name,
            stamp=stamp,
            id=_text(state.id),
            name=_text(state.name),
            status=state.status,
            task=_text(state.task),
            model=_text(state.model),
            model_hash=_text(state.model_hash),
            settings_hash=state.settings_hash,
            verdict=None if state.verdict is None else _text(state.verdict),
            metrics={_text(key): x if math.isfinite(x) else str(x) for key, x in state.metrics.items()},
            created=_text(state.created),
            updated=_text(state.updated),
        )

    def _sweep(self) -> None:
        """Delete what killed processes left: runs half deleted, and runs half made that are older than an hour."""
        for path in self.root.glob(".*.removed"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(".*.new"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    shutil.rmtree(path, ignore_errors=True)

    def _do(self, work: Callable[[Session], T]) -> T:
        """Do something in one transaction: again where another process was in the way, and in an index made anew
        where this one is of no use."""
        mended = 0
        for attempt in range(TRIES):
            try:
                if self._engine is None:
                    self._engine = self._open()
                with Session(self._engine, expire_on_commit=False) as session, session.begin():
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
            if runs := len(self._stamps().keys() - {self._new}):
                _log.warning("made the index %s anew from the files, with %d runs", self._where(), runs)
        return engine

    def _mend(self, reason: str) -> None:
        """Make way for an index of use, where this one failed."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()
        if self.url or "no such table" in reason:
            return  # what is missing will be made; a database that somebody gave is not deleted
        if "readonly" in reason or "unable to open" in reason:
            self._engine = self._without(reason)
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


def _stamp(folder: Path) -> str:
    """What changes whenever `run.json` is written; empty where it is not there."""
    try:
        seen = (folder / RUN).stat()
    except OSError:
        return ""
    return f"{seen.st_mtime_ns}-{seen.st_size}-{seen.st_ino}"


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def _text(value: str) -> str:
    """Text as every database takes it: without NUL and lone surrogates."""
    return value.replace("\0", " ").encode("utf-8", "replace").decode()
