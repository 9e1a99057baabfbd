"""Records: the rows of one JSONL, JSON or CSV file, one by one, each with its place.

Nothing is read as a whole, and what is broken in one row is a text in its place. It knows nothing of what a row must
hold, nor of which files there are.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from trimtab.errors import TaskError

LONGEST = 1_000_000
"""Characters of a row."""
Values = Mapping[str, object]


class Place(NamedTuple):
    """Where a row stands: in a file at a line (from 1), or in a sequence as its row (from 0)."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


Row = tuple[Place, object]  # a mapping, or in its place a text that says what is wrong
_SPACE = re.compile(r"\s*")


@contextmanager
def opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """The text of a file; TaskError where it cannot be read, or is not in this encoding (naming the byte)."""
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise TaskError(f'there is no encoding "{encoding}": "utf-8", "cp1252" or "utf-16", say') from error
    try:
        with path.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="\n") as file:
            yield file
    except UnicodeError as error:
        where, begins = _bad_byte(path) if encoding == "utf-8" else ("", b"")
        better = "utf-16" if begins in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
        raise TaskError(f'{path.name} is not {encoding} text{where}: say what it is, encoding="{better}"') from error
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror or error}") from error


def _bad_byte(path: Path) -> tuple[str, bytes]:
    """Where the first byte is that is not UTF-8, in words, and how the file begins."""
    decoder, offset, line, begins = codecs.getincrementaldecoder("utf-8")(), 0, 1, b""
    with path.open("rb") as file:
        while True:
            chunk = file.read(1 << 16)
            begins = begins or chunk[:2]
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = offset - held + error.start
                line += chunk[: max(0, error.start - held)].count(b"\n")
                return f" (byte {at}, on line {line})", begins
            if not chunk:
                return "", begins
            offset, line = offset + len(chunk), line + chunk.count(b"\n")


def lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines with their ends; TaskError for one that would fill the memory."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise TaskError(f"{path.name} line {number} is longer than {LONGEST:,} characters: is it a file of rows?")
        yield line


def read_jsonl(path: Path, file: TextIO) -> Iterator[Row]:
    """An object on each line."""
    for number, line in enumerate(lines(path, file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = f"it is not JSON ({error})"
        good = isinstance(row, dict | str)
        yield Place(path.name, number), row if good else f"a row must be an object of columns, got {line.strip():.60}"


def read_json(path: Path, file: TextIO) -> Iterator[Row]:
    """An array of objects, a relation with its samples, or JSON lines by another name."""
    start = file.read(4096)
    kind = start.lstrip()[:1]
    if kind == "[":
        yield from elements(path, file, start)
        return
    if kind != "{":
        raise TaskError(f"{path.name} line 1: a list of objects was expected, or a relation with samples")
    text = start + file.read(50 * LONGEST)
    if file.read(1):
        raise TaskError(f"{path.name} is one object of more than {50 * LONGEST:,} characters: give JSON lines (.jsonl)")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from read_jsonl(path, StringIO(text))
            return
        raise TaskError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(whole.get("samples"), list):
        yield Place(path.name, 1), whole
        return
    found = re.search(r'"samples"\s*:\s*(?=\[)', text)
    places = (place for place, _ in elements(path, StringIO(), text, found.end())) if found else iter(())
    yield from relation(whole, places)


def elements(path: Path, file: TextIO, buffer: str, at: int = 0) -> Iterator[Row]:
    """The elements of a JSON array that begins in `buffer` and goes on in `file`, read a piece at a time."""
    decoder, first, ended = json.JSONDecoder(), True, False
    at = buffer.index("[", at) + 1
    line = 1 + buffer.count("\n", 0, at)
    while True:
        begin = _SPACE.match(buffer, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        if buffer[begin : begin + 1] == "," and not first:
            begin = _SPACE.match(buffer, begin + 1).end()  # pyright: ignore[reportOptionalMemberAccess]
        elif buffer[begin : begin + 1] == "]":
            return
        elif begin < len(buffer) and not first:
            raise TaskError(f"{path.name} line {line + buffer.count(chr(10), at, begin)}: a comma is missing")
        try:
            row, end = decoder.raw_decode(buffer, begin)
        except (ValueError, RecursionError) as error:
            if ended or len(buffer) - at > LONGEST:
                wrong = line + buffer.count("\n", at, getattr(error, "pos", at))
                what = getattr(error, "msg", error) if begin < len(buffer) else "the list does not end"
                raise TaskError(
                    f"{path.name} line {wrong} is not JSON ({what}), so nothing after it is read"
                ) from error
            more = file.read(max(1 << 16, len(buffer) - at))
            buffer, at, ended = buffer[at:] + more, 0, not more
            continue
        here = Place(path.name, line + buffer.count("\n", at, begin))
        line, at, first = line + buffer.count("\n", at, end), end, False
        yield here, row if isinstance(row, dict) else f"a row must be an object of columns, got {row!r:.60}"


def relation(whole: Mapping[str, Any], places: Iterator[Place]) -> Iterator[Row]:
    """The samples of a relation (of Hernandez et al. 2023, arXiv 2308.09124), each with the relation's templates."""
    templates = [str(template).replace("{}", "{subject}") for template in whole.get("prompt_templates") or ()]
    for place, sample in zip(places, whole["samples"], strict=False):
        good = isinstance(sample, Mapping)
        yield (
            place,
            {**sample, "prompt_templates": templates} if good else f"a sample must be an object, got {sample!r:.60}",
        )


def read_csv(path: Path, file: TextIO) -> Iterator[Row]:
    """A table with a header, its cells between commas, semicolons or tabs."""
    rest = lines(path, file)
    head = next(rest, "")
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(chain([head], rest), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        number = reader.line_num + 1
        place = Place(path.name, number)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield place, f"it is not a row of a table ({error}); is a quote open?"
            continue
        if cells is None:
            return
        if not cells:
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            twice = next((name for name in columns if columns.count(name) > 1), None)
            if twice is not None:
                raise TaskError(f'{path.name} line 1: the column "{twice}" is there twice')
        elif len(cells) != len(columns):
            yield place, f"it has {len(cells)} fields, and the header has {len(columns)}"
        else:
            yield place, dict(zip(columns, cells, strict=True))
