"""Records: files of every kind row by row, and what is broken in them with its line."""

from __future__ import annotations

import re

from tests.tasks.rowfiles import PAIRS, lines, refused, write
from trimtab.tasks.example import Contrast
from trimtab.tasks.files import load_task, read_task


def test_other_encodings(tmp_path):
    rows = [{"positive": "Très bien", "negative": "Très mal"}]
    for encoding in ("cp1252", "utf-16", "utf-8-sig"):
        path = write(tmp_path / "mine.csv", rows, encoding)
        options = {} if encoding == "utf-8-sig" else {"encoding": encoding}
        assert load_task(path, **options).examples[0].positive == "Très bien"


def test_separators_and_quotes_of_a_table(tmp_path):
    path = lines(tmp_path / "mine.csv", "positive;negative", '"one; or ""two""\nlines";B', "C;D")
    task = load_task(path)
    assert task.examples[0].positive == 'one; or "two"\nlines'
    assert [place.line for place in read_task(path).places] == [2, 4]


def test_json_lines_by_another_name(tmp_path):
    path = write(tmp_path / "mine.jsonl", PAIRS).rename(tmp_path / "mine.json")
    assert load_task(path).examples == tuple(Contrast(**row) for row in PAIRS)


def test_a_broken_list_names_the_line(tmp_path):
    whole = write(tmp_path / "mine.json", PAIRS).read_text()
    path = tmp_path / "mine.json"
    path.write_text(whole[: len(whole) // 2])
    assert re.search(r"mine\.json line \d+ is not JSON", refused(path))
    path.write_text(whole.replace("},\n", "}\n", 1))
    assert "mine.json line 7: a comma is missing" in refused(path)
    path.write_text(whole.replace('"group": "a"', '"group": a'))
    assert "mine.json line 5 is not JSON" in refused(path)
    path.write_text(whole.rstrip()[:-1])
    assert "the list does not end" in refused(path)
    path.write_text('"text"')
    assert "a list of objects was expected" in refused(path)
    path.write_text("[1, 2]")
    assert "mine.json line 1: a row must be an object of columns, got 1" in refused(path)


def test_long_lists_are_read_in_pieces(tmp_path):
    rows = [{"positive": f"A{i} " + "é" * 300, "negative": f"B{i}"} for i in range(1000)]
    path = write(tmp_path / "mine.json", rows)
    assert [e.positive for e in load_task(path).examples] == [row["positive"] for row in rows]
    assert [place.line for place in read_task(path).places] == list(range(2, 4002, 4))


def test_broken_tables(tmp_path):
    path = tmp_path / "mine.csv"
    assert 'line 1: the column "positive" is there twice' in refused(lines(path, "positive,positive", "A,B"))
    said = refused(lines(path, "positive,negative", "A,B", 'C,"D', "E,F"))
    assert "mine.csv line 3: it is not a row of a table (unexpected end of data); is a quote open?" in said
    assert "line 2: it has 3 fields" in refused(lines(path, "positive,negative", "A,B,C"))


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    text = '{"positive": "A", "negative": "B"}\n{"positive": "caf\u00e9", "negative": "D"}\n'
    path = tmp_path / "mine.jsonl"
    path.write_bytes(text.encode("cp1252"))
    at = text.index("\u00e9")
    assert f'mine.jsonl is not utf-8 text (byte {at}, on line 2): say what it is, encoding="cp1252"' in refused(path)
    path.write_bytes(b"x" * 70_000 + b"\n" + text.encode("cp1252"))
    assert f"byte {70_001 + at}, on line 3" in refused(path)
    path.write_bytes("é".encode() * 40_000 + b"\xc3")  # half a character at the very end, chunks that cut others
    assert "byte 80000, on line 1" in refused(path)
    path.write_bytes(text.encode("utf-16"))
    assert 'byte 0, on line 1): say what it is, encoding="utf-16"' in refused(path)
    assert load_task(path, encoding="utf-16").examples[1].positive == "café"
    assert 'there is no encoding "utf-9"' in refused(path, encoding="utf-9")
    write(path.with_suffix(".csv"), PAIRS)
    assert "is not utf-16 text" in refused(path.with_suffix(".csv"), encoding="utf-16")
