"""A run's folder: what is read is what was written, or an error, whatever was killed, torn or damaged."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.studies.folders import ASKED, FIRST, SCORES, begun, code, files, unix
from trimtab.errors import FileError, StudyError
from trimtab.studies import folder as module
from trimtab.studies.folder import RunFolder, run_files
from trimtab.values import Affine, Edit, Intervention, Outcome, Scores, WeightPatch
from trimtab.values.provenance import Provenance


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


def test_ids_that_are_taken_are_not_given_again(tmp_path, monkeypatch):
    ids = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(module.secrets, "token_hex", lambda n: next(ids) if n == 3 else "0" * 2 * n)
    assert [RunFolder.create(tmp_path, "x", {}).state.id for _ in range(2)] == ["aaaaaa", "bbbbbb"]


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
    folder.forget("validate", "steer", "never")
    assert list(folder.state.stages) == ["screen"]
    assert list(run_files(folder)) == ["run.json", "stages/screen.safetensors"]
    assert [p.name for p in (folder.path / "stages").iterdir()] == ["screen.safetensors"]
    assert folder.read("screen", Outcome) == FIRST
    folder.forget()
    assert list(folder.state.stages) == ["screen"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a ", "é", "x.", "a\n", "-x"])
def test_names_stay_inside_the_folder(folder, name):
    before = files(folder.path.parent)
    for call in (
        lambda: folder.write(name, FIRST, "i", 1),
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


KILLED = """
    import json, os, sys
    from pathlib import Path
    from tests.studies.folders import FIRST, SECOND
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
