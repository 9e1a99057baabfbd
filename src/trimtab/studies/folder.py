"""One run of a study on disk: a folder whose files are the truth.

`run.json` says what the run is and which stages are finished, and is always the old file or the whole new one. A stage
is written first to its own file and then into `run.json`, so that a process killed between the two does that stage
again. It knows the values it keeps, and neither what a stage does nor that there are other runs.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from trimtab.errors import FileError, StudyError, nearest
from trimtab.studies.disk import as_json, sha256_of, write_whole, writing
from trimtab.studies.lock import HOLDER, LOCK, held, holder_of, is_held
from trimtab.studies.state import RUN, RunState, StageState, Status, dump, plain_settings, read_state
from trimtab.values.edit import Edit, Intervention
from trimtab.values.patch import WeightPatch
from trimtab.values.saved import Saved
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", bound=Saved)

LOG = "log.jsonl"
KNOWN = ("model", "model_hash", "task", "notes")
"""What a run may be told when it begins."""
OURS = (RUN, LOG, LOCK, HOLDER, "intervention.json", "intervention.safetensors", "stages", "scores")


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
        root, known = Path(root), plain_settings(settings)
        moment = datetime.now(UTC)
        time = moment.isoformat(timespec="milliseconds")
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            taken = {folder.name[-6:] for folder in root.iterdir()}
            id_ = next(new for new in iter(lambda: secrets.token_hex(3), "") if new not in taken)
            path = root / f"{moment:%Y%m%d-%H%M%S}-{_slug(name)}-{id_}"
            task, model = _named(known.get("task")), _named(known.get("model"))
            state = RunState(id_, name, known, time, time, task=task, model=model)
            new = root / f".{path.name}.new"  # made aside, so that no folder without its run.json is ever seen
            try:
                new.mkdir()
                write_whole(new / RUN, dump(state))
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
        return holder_of(self.path)

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Hold the run for this process; StudyError at once where a process that lives holds it."""
        self._read()
        with held(self.path):
            self._read()  # it may have been removed just before
            yield self

    def begin(self, **known: object) -> None:
        """Set the status to "running", and what is known by now: `model`, `model_hash`, `task`, `notes`.

        The verdict, numbers and error of an earlier attempt are dropped; finished stages stay. The run must be locked.
        """
        if unknown := [key for key in known if key not in KNOWN]:
            raise StudyError(
                f"a run does not know {unknown[0]!r}{nearest(unknown[0], KNOWN)}: it may be told {', '.join(KNOWN)}"
            )
        if not is_held(self.path):
            raise StudyError(f"the run {self.path.name} begins only where it is locked: with folder.lock(): …")
        before = self._read()
        if before.status == "running":
            self.log("interrupted", last_seen=before.updated)
        told: dict[str, Any] = {key: str(value) for key, value in known.items() if key != "notes"}
        if "notes" in known:
            notes: Any = known["notes"]
            told["notes"] = (notes,) if isinstance(notes, str) else tuple(map(str, notes or ()))
        self._sweep()
        self._change(status="running", verdict=None, metrics={}, error=None, **told)

    def has(self, stage: str, inputs: str) -> bool:
        """Whether the stage is finished for inputs of this hash, and its file is still what was written."""
        known = self._read().stages.get(stage)
        return known is not None and known.inputs == inputs and known.sha256 == sha256_of(self._stage(stage))

    def write(self, stage: str, value: Saved, inputs: str, seconds: float) -> None:
        """Keep what a stage found from inputs of this hash."""
        path, state = self._stage(stage), self._read()
        self._save(value, path)
        try:
            done = StageState(str(inputs), value.digest, float(seconds), _now(), sha256_of(path) or "")
            self._change(stages={**state.stages, stage: done})
        except OSError:  # what run.json does not know is of no use: rather give the room back
            path.unlink(missing_ok=True)
            raise

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
        """Drop what stages found, because what goes into them has changed."""
        state, files = self._read(), [self._stage(stage) for stage in stages]
        if state.stages.keys() & set(stages):
            self._change(stages={name: known for name, known in state.stages.items() if name not in stages})
        with writing(self.path):
            for path in files:
                path.unlink(missing_ok=True)

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
        line = as_json({**stamp, **facts, **stamp}) + b"\n"
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
        write_whole(path, text.encode("utf-8", "replace"))
        return path

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Write a table to <name>.parquet in the folder."""
        path = self.path / _file_name(f"{name.removesuffix('.parquet')}.parquet")
        data = io.BytesIO()
        try:
            frame.to_parquet(data, engine="pyarrow")
        except (TypeError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise FileError(f"the table {name!r} cannot be written to {path.name}: {error}") from error
        write_whole(path, data.getvalue())
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
        write_whole(path.with_suffix(".json"), as_json(about, indent=1) + b"\n")
        return path

    def _sweep(self) -> None:
        """Delete what a killed process left: nobody else writes while the run is locked."""
        for path in self.path.rglob(".*.partial"):
            path.unlink(missing_ok=True)

    def _stage(self, stage: str) -> Path:
        return self.path / "stages" / f"{_file_name(stage)}.safetensors"

    def _save(self, value: Saved, path: Path) -> None:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            value.save(path)

    def _change(self, **changes: Any) -> None:
        write_whole(self.path / RUN, dump(replace(self._read(), updated=_now(), **changes)))

    def _read(self) -> RunState:
        return read_state(self.path)


def run_files(folder: RunFolder) -> dict[str, int]:
    """The files of a run by their path in its folder, and their sizes in bytes."""
    found: dict[str, int] = {}
    for path in sorted(folder.path.rglob("*")):
        name = path.relative_to(folder.path)
        if path.name not in (LOCK, HOLDER) and not any(part.startswith(".") for part in name.parts) and path.is_file():
            found[name.as_posix()] = path.stat().st_size
    return found


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
