"""Rows: folders, data sets on disk and in memory, and no more rows than were asked for."""

from __future__ import annotations

import json
import sys
import tracemalloc
from types import ModuleType

import pandas as pd
import pytest

from tests.tasks.rowfiles import CAPITALS, PAIRS, lines, refused, write
from trimtab.tasks.example import Contrast
from trimtab.tasks.files import load_task
from trimtab.tasks.rows import MOST


def test_rows_in_memory(tmp_path):
    expected = load_task(write(tmp_path / "mine.jsonl", PAIRS))
    assert load_task(PAIRS) == expected
    assert load_task(iter(PAIRS)) == expected
    assert load_task(pd.DataFrame(PAIRS)) == expected
    assert load_task({"train": PAIRS}) == expected
    assert load_task({"train": PAIRS, "test": PAIRS[:1]}, split="train") == expected


def test_a_folder_of_files_is_one_task(tmp_path):
    write(tmp_path / "a.csv", PAIRS[:1])
    write(tmp_path / "b.jsonl", PAIRS[1:])
    (tmp_path / "README.md").write_text("what this is")
    task = load_task(tmp_path)
    assert task.examples == tuple(Contrast(**row) for row in PAIRS)
    assert task.name == tmp_path.name
    assert load_task([tmp_path / "a.csv", tmp_path / "b.jsonl"]) == task


class Saved(list):
    """What stands for a Hugging Face data set here: rows, and the names of their columns."""

    column_names = ("positive", "negative", "group")


def test_a_data_set_on_disk(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "reading it needs that package: pip install datasets" in refused(tmp_path)
    module = ModuleType("datasets")
    module.load_from_disk = lambda path: Saved(PAIRS) if path == str(tmp_path) else None
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert load_task(tmp_path).examples == tuple(Contrast(**row) for row in PAIRS)
    module.load_from_disk = lambda path: {"train": Saved(PAIRS), "test": Saved(PAIRS[:1])}
    assert f"{tmp_path.name} has the parts train, test: say which one" in refused(tmp_path)
    assert 'has no part "tran" (did you mean "train"?)' in refused(tmp_path, split="tran")
    assert len(load_task(tmp_path, split="test")) == 1


def test_too_many_rows_are_refused_and_memory_stays_small(tmp_path):
    path = tmp_path / "mine.jsonl"
    with path.open("w") as file:
        for i in range(40_000):
            file.write(json.dumps({"positive": f"A{i} " + "x" * 700, "negative": f"B{i}"}) + "\n")
    assert path.stat().st_size > 28_000_000
    tracemalloc.start()
    said = refused(path, most=500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said == (
        "mine.jsonl holds more than 500 rows (reading stopped at line 501): cut the file down, or read more of them "
        "with most=5000 in Python, --set most=5000 of trimtab run, or --most 5000 of trimtab task check"
    )
    assert peak < 5_000_000
    assert f"more than {MOST:,} rows" in refused(path)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.json"])
def test_a_file_without_rows_does_not_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    path.write_text('[{"positive": "' + "x" * 20_000_000)
    tracemalloc.start()
    said = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "line 1 is longer than 1,000,000 characters" in said or "line 1 is not JSON" in said
    assert peak < 16_000_000


def test_as_many_rows_as_asked_for():
    rows = [{"positive": f"A{i}", "negative": f"B{i}"} for i in range(7)]
    assert len(load_task(rows, most=7)) == 7
    assert "more than 6 rows (reading stopped at row 6)" in refused(rows, most=6)
    assert "1 or more, got 0" in refused(rows, most=0)


def test_paths_that_lead_nowhere(tmp_path):
    write(tmp_path / "mine.jsonl", PAIRS)
    assert "there is no file" in refused(tmp_path / "mine.json")
    assert '(did you mean "mine.jsonl"?)' in refused(tmp_path / "mine.json")
    (tmp_path / "empty").mkdir()
    assert "empty holds no file of a known kind: .jsonl" in refused(tmp_path / "empty")
    assert "mine.doc is of no known kind" in refused(lines(tmp_path / "mine.doc", "A"))
    assert "a task is loaded from a path or from rows (mappings), got int" in refused(3)
    assert "a task is loaded from a path or from rows (mappings), got bytes" in refused(b"x")
    assert "data row 0: a row must be a mapping of columns, got 'x'" in refused(["x", 3])


def test_files_of_different_formats_are_no_one_task(tmp_path):
    write(tmp_path / "a.jsonl", PAIRS)
    write(tmp_path / "b.jsonl", CAPITALS)
    assert "rows of different formats (a.jsonl: contrast; b.jsonl: counterfactual)" in refused(tmp_path)
