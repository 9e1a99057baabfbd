"""Locks: one process at a time, and none that has died."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.studies.folders import code, unix
from trimtab.errors import FileError, StudyError
from trimtab.studies import lock
from trimtab.studies.folder import RunFolder


def test_a_lock_is_held_once_in_one_process_and_given_back(folder):
    with folder.lock():
        for again in (folder, RunFolder.open(folder.path), RunFolder(folder.path / ".." / folder.path.name)):
            with pytest.raises(StudyError, match=rf"in use by process {os.getpid()}: wait"), again.lock():
                pass
        assert folder.holder() == str(os.getpid())
    with folder.lock():
        pass
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    with folder.lock():
        pass
    assert folder.holder() == ""


def test_there_must_be_a_run_to_lock(tmp_path):
    with pytest.raises(FileError, match="no such folder"), RunFolder(tmp_path / "none").lock():
        pass
    assert list(tmp_path.iterdir()) == []


@unix
def test_another_process_holds_it_until_it_dies(folder):
    run, env = code(f"""
        import time
        from trimtab.studies.folder import RunFolder
        folder = RunFolder.open({str(folder.path)!r})
        with folder.lock():
            folder.begin(model="theirs")
            print("here", flush=True)
            time.sleep(600)
    """)
    with subprocess.Popen(run, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        with pytest.raises(StudyError, match=f"in use by process {process.pid}: wait"), folder.lock():
            pass
        assert folder.state.status == "running"
        assert folder.holder() == str(process.pid)
        process.send_signal(signal.SIGKILL)
    assert (folder.stored.status, folder.state.status, folder.holder()) == ("running", "interrupted", "")
    with folder.lock():
        assert folder.state.status == "running"  # as it stands there, until it begins
        folder.begin()
        assert [event["event"] for event in folder.events()] == ["interrupted"]
        folder.finish("finished")
    assert folder.state.status == "finished"


def test_a_holder_on_another_machine_is_named(folder, monkeypatch):
    with folder.lock():
        (folder.path / "run.pid").write_text("77 elsewhere")
        monkeypatch.setattr(lock, "_held", set())
        assert folder.holder() == "77 on elsewhere"
        with pytest.raises(StudyError, match="in use by process 77 on elsewhere"), folder.lock():
            pass
