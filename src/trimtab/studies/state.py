"""What `run.json` says of a run: its settings, how it stands, and which stages are finished, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from trimtab.errors import FileError, StudyError
from trimtab.studies.disk import as_json
from trimtab.values.content import digest_of
from trimtab.values.provenance import plain

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Status = Literal["new", "running", "finished", "failed", "interrupted"]
STATUSES: tuple[str, ...] = get_args(Status)

VERSION = 1
RUN = "run.json"


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


def read_state(folder: Path) -> RunState:
    """What the `run.json` of a folder says; FileError where there is none, or it is damaged or of a newer trimtab."""
    path = folder / RUN
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
        what = "it has no run.json" if folder.is_dir() else "there is no such folder"
        raise FileError(f"{folder} is not a run: {what}. See them with: trimtab runs list") from None
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise FileError(
            f"{path} is damaged ({_first_line(error)}): put it back from a copy, or remove the run with: "
            f"trimtab runs remove {folder.name}"
        ) from error
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {path}: {error.strerror or error}. Check who may read it") from error


def dump(state: RunState) -> bytes:
    """As it is written."""
    return as_json(asdict(state), indent=1) + b"\n"


def settings_hash(settings: Mapping[str, object]) -> str:
    """The hash by which two runs have the same settings; the order of keys does not matter.

    >>> settings_hash({"a": 1, "b": (2,)}) == settings_hash({"b": [2], "a": 1})
    True
    """
    return digest_of(plain_settings(settings))


def plain_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as JSON holds them; StudyError where one is no number."""
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


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
