"""The state of a run: what run.json says is what was told, or an error with what to do."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.studies.folders import ASKED, JSON
from trimtab.errors import FileError, StudyError
from trimtab.studies.folder import RunFolder
from trimtab.studies.state import settings_hash


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
