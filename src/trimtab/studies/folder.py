"""One run of a study on disk: a folder whose files are the truth.

`run.json` says what the run is and which stages are finished, and is always the old file or the whole new one. A stage
is written first to its own file and then into `run.json`, so that a process killed between the two does that stage
again. It knows the values it keeps, and neither what a stage does nor that there are other runs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import socket
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from trimtab.errors import FileError, StudyError, nearest
from trimtab.values.content import digest_of
from trimtab.values.edit import Edit, Intervention
from trimtab.values.patch import WeightPatch
from trimtab.values.provenance import plain
from trimtab.values.saved import Saved
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import TypeAdapter

T = TypeVar("T", bound=Saved)
Status = Literal["new", "running", "finished", "failed", "interrupted"]
STATUSES: tuple[str, ...] = get_args(Status)

VERSION = 1
RUN, LOG, LOCK, HOLDER = "run.json", "log.jsonl", "run.lock", "run.pid"
MARK = ".inputs"
KNOWN = ("model", "model_hash", "task", "notes")
"""What a run may be told when it begins."""
OURS = (RUN, LOG, LOCK, HOLDER, "intervention.json", "intervention.safetensors", "stages", "scores")
FULL = (errno.ENOSPC, errno.EDQUOT)
GRACE = 0.25  # seconds: whoever asks whether a run is in use holds its lock for an instant

_held: set[str] = set()  # the folders that this process has locked


@dataclass(frozen=True)
class StageState:
    """A finished stage: the hash of what went in, the digest of the value that came out, the SHA-256 of its file."""

    inputs: str
    digest: str
    seconds: float
    finished: str
    sha256: str = ""


@dataclass(frozen=True)
class RunState:
    """What `run.json` says of a run. Times are ISO times in UTC; `metrics` are the headline numbers by name."""

    id: str
    name: str
    settings: Mapping[str, Any]
    created: str
    updated: str
    status: Status = "new"
    task: str = ""
    model: str = ""
    model_hash: str = ""
    verdict: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, StageState] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str | None = None
    version: int = VERSION

    @property
    def settings_hash(self) -> str:
        """The hash of the settings: that of `settings_hash(settings)`."""
        return settings_hash(self.settings)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. Every method reads the files anew, and every file is written whole or not at all.

    Methods that write raise FileError where they cannot: on a full disk it says which file and how much is free.
    """

    path: Path

    @classmethod
    def create(cls, root: str | Path, name: str, settings: Mapping[str, object]) -> RunFolder:
        """Make root/<YYYYmmdd-HHMMSS>-<slug of the name>-<id>/ with a `run.json` of status "new"."""
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise StudyError(f"the name of a run is one line of text that can be printed, got {name!r}")
        root, known = Path(root), _plain_settings(settings)
        now = datetime.now(UTC)
        time = now.isoformat(timespec="milliseconds")
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            taken = {folder.name[-6:] for folder in root.iterdir()}
            id_ = next(new for new in iter(lambda: secrets.token_hex(3), "") if new not in taken)
            path = root / f"{now:%Y%m%d-%H%M%S}-{_slug(name)}-{id_}"
            task, model = _named(known.get("task")), _named(known.get("model"))
            state = RunState(id_, name, known, time, time, task=task, model=model)
            new = root / f".{path.name}.new"  # made aside, so that no folder without its run.json is ever seen
            try:
                new.mkdir()
                _write(new / RUN, _dump(state))
                new.rename(path)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder; FileError where there is none, or its `run.json` is damaged or of a newer trimtab."""
        folder = cls(Path(path))
        folder._read()
        return folder

    @property
    def state(self) -> RunState:
        """What `run.json` says now; a run that says "running" while no process holds it is an interrupted one."""
        state = self._read()
        return replace(state, status="interrupted") if state.status == "running" and not self.holder() else state

    @property
    def stored(self) -> RunState:
        """What `run.json` says, as it stands there."""
        return self._read()

    def holder(self) -> str:
        """The process that has locked the run, such as "12345" or "12345 on host", or an empty text."""
        if os.path.realpath(self.path) in _held:
            return str(os.getpid())
        try:
            holder = (self.path / HOLDER).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        except OSError:  # a folder that only its owner can write: no telling, so let it be in use
            pass
        else:
            lock.release()
            return ""  # left behind by a process that has died
        pid, _, host = holder.strip().partition(" ")
        return pid if host == socket.gethostname() else f"{pid} on {host}"

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Hold the run for this process; StudyError at once where a process that lives holds it."""
        from filelock import FileLock, Timeout

        self._read()
        lock, key = FileLock(self.path / LOCK), os.path.realpath(self.path)
        try:
            with writing(self.path / LOCK, Timeout):
                lock.acquire(timeout=GRACE, poll_interval=0.01)
        except Timeout:
            raise StudyError(
                f"the run {self.path.name} is in use by process {self.holder() or '(unknown)'}: "
                "wait until it has finished, or end that process"
            ) from None
        try:
            self._read()  # it may have been removed just before
            _write(self.path / HOLDER, f"{os.getpid()} {socket.gethostname()}".encode())
            _held.add(key)
            yield self
        finally:
            _held.discard(key)
            (self.path / HOLDER).unlink(missing_ok=True)
            lock.release()

    def begin(self, **known: object) -> None:
        """Set the status to "running", and what is known by now: `model`, `model_hash`, `task`, `notes`.

        The verdict, numbers and error of an earlier attempt are dropped; finished stages stay. The run must be locked.
        """
        if unknown := [key for key in known if key not in KNOWN]:
            raise StudyError(
                f"a run does not know {unknown[0]!r}{nearest(unknown[0], KNOWN)}: it may be told {', '.join(KNOWN)}"
            )
        if os.path.realpath(self.path) not in _held:
            raise StudyError(f"the run {self.path.name} begins only where it is locked: with folder.lock(): …")
        before = self._read()
        if before.status == "running":
            self.log("interrupted", last_seen=before.updated)
        told: dict[str, Any] = {key: str(value) for key, value in known.items() if key != "notes"}
        if "notes" in known:
            notes: Any = known["notes"]
            told["notes"] = (notes,) if isinstance(notes, str) else tuple(map(str, notes or ()))
        self._sweep(before)
        self._change(status="running", verdict=None, metrics={}, error=None, **told)

    def has(self, stage: str, inputs: str) -> bool:
        """Whether the stage is finished for inputs of this hash, and its file is still what was written."""
        known = self._read().stages.get(stage)
        return known is not None and known.inputs == inputs and known.sha256 == _sha256(self._stage(stage))

    def write(self, stage: str, value: Saved, inputs: str, seconds: float) -> None:
        """Keep what a stage found from inputs of this hash. Its checkpoints are removed."""
        path, state = self._stage(stage), self._read()
        self._save(value, path)
        try:
            done = StageState(str(inputs), value.digest, float(seconds), _now(), _sha256(path) or "")
            self._change(stages={**state.stages, stage: done})
        except OSError:  # what run.json does not know is of no use: rather give the room back
            path.unlink(missing_ok=True)
            raise
        shutil.rmtree(self._partial(stage), ignore_errors=True)

    def read(self, stage: str, kind: type[T]) -> T:
        """What a finished stage found; FileError where it has not finished, or its file is not what was written."""
        known, path = self._read().stages.get(stage), self._stage(stage)
        if known is None:
            raise FileError(f'the run {self.path.name} has not finished the stage "{stage}": run it again to go on')
        value = kind.load(path)
        if value.digest != known.digest:
            raise FileError(f"{path} is not the one that run.json knows: run it again to redo this stage")
        return value

    def forget(self, *stages: str) -> None:
        """Drop what stages found, because what goes into them has changed, and checkpoints that may be of that."""
        state, files = self._read(), [(self._stage(stage), self._partial(stage)) for stage in stages]
        if state.stages.keys() & set(stages):
            self._change(stages={name: known for name, known in state.stages.items() if name not in stages})
        with writing(self.path):
            for path, partial in files:
                path.unlink(missing_ok=True)
                if not (partial / MARK).is_file():  # `checkpoint` sees to those that say what they are of
                    shutil.rmtree(partial, ignore_errors=True)

    def finish(
        self,
        status: Status,
        *,
        verdict: str | None = None,
        metrics: Mapping[str, float] | None = None,
        error: str | None = None,
    ) -> None:
        """Set the last status, "finished", "failed" or "interrupted", with the verdict and the headline numbers."""
        if status not in ("finished", "failed", "interrupted"):
            raise StudyError(f'a run ends "finished", "failed" or "interrupted", got {status!r}')
        numbers = {str(name): float(value) for name, value in (metrics or {}).items()}
        self._change(
            status=status,
            verdict=None if verdict is None else str(verdict),
            metrics=numbers,
            error=None if error is None else str(error),
        )

    def log(self, event: str, **facts: object) -> None:
        """Append one line of JSON with the time to `log.jsonl`; what JSON does not know is written as text."""
        path, stamp = self.path / LOG, {"time": _now(), "event": event}
        line = _json({**stamp, **facts, **stamp}) + b"\n"
        with writing(path), path.open("a+b", buffering=0) as file:
            before = file.seek(0, io.SEEK_END)
            if before:
                file.seek(before - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line  # after the torn line of a killed process
            try:
                while line:  # a disk that is nearly full takes a part
                    line = line[file.write(line) or 0 :]
            except OSError:
                file.truncate(before)
                raise

    def events(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl` in order, without those that a killed process left torn."""
        try:
            lines = (self.path / LOG).read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FileError(f"cannot read {self.path / LOG}: {error.strerror or error}") from error
        found: list[dict[str, Any]] = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                found.append(event)
        return found

    def write_text(self, name: str, text: str) -> Path:
        """Write a text, such as "report.html", into the folder."""
        path = self.path / _file_name(name)
        _write(path, text.encode("utf-8", "replace"))
        return path

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Write a table to <name>.parquet in the folder."""
        path = self.path / _file_name(f"{name.removesuffix('.parquet')}.parquet")
        data = io.BytesIO()
        try:
            frame.to_parquet(data, engine="pyarrow")
        except (TypeError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise FileError(f"the table {name!r} cannot be written to {path.name}: {error}") from error
        _write(path, data.getvalue())
        return path

    def write_scores(self, name: str, scores: Scores) -> Path:
        """Write scores to scores/<name>.safetensors."""
        path = self.path / "scores" / f"{_file_name(name.removesuffix('.safetensors'))}.safetensors"
        self._save(scores, path)
        return path

    def write_intervention(self, intervention: Intervention) -> Path:
        """Write `intervention.safetensors`, and beside it `intervention.json` for people to read."""
        path, state = self.path / "intervention.safetensors", self._read()
        made = intervention.provenance
        about = {
            "name": intervention.name,
            "model": (made and made.model) or state.model,
            "model_hash": (made and made.model_hash) or state.model_hash,
            "digest": intervention.digest,
            "edits": [_readable(edit) for edit in intervention.edits],
            "patches": [_readable(patch) for patch in intervention.patches],
        }
        self._save(intervention, path)
        _write(path.with_suffix(".json"), _json(about, indent=1) + b"\n")
        return path

    def checkpoint(self, stage: str, inputs: str | None = None) -> Path:
        """A folder for what a stage has of its result so far, which `write` removes.

        Where `inputs` is given, what was left there for other inputs is removed first.
        """
        path = self._partial(stage)
        with writing(path):
            mark = path / MARK
            if inputs is not None and path.is_dir() and (not mark.is_file() or mark.read_bytes() != inputs.encode()):
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            if inputs is not None:
                _write(mark, inputs.encode())
        return path

    def _sweep(self, state: RunState) -> None:
        """Delete what a killed process left: nobody else writes while the run is locked."""
        for path in self.path.rglob(".*.partial"):
            path.unlink(missing_ok=True)
        for stage in state.stages:
            shutil.rmtree(self._partial(stage), ignore_errors=True)

    def _stage(self, stage: str) -> Path:
        return self.path / "stages" / f"{_file_name(stage)}.safetensors"

    def _partial(self, stage: str) -> Path:
        return self.path / "stages" / f"{_file_name(stage)}.partial"

    def _save(self, value: Saved, path: Path) -> None:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            value.save(path)

    def _change(self, **changes: Any) -> None:
        _write(self.path / RUN, _dump(replace(self._read(), updated=_now(), **changes)))

    def _read(self) -> RunState:
        path = self.path / RUN
        try:
            found = json.loads(path.read_bytes())
            version = found["version"]
            if isinstance(version, int) and version > VERSION:
                raise FileError(
                    f"{path} is of format version {version}, and this trimtab reads up to {VERSION}: "
                    "install a newer trimtab"
                )
            return _schema().validate_python(found)
        except (FileNotFoundError, NotADirectoryError):
            what = "it has no run.json" if self.path.is_dir() else "there is no such folder"
            raise FileError(f"{self.path} is not a run: {what}. See them with: trimtab runs list") from None
        except (TypeError, ValueError, LookupError, RecursionError) as error:
            raise FileError(
                f"{path} is damaged ({_first_line(error)}): put it back from a copy, or remove the run with: "
                f"trimtab runs remove {self.path.name}"
            ) from error
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"cannot read {path}: {error.strerror or error}. Check who may read it") from error


def settings_hash(settings: Mapping[str, object]) -> str:
    """The hash by which two runs have the same settings; the order of keys does not matter.

    >>> settings_hash({"a": 1, "b": (2,)}) == settings_hash({"b": [2], "a": 1})
    True
    """
    return digest_of(_plain_settings(settings))


def run_files(folder: RunFolder) -> dict[str, int]:
    """The files of a run by their path in its folder, and their sizes in bytes."""
    found: dict[str, int] = {}
    for path in sorted(folder.path.rglob("*")):
        name = path.relative_to(folder.path)
        if path.name not in (LOCK, HOLDER) and not any(part.startswith(".") for part in name.parts) and path.is_file():
            found[name.as_posix()] = path.stat().st_size
    return found


@contextmanager
def writing(path: Path, *let: type[BaseException]) -> Iterator[None]:
    """An error of the system in writing becomes one FileError; a full disk is said to be one, with what is free."""
    try:
        yield
    except let:
        raise
    except OSError as error:
        cause = error.__cause__ if isinstance(error, FileError) else error
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise FileError(
                f"the disk is full: {path} could not be written, with {_free(path)} free now. Free some room and run "
                "it again: it goes on after its last finished stage"
            ) from cause
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"cannot write {path}: {error.strerror or error}. Check that its folder exists and can be written"
        ) from error


def _free(path: Path) -> str:
    there = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    try:
        return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB"
    except OSError:
        return "an unknown amount"


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and wait until the disk has it."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with writing(path):
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _dump(state: RunState) -> bytes:
    return _json(asdict(state), indent=1) + b"\n"


def _json(value: object, indent: int | None = None) -> bytes:
    text = json.dumps(_strict(value), ensure_ascii=False, allow_nan=False, indent=indent, default=str)
    return text.encode("utf-8", "backslashreplace")  # what UTF-8 lacks (lone surrogates) is escaped just as in JSON


def _strict(value: object) -> object:
    """A value with NaN and the infinities as text, which JSON lacks: "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain_settings(settings: Mapping[str, object]) -> dict[str, object]:
    known = plain(settings)
    try:
        json.dumps(known, allow_nan=False)
    except ValueError:
        raise StudyError("a setting is NaN or infinite: leave it out, or use null where there is no limit") from None
    return known


@lru_cache(maxsize=1)
def _schema() -> TypeAdapter[RunState]:
    from pydantic import TypeAdapter  # late: it takes a while to import

    return TypeAdapter(RunState)


def _sha256(path: Path) -> str | None:
    """The SHA-256 of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[\w.+-]*[\w+])?", name, re.ASCII) or name.lower() in OURS:
        why = "trimtab keeps that one itself" if name.lower() in OURS else "use letters, digits, _ . + and -"
        raise StudyError(f"{name!r} cannot be a name in a run's folder: {why}")
    return name


def _slug(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters)[:40].strip("-") or "run"


def _named(value: object) -> str:
    """A task or model by the name that settings give it, as text or as a table with a name."""
    value = value.get("name") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else ""


def _readable(part: Edit | WeightPatch) -> dict[str, object]:
    """An edit or a patch as its text, and the Euclidean norm of each array in it by its name."""
    value = part.value if isinstance(part, Edit) else part
    inside = {"value": value} if isinstance(value, np.ndarray) else {}
    if hasattr(value, "__dataclass_fields__"):
        inside = {each.name: getattr(value, each.name) for each in fields(value)}  # pyright: ignore[reportArgumentType]
    norms = {name: float(np.linalg.norm(x)) for name, x in inside.items() if isinstance(x, np.ndarray)}
    return {"text": str(part), "norms": norms}


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
