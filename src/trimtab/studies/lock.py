"""Locks: one process at a time is at a run, and a lock that a killed process left holds nobody up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab.errors import StudyError
from trimtab.studies.disk import write_whole, writing

LOCK, HOLDER = "run.lock", "run.pid"
GRACE = 0.25  # seconds: whoever asks whether a run is in use holds its lock for an instant

_held: set[str] = set()  # the folders that this process has locked


def is_held(folder: Path) -> bool:
    """Whether this process has locked the folder."""
    return os.path.realpath(folder) in _held


def holder_of(folder: Path) -> str:
    """The process that has locked a folder, such as "12345" or "12345 on host", or an empty text."""
    if is_held(folder):
        return str(os.getpid())
    try:
        holder = (folder / HOLDER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
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
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; StudyError at once where a process that lives holds it."""
    from filelock import FileLock, Timeout

    lock, key = FileLock(folder / LOCK), os.path.realpath(folder)
    try:
        with writing(folder / LOCK, Timeout):
            lock.acquire(timeout=GRACE, poll_interval=0.01)
    except Timeout:
        raise StudyError(
            f"the run {folder.name} is in use by process {holder_of(folder) or '(unknown)'}: "
            "wait until it has finished, or end that process"
        ) from None
    try:
        if not folder.is_dir():  # removed just before: the caller says so
            yield
            return
        write_whole(folder / HOLDER, f"{os.getpid()} {socket.gethostname()}".encode())
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()
