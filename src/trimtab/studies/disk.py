"""Writing to disk: a file is written whole or not at all, and what the system says of it becomes one error.

It knows nothing of runs. NaN and the infinities, which JSON lacks, are written as text.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trimtab.errors import FileError

FULL = (errno.ENOSPC, errno.EDQUOT)


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


def write_whole(path: Path, data: bytes) -> None:
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


def as_json(value: object, indent: int | None = None) -> bytes:
    """A value as JSON in UTF-8; what JSON does not know is written as text."""
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


def sha256_of(path: Path) -> str | None:
    """The SHA-256 of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
