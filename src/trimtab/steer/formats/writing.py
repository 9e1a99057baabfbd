"""Writing a file whole or not at all, and reading one that may be anything."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from trimtab.errors import FileError

LIMIT = 1 << 28
"""Bytes of a file of another tool, at most: the vectors of the widest model take a few dozen megabytes."""


@contextmanager
def whole(path: str | PathLike[str]) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; nothing is left of it after an error.

    Raises FileError where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"cannot write {path}: {error.strerror or error}. Check that its folder exists and can be written"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def contents(path: str | PathLike[str], limit: int = LIMIT) -> bytes:
    """All bytes of a file. FileError where there is none, and, before anything is read, for one beyond the limit."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}" + (": it is a folder" if path.is_dir() else ""))
    try:
        size = path.stat().st_size
        if size > limit:
            raise FileError(
                f"{path} has {size:,} bytes, and a file of vectors at most {limit:,}: is it a model? "
                "Models are read by trimtab.load"
            )
        with path.open("rb") as file:
            return file.read(size)  # a buffer of that many bytes is set aside
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
