"""A full disk, at any write: one error, and nothing half written."""

from __future__ import annotations

import errno
import io
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.studies.folders import ASKED, FIRST, SCORES, SECOND, begun, files
from trimtab.errors import FileError
from trimtab.studies.folder import RunFolder, run_files
from trimtab.values import Intervention, Outcome


class Disk:
    """A disk that is full from the nth call of one kind on, for the process."""

    def __init__(self, monkeypatch, kind, n):
        self.hit, self.left = False, n
        real_open, real_os_open = io.open, os.open

        def full(*_):
            self.hit = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def step():
            self.left -= 1
            return self.left < 0

        def calling(real):
            def call(first, *a, **k):
                there = kind == "mkdir" and Path(first).is_dir()  # nothing to be made, so no room is needed
                return full() if not there and step() else real(first, *a, **k)

            return call

        class Half:
            """A file that takes half of what it is given."""

            def __init__(self, file):
                self.file = file

            def write(self, data):
                if not step():
                    return self.file.write(data)
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                return full()

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

        def opening(file, mode="r", *a, **k):
            writes = set(mode) & set("wxa+")
            if writes and kind == "open" and step():
                full()
            return (
                Half(real_open(file, mode, *a, **k)) if writes and kind == "write" else real_open(file, mode, *a, **k)
            )

        def os_opening(path, flags, *a, **k):
            return full() if flags & os.O_CREAT and step() else real_os_open(path, flags, *a, **k)

        if kind in ("open", "write"):
            monkeypatch.setattr(io, "open", opening)
        if kind == "open":
            monkeypatch.setattr(os, "open", os_opening)
        if kind in ("fsync", "mkdir"):
            monkeypatch.setattr(os, kind, calling(getattr(os, kind)))
        if kind == "rename":
            for name in ("rename", "replace"):
                monkeypatch.setattr(os, name, calling(getattr(os, name)))


FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})


WORK = {
    "create": lambda f: RunFolder.create(f.path.parent, "another", ASKED),
    "write": lambda f: f.write("verdict", SECOND, "j", 1.0),
    "text": lambda f: f.write_text("report.html", "long " * 100),
    "table": lambda f: f.write_table("metrics", FRAME),
    "scores": lambda f: f.write_scores("heads", SCORES),
    "intervention": lambda f: f.write_intervention(Intervention.of("L0.head[1] scale 0")),
    "log": lambda f: f.log("an event", text="long " * 100),
    "finish": lambda f: f.finish("finished", verdict="found"),
    "begin": begun,
    "forget": lambda f: f.forget("old"),
}


SEVERAL = ("intervention", "write", "begin")  # those that write more than one file


def times(work, kind):
    """How often a disk that is full can be in the way."""
    if kind == "mkdir":
        return {"create": 1, "scores": 1}.get(work, 0)
    if work == "log":
        return int(kind in ("open", "write"))
    if (work, kind) in (("create", "rename"), ("begin", "open")):  # of the folder too; of the lock too
        return {"create": 2, "begin": 3}[work]
    return 2 if work in ("intervention", "write", "begin") else 1


@pytest.mark.parametrize("kind", ["write", "fsync", "rename", "open", "mkdir"])
@pytest.mark.parametrize("work", WORK)
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(tmp_path, monkeypatch, work, kind):
    for n in range(20):
        folder = RunFolder.create(tmp_path / str(n), "My study", ASKED)
        folder.write("screen", FIRST, "i", 1.0)
        folder.write("old", FIRST, "i", 1.0)
        folder.log("began")
        before = files(tmp_path / str(n))
        with monkeypatch.context() as patch:
            disk = Disk(patch, kind, n)
            try:
                WORK[work](folder)
                error = None
            except BaseException as raised:  # noqa: BLE001
                error = raised
        assert disk.hit == (error is not None)
        if error is None:
            break
        assert type(error) is FileError
        assert re.search(r"the disk is full: /.*/.* could not be written, with [\d,.]+ MB free now", str(error))
        assert str(tmp_path / str(n)) in str(error)
        after = files(tmp_path / str(n))
        after.pop(f"{folder.path.name}/run.lock", None)
        if work not in SEVERAL:
            assert after == before
        assert not [name for name in after if "/." in name or name.startswith(".")]
        for name in after:
            if name.endswith(".safetensors"):
                load_file(tmp_path / str(n) / name)
        assert (folder.path / "log.jsonl").read_bytes().endswith(b"\n")
        assert len(folder.events()) in ((1, 2) if work == "begin" else (1,))
        assert folder.read("screen", Outcome) == FIRST
        assert folder.has("screen", "i")
        assert not folder.has("verdict", "j")
        assert "verdict.safetensors" not in str(after)
        WORK[work](folder)  # as soon as there is room
    assert error is None
    assert n >= times(work, kind)


def test_a_stage_that_run_json_has_no_room_for_gives_its_room_back(folder, monkeypatch):
    folder.write("screen", FIRST, "i", 1.0)
    monkeypatch.setattr(RunFolder, "_change", _no_room)
    with pytest.raises(OSError, match="No space left"):
        folder.write("verdict", SECOND, "i", 1.0)
    assert list(run_files(folder)) == ["run.json", "stages/screen.safetensors"]


def _no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_other_errors_of_the_system_are_one_error_too(folder, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", refused)
    for work in ("finish", "text", "write"):
        with pytest.raises(FileError, match=r"cannot write /.*: Permission denied\. Check that"):
            WORK[work](folder)
