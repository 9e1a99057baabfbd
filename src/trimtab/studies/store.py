"""The index over a folder of runs: which runs there are, to be listed, found and resumed without opening each.

The files are the truth. The index, `index.sqlite` in that folder or a database at a URL, is compared with them whenever
it is asked: what was added, changed or deleted by hand is taken in, and an index that is missing, damaged or of another
trimtab is made anew. It knows what `run.json` says and nothing of what the stages found.
"""

from __future__ import annotations

import builtins
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from trimtab.errors import FileError, StudyError, nearest
from trimtab.studies.disk import writing
from trimtab.studies.folder import RunFolder
from trimtab.studies.index import Index, Row
from trimtab.studies.state import RUN

FOLDER = re.compile(r"\d{8}-\d{6}-.+-[0-9a-f]{6}")

_log = logging.getLogger("trimtab.studies")


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
        self._index = Index(self.root, self.url, lambda: len(self._stamps().keys() - {self._new}))
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
            self._index.do(lambda session: session.merge(row))
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

        count = self._index.do(work)
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
            return self._index.do(work)
        except FileError as error:
            if self.url:
                raise
            self._index.read_only(str(error))
            return self._index.do(work)

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


def _stamp(folder: Path) -> str:
    """What changes whenever `run.json` is written; empty where it is not there."""
    try:
        seen = (folder / RUN).stat()
    except OSError:
        return ""
    return f"{seen.st_mtime_ns}-{seen.st_size}-{seen.st_ino}"


def _text(value: str) -> str:
    """Text as every database takes it: without NUL and lone surrogates."""
    return value.replace("\0", " ").encode("utf-8", "replace").decode()
