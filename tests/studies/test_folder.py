"""A run's folder: what is read is what was written, or an error, whatever was killed, full, torn or damaged."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from trimtab.errors import FileError, StudyError
from trimtab.studies import folder as module
from trimtab.studies.folder import RunFolder, run_files, settings_hash
from trimtab.values import Affine, Edit, Intervention, Outcome, Scores, WeightPatch
from trimtab.values.findings import Verdict
from trimtab.values.provenance import Provenance

ASKED = {"task": "sentiment", "model": "tiny", "budget": {"points": 3, "share": 0.25}, "seeds": [1, 2], "limit": None}
FIRST = Outcome("logit_diff", "logits", np.array([1.0, 2.0, np.nan]), np.array([0.0, 2.0, 1.0]))
SECOND = Verdict("found", ("Found.", "It works."))
SCORES = Scores(np.arange(6.0).reshape(3, 2), ("example", "layer"), {}, "L{layer}.mlp_out")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
unix = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "My study", ASKED)


def begun(folder, **known):
    with folder.lock():
        folder.begin(**known)
    return folder


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def code(text):
    """Python in a process of its own."""
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    return [sys.executable, "-c", textwrap.dedent(text)], env


# Creating and reading
# ---------------------------------------------------------------------------------------------------------------------


def test_a_new_run(tmp_path):
    folder = RunFolder.create(tmp_path / "runs" / "deep", "Étude № 1 / π", ASKED)
    assert re.fullmatch(r"\d{8}-\d{6}-etude-no-1-[0-9a-f]{6}", folder.path.name)
    state = folder.state
    assert (state.name, state.settings, state.status, state.version) == ("Étude № 1 / π", ASKED, "new", 1)
    assert (state.id, state.task, state.model, state.verdict) == (folder.path.name[-6:], "sentiment", "tiny", None)
    assert state.created == state.updated
    assert (dict(state.metrics), dict(state.stages), state.notes, state.error) == ({}, {}, (), None)
    assert RunFolder.open(folder.path) == folder
    assert [p.name for p in folder.path.iterdir()] == ["run.json"]
    assert [p.name for p in folder.path.parent.iterdir()] == [folder.path.name]


@given(name=st.text(min_size=1, max_size=80))
def test_any_name_gives_a_safe_folder_or_an_error(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("root")
    if not name.strip() or not name.isprintable():
        with pytest.raises(StudyError, match="one line of text"):
            RunFolder.create(root, name, {})
        assert list(root.iterdir()) == []
        return
    folder = RunFolder.create(root, name, {})
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{6}", folder.path.name)
    assert len(folder.path.name) <= 64
    assert [p.name for p in root.iterdir()] == [folder.path.name]
    assert folder.state.name == name


@given(asked=st.dictionaries(st.text(), JSON, max_size=4))
def test_settings_come_back_exactly(tmp_path_factory, asked):
    folder = RunFolder.create(tmp_path_factory.mktemp("root"), "x", asked)
    again = folder.state.settings
    assert json.dumps(again, sort_keys=True) == json.dumps(asked, sort_keys=True)
    assert folder.state.settings_hash == settings_hash(asked) == settings_hash(dict(reversed(list(asked.items()))))


def test_the_hash_tells_settings_apart():
    hashes = {settings_hash(s) for s in ({}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"b": 1}, {"a": [1]})}
    assert len(hashes) == 7
    assert settings_hash({"a": (1, 2)}) == settings_hash({"a": [1, 2]})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), [1.0, -math.inf]])
def test_settings_are_finite(tmp_path, wrong):
    with pytest.raises(StudyError, match="NaN or infinite: leave it out"):
        RunFolder.create(tmp_path, "x", {"limit": wrong})
    assert list(tmp_path.iterdir()) == []


def test_ids_that_are_taken_are_not_given_again(tmp_path, monkeypatch):
    ids = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(module.secrets, "token_hex", lambda n: next(ids) if n == 3 else "0" * 2 * n)
    assert [RunFolder.create(tmp_path, "x", {}).state.id for _ in range(2)] == ["aaaaaa", "bbbbbb"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"version": 1}', "\x00\x01", "[" * 100_000],
)
def test_a_damaged_run_json_is_refused_with_what_to_do(folder, text):
    (folder.path / "run.json").write_text(text)
    with pytest.raises(FileError, match=rf"damaged.*trimtab runs remove {folder.path.name}"):
        RunFolder.open(folder.path)


@pytest.mark.parametrize(
    "change", [{"status": "odd"}, {"stages": []}, {"metrics": {"a": "x"}}, {"id": None}, {"stages": {"a": {}}}]
)
def test_a_run_json_with_wrong_entries_is_refused(folder, change):
    found = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps(found | change))
    with pytest.raises(FileError, match="damaged"):
        _ = folder.state


@settings(max_examples=30)
@given(cut=st.integers(0, 10_000))
def test_a_run_json_cut_anywhere_is_refused(tmp_path_factory, cut):
    folder = RunFolder.create(tmp_path_factory.mktemp("root"), "x", ASKED)
    data = (folder.path / "run.json").read_bytes()
    (folder.path / "run.json").write_bytes(data[: cut % (len(data) - 1)])  # all but the last newline is needed
    with pytest.raises(FileError, match="damaged"):
        RunFolder.open(folder.path)


def test_no_run_and_a_newer_one(folder, tmp_path):
    with pytest.raises(FileError, match="no such folder"):
        RunFolder.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"it has no run\.json.*trimtab runs list"):
        RunFolder.open(tmp_path / "empty")
    found = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps(found | {"version": 2, "new": 1}))
    with pytest.raises(FileError, match=r"format version 2.*install a newer trimtab"):
        RunFolder.open(folder.path)


def test_entries_that_a_later_trimtab_adds_are_let_be(folder):
    found = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps(found | {"more": 1}))
    assert folder.state.name == "My study"


# The life of a run
# ---------------------------------------------------------------------------------------------------------------------


def test_the_life_of_a_run(folder):
    with folder.lock() as same:
        assert same is folder
        folder.begin(model="tiny", model_hash="abc", task="other", notes=["one", "two"])
        state = folder.state
        assert (state.status, state.model, state.model_hash, state.task) == ("running", "tiny", "abc", "other")
        assert state.notes == ("one", "two")
        assert not folder.has("screen", "i")
        folder.write("screen", FIRST, "i", 1.5)
        assert folder.has("screen", "i")
        assert not folder.has("screen", "j")
        assert not folder.has("other", "i")
        assert folder.read("screen", Outcome) == FIRST
        stage = folder.state.stages["screen"]
        assert (stage.inputs, stage.digest, stage.seconds) == ("i", FIRST.digest, 1.5)
        assert stage.finished
        folder.finish("finished", verdict="found", metrics={"effect": 2, "nan": np.nan, "inf": np.float32("-inf")})
    state = folder.state
    assert (state.status, state.verdict, state.error) == ("finished", "found", None)
    assert state.metrics["effect"] == 2.0
    assert math.isnan(state.metrics["nan"])
    assert state.metrics["inf"] == -math.inf
    json.loads((folder.path / "run.json").read_text(), parse_constant=pytest.fail)  # strict JSON all the same
    assert folder.has("screen", "i")
    assert list(run_files(folder)) == ["run.json", "stages/screen.safetensors"]
    assert run_files(folder)["run.json"] == (folder.path / "run.json").stat().st_size


def test_beginning_again_keeps_stages_and_drops_the_end(folder):
    with folder.lock():
        folder.begin(model="tiny", notes="one")
        folder.write("screen", FIRST, "i", 1)
        folder.finish("failed", verdict="x", metrics={"a": 1.0}, error="out of memory")
        assert folder.state.error == "out of memory"
        folder.begin()
    state = folder.stored
    assert (state.status, state.verdict, dict(state.metrics), state.error) == ("running", None, {}, None)
    assert (list(state.stages), state.model, state.notes) == (["screen"], "tiny", ("one",))


def test_what_cannot_be_told(folder):
    with folder.lock():
        with pytest.raises(StudyError, match=r'does not know \'modle\' \(did you mean "model"\?\)'):
            folder.begin(modle="x")
        for status in ("running", "new", "done"):
            with pytest.raises(StudyError, match='a run ends "finished"'):
                folder.finish(status)
    with pytest.raises(StudyError, match="only where it is locked"):
        folder.begin()
    assert folder.state.status == "new"


def test_a_stage_that_has_not_finished(folder):
    with pytest.raises(FileError, match='has not finished the stage "screen": run it again'):
        folder.read("screen", Outcome)


@settings(max_examples=40)
@given(data=st.data())
def test_any_changed_byte_of_a_stage_is_noticed(tmp_path_factory, data):
    folder = RunFolder.create(tmp_path_factory.mktemp("root"), "x", {})
    folder.write("screen", FIRST, "i", 1)
    path = folder.path / "stages" / "screen.safetensors"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    assert not folder.has("screen", "i")
    path.write_bytes(bytes(content[:at]))
    assert not folder.has("screen", "i")
    path.unlink()
    assert not folder.has("screen", "i")


def test_a_stage_file_of_another_run_is_not_taken(folder):
    folder.write("screen", FIRST, "i", 1)
    FIRST.with_(unit="nats").save(folder.path / "stages" / "screen.safetensors")
    assert not folder.has("screen", "i")
    with pytest.raises(FileError, match=r"not the one that run\.json knows"):
        folder.read("screen", Outcome)


def test_forgetting(folder):
    for stage in ("screen", "validate", "steer"):
        folder.write(stage, FIRST, "i", 1)
    (folder.checkpoint("steer") / "a").touch()
    folder.forget("validate", "steer", "never")
    assert list(folder.state.stages) == ["screen"]
    assert list(run_files(folder)) == ["run.json", "stages/screen.safetensors"]
    assert [p.name for p in (folder.path / "stages").iterdir()] == ["screen.safetensors"]
    assert folder.read("screen", Outcome) == FIRST
    folder.forget()
    assert list(folder.state.stages) == ["screen"]


def test_checkpoints_last_until_the_stage_is_written(folder):
    path = folder.checkpoint("screen")
    assert path == folder.path / "stages" / "screen.partial"
    (path / "part").write_text("1")
    assert (folder.checkpoint("screen") / "part").read_text() == "1"
    folder.write("other", FIRST, "i", 1)
    assert path.is_dir()
    folder.write("screen", FIRST, "i", 1)
    assert not path.exists()


def test_checkpoints_of_other_inputs_are_not_gone_on_with(folder):
    (folder.checkpoint("screen") / "of unknown inputs").touch()
    path = folder.checkpoint("screen", "i")
    assert not (path / "of unknown inputs").exists()
    (path / "part").touch()
    folder.forget("screen")
    assert (folder.checkpoint("screen", "i") / "part").exists()
    assert not (folder.checkpoint("screen", "j") / "part").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a ", "é", "x.", "a\n", "-x"])
def test_names_stay_inside_the_folder(folder, name):
    before = files(folder.path.parent)
    for call in (
        lambda: folder.write(name, FIRST, "i", 1),
        lambda: folder.checkpoint(name),
        lambda: folder.forget(name),
        lambda: folder.write_text(name, "x"),
        lambda: folder.write_scores(name, SCORES),
        lambda: folder.write_table(f"{name}/", pd.DataFrame({"a": [1]})),
    ):
        with pytest.raises(StudyError, match="cannot be a name"):
            call()
    assert files(folder.path.parent) == before


@pytest.mark.parametrize("name", ["run.json", "RUN.json", "log.jsonl", "run.lock", "run.pid", "intervention.json"])
def test_our_own_files_are_not_written_over(folder, name):
    with pytest.raises(StudyError, match="trimtab keeps that one itself"):
        folder.write_text(name, "x")


# Artefacts
# ---------------------------------------------------------------------------------------------------------------------


def test_texts_tables_and_scores(folder):
    folder.write_text("report.html", "<p>é</p>\n")
    assert (folder.path / "report.html").read_bytes() == "<p>é</p>\n".encode()
    frame = pd.DataFrame({"prompt": ["é", None], "effect": [1.5, np.nan], "n": [1, 2]})
    assert folder.write_table("metrics", frame) == folder.write_table("metrics.parquet", frame)
    pd.testing.assert_frame_equal(pd.read_parquet(folder.path / "metrics.parquet"), frame)
    folder.write_scores("head-attribution", SCORES)
    assert Scores.load(folder.path / "scores" / "head-attribution.safetensors") == SCORES
    assert set(run_files(folder)) == {
        "run.json",
        "report.html",
        "metrics.parquet",
        "scores/head-attribution.safetensors",
    }


def test_a_table_that_cannot_be_is_an_error_and_leaves_the_old_one(folder):
    folder.write_table("samples", pd.DataFrame({"a": [1]}))
    before = files(folder.path)
    with pytest.raises(FileError, match="the table 'samples' cannot be written"):
        folder.write_table("samples", pd.DataFrame({"a": [1, "x", object()]}))
    assert files(folder.path) == before


def test_an_intervention_and_what_people_read_of_it(folder):
    begun(folder, model="tiny", model_hash="abc")
    vector = np.array([3.0, 4.0], dtype=np.float32)
    edits = (
        Edit("L1.resid_post@-1", "add", vector, strength=2.0),
        Edit.parse("L0.head[1] scale 0"),
        Edit("L1.mlp_out", "affine", Affine(np.eye(2), np.eye(2), vector)),
    )
    patch = WeightPatch("lm_head.weight", delta=np.ones((2, 2)))
    intervention = Intervention(edits, (patch,), name="warmer")
    folder.write_intervention(intervention)
    assert Intervention.load(folder.path / "intervention.safetensors") == intervention
    about = json.loads((folder.path / "intervention.json").read_text())
    assert about["name"] == "warmer"
    assert (about["model"], about["model_hash"], about["digest"]) == ("tiny", "abc", intervention.digest)
    assert [e["text"] for e in about["edits"]] == [str(e) for e in edits]
    assert [e["norms"] for e in about["edits"]][:2] == [{"value": 5.0}, {}]
    assert about["edits"][2]["norms"] == pytest.approx({"A": 2**0.5, "B": 2**0.5, "c": 5.0})
    assert about["patches"] == [{"text": str(patch), "norms": {"delta": 2.0}}]
    made = intervention.with_(provenance=Provenance("other", "def"))
    folder.write_intervention(made)
    about = json.loads((folder.path / "intervention.json").read_text())
    assert (about["model"], about["model_hash"]) == ("other", "def")


# The log
# ---------------------------------------------------------------------------------------------------------------------


def test_the_log_keeps_facts_and_time(folder):
    assert folder.events() == []
    folder.log("began", stage="screen")
    folder.log("ended", time="lie", seconds=1.5, bad=math.nan, n=np.int64(3), path=Path("a"), text="é\n")
    first, second = folder.events()
    assert first.keys() == {"time", "event", "stage"}
    assert first["event"] == "began"
    assert second["time"] >= first["time"]
    assert {k: second[k] for k in ("seconds", "bad", "n", "path", "text")} == {
        "seconds": 1.5,
        "bad": "nan",
        "n": 3,
        "path": "a",
        "text": "é\n",
    }
    assert (folder.path / "log.jsonl").read_bytes().count(b"\n") == 2


@settings(max_examples=40)
@given(cut=st.integers(0, 10_000))
def test_a_torn_last_line_is_tolerated_and_written_after(tmp_path_factory, cut):
    folder = RunFolder.create(tmp_path_factory.mktemp("root"), "x", {})
    for n in range(3):
        folder.log("step", n=n, text="é“")
    path = folder.path / "log.jsonl"
    data = path.read_bytes()
    left = data[: cut % (len(data) + 1)]
    path.write_bytes(left)
    whole = left.count(b"\n") + (left[-1:] == b"}")  # but for its newline, the last line may be whole
    assert [e["n"] for e in folder.events()] == list(range(whole))
    folder.log("step", n=9)
    assert [e["n"] for e in folder.events()] == [*range(whole), 9]


def test_a_line_is_whole_though_the_system_takes_it_piece_by_piece(folder, monkeypatch):
    real = io.open

    class Slow(io.FileIO):
        def write(self, data):
            return super().write(data[:7])

    def opening(file, mode="r", *a, **k):
        return Slow(file, "a+") if mode == "a+b" else real(file, mode, *a, **k)

    monkeypatch.setattr(io, "open", opening)
    folder.log("long", text="x" * 100)
    folder.log("next")
    assert [e.get("text") for e in folder.events()] == ["x" * 100, None]


# One process at a time
# ---------------------------------------------------------------------------------------------------------------------


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
        monkeypatch.setattr(module, "_held", set())
        assert folder.holder() == "77 on elsewhere"
        with pytest.raises(StudyError, match="in use by process 77 on elsewhere"), folder.lock():
            pass


# Killed at any moment
# ---------------------------------------------------------------------------------------------------------------------

KILLED = """
    import json, os, sys
    from pathlib import Path
    from tests.studies.test_folder import FIRST, SECOND
    from trimtab.studies.folder import RunFolder
    from trimtab.values import Outcome
    from trimtab.values.findings import Verdict

    STAGES = {"screen": (FIRST, Outcome), "verdict": (SECOND, Verdict)}

    def study(folder):
        with folder.lock():
            folder.begin(model="tiny")
            for stage, (value, _) in STAGES.items():
                if not folder.has(stage, "i"):
                    folder.forget(stage)
                    folder.log("began", stage=stage)
                    folder.checkpoint(stage)
                    folder.write(stage, value, "i", 1)
            folder.finish("finished", verdict="found")

    def at(moment, work):  # in a child that dies at that call to the system; whether it lived
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1] == 0
        count = 0
        def dying(real):
            def call(*arguments, **options):
                nonlocal count
                for before in (True, False):
                    count += 1
                    if count == moment:
                        os._exit(9)
                    if before:
                        found = real(*arguments, **options)
                return found
            return call
        for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        work()
        os._exit(0)

    root, moment, made = Path(sys.argv[1]), 0, False
    def check(condition, what):
        if not condition:
            sys.exit(f"killed at moment {moment}: {what}")

    while True:
        moment += 1
        runs = root / str(moment)
        lived = at(moment, lambda: study(RunFolder.create(runs, "x", {})))
        here = [p for p in runs.iterdir() if not p.name.startswith(".")] if runs.exists() else []
        check(len(here) == 1 or not here and not made, "a whole run or none")
        made = bool(here)
        for path in here:
            folder = RunFolder.open(path)
            check(folder.state.status in ("new", "interrupted", "finished"), folder.state.status)
            check((folder.state.status == "finished") >= lived, "finished")
            for stage, (value, kind) in STAGES.items():
                if folder.has(stage, "i"):
                    check(folder.read(stage, kind) == value, stage)
            folder.events()
            study(folder)
            check(folder.state.status == "finished" and folder.has("screen", "i") and folder.has("verdict", "i"), "end")
            left = {p.name for p in path.rglob("*")}
            check(left <= {"run.json", "log.jsonl", "run.lock", "stages", "screen.safetensors", "verdict.safetensors"},
                  f"left {left}")
        if lived:
            break
    print(moment)
"""


@unix
def test_a_run_killed_at_any_moment_goes_on(tmp_path):
    run, env = code(KILLED)
    done = subprocess.run([*run, tmp_path], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # there were that many moments


# A full disk
# ---------------------------------------------------------------------------------------------------------------------


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
    "checkpoint": lambda f: f.checkpoint("steer", "i"),
    "begin": begun,
    "forget": lambda f: f.forget("old"),
}
SEVERAL = ("intervention", "write", "begin", "checkpoint")  # those that write more than one file


def times(work, kind):
    """How often a disk that is full can be in the way."""
    if kind == "mkdir":
        return {"create": 1, "scores": 1, "checkpoint": 1}.get(work, 0)
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
