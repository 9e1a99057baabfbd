"""Rows of tasks and files of them, for the tests of whatever reads such files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from trimtab.errors import TaskError
from trimtab.tasks.files import load_task

ROOT = Path(__file__).parents[2]


SHARED = Path(os.environ.get("TRIMTAB_SHARED_DATA", ROOT.parent / "shared" / "data"))


shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")


PAIRS = [
    {"positive": "It is good.", "negative": "It is bad.", "group": "a"},
    {"positive": "So fine!", "negative": "So poor!", "group": "b"},
    {"positive": "We won, at last.", "negative": 'We "lost", again.', "group": "b"},
]


CAPITALS = [
    {
        "clean": "The capital of France is",
        "corrupt": "The capital of Italy is",
        "answers": [" Paris", " Lutetia"],
        "distractors": " Rome",
        "group": "Europe",
        "spans": {"subject": "France", "what": [4, 11]},
        "corrupt_spans": {"subject": "Italy"},
    },
    {"clean": "Peru's is", "corrupt": "Cuba's is", "answer": " Lima", "distractor": " Havana", "group": "America"},
]


def write(path, rows, encoding="utf-8"):
    """Rows in the format of the file's suffix."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding=encoding, newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding=encoding)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    return path


def lines(path, *texts, encoding="utf-8", end="\n"):
    path.write_bytes("".join(text + end for text in texts).encode(encoding))
    return path


def refused(source, **options):
    """What the one TaskError says."""
    with pytest.raises(TaskError) as caught:
        load_task(source, **options)
    return str(caught.value)
