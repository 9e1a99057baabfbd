"""Rows: where the rows of a task file come from, read one by one: JSONL, JSON, CSV, folders, data sets in memory.

Each row comes with its place, for messages. It knows nothing of what a row must hold: that is `tasks.files`' affair.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from io import StringIO
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from trimtab.errors import TaskError, nearest
from trimtab.tasks.metrics import Metric

MOST = 20_000
"""Rows that are read unless more are asked for."""
LONGEST = 1_000_000
"""Characters of a row."""
Source = Any  # a path, several, a mapping, or an iterable of mappings: whatever it is, its rows are looked at
Values = Mapping[str, object]


class Place(NamedTuple):
    """Where a row stands: in a file at a line (from 1), or in a sequence as its row (from 0)."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


class Wish(NamedTuple):
    """What was asked for: the options of `load_task`."""

    mapping: Mapping[str, str | Sequence[str]] | None = None
    every: Mapping[str, object] | None = None
    name: str | None = None
    metric: Metric | None = None
    chat: bool | None = None
    positive: object = None
    most: int = MOST
    encoding: str = "utf-8"
    split: str | None = None


class Unit(NamedTuple):
    """Something with rows: its name, how to read them, and what its two sides are called, where the name says so."""

    name: str
    rows: Callable[[], Iterator[Row]]
    poles: tuple[str, str] | None = None


SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PARALLEL = re.compile(r"(?P<stem>.+)\.(?P<one>[a-z]{2,3})-(?P<other>[a-z]{2,3})\.(?P<own>[a-z]{2,3})")
_WINOBIAS = re.compile(r"(?P<side>pro|anti)_stereotyped")
_HARM = re.compile(r"harm(?P<side>ful|less)")
_SPACE = re.compile(r"\s*")
Row = tuple[Place, object]  # a mapping, or in its place a text that says what is wrong


def units(source: Source, wish: Wish) -> tuple[str, list[Unit]]:
    """The name of a source, and what in it has rows."""
    if isinstance(source, str | PathLike):
        path = Path(source)
        if path.is_dir():
            return path.resolve().name, _of_folder(path, wish)
        return path.stem if path.suffix in SUFFIXES else path.name, _of_paths([path], wish)
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | PathLike) for one in source):
        paths = [Path(one) for one in source]
        return ", ".join(path.name for path in paths[:3]) + (" …" if len(paths) > 3 else ""), _of_paths(paths, wish)
    return "data", [_in_memory(source, wish.split)]


def _of_folder(folder: Path, wish: Wish) -> list[Unit]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            datasets = import_module("datasets")
        except ImportError as error:
            raise TaskError(
                f"{folder} is a data set of Hugging Face datasets, and reading it needs that package: pip install "
                'datasets; or write it out with dataset.to_json("task.jsonl")'
            ) from error
        return [_in_memory(datasets.load_from_disk(str(folder)), wish.split, folder.name)]
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES or _pair_of(path) is not None)
    if not paths:
        raise TaskError(f"{folder} holds no file of a known kind: {', '.join(SUFFIXES)}, or pairs of text files")
    return _of_paths(paths, wish)


def _of_paths(paths: Sequence[Path], wish: Wish) -> list[Unit]:
    for path in paths:
        if not path.is_file():
            there = sorted(other.name for other in path.parent.glob("*")) if path.parent.is_dir() else []
            raise TaskError(f"there is no file {path}{nearest(path.name, there)}: check the path")
    plain = [path for path in paths if path.suffix not in SUFFIXES and _pair_of(path) is None]
    if len(plain) == len(paths) == 2:
        return [Unit(f"{paths[0].name}, {paths[1].name}", lambda: _parallel(paths[0], paths[1], wish.encoding))]
    units: dict[tuple[Path, ...], Unit] = {}
    for path in paths:
        both = _pair_of(path)
        if both is not None:
            found = _PARALLEL.fullmatch(path.name)
            if found is None:
                units[both] = Unit(both[0].name, partial(_winobias, *both, wish.encoding))
            else:
                units[both] = Unit(
                    both[0].name, partial(_parallel, *both, wish.encoding), (found["one"], found["other"])
                )
        elif path.suffix in SUFFIXES:
            for each in _both_sides(path) if len(paths) == 1 else (path,):
                units[each,] = Unit(each.name, partial(_of_file, each, wish))
        else:
            raise TaskError(
                f"{path.name} is of no known kind: {', '.join(SUFFIXES)}; two files of parallel lines are given as a "
                "list, load_task([one, other])"
            )
    return list(units.values())


def _pair_of(path: Path) -> tuple[Path, Path] | None:
    """The two files of which this is one: parallel lines named as Tatoeba's are, or the two sides of WinoBias."""
    if found := _PARALLEL.fullmatch(path.name):
        languages = (found["one"], found["other"])
        if found["own"] in languages:
            one, other = (path.with_name(f"{found['stem']}.{languages[0]}-{languages[1]}.{own}") for own in languages)
            return one, other
    elif found := _WINOBIAS.search(path.name):
        before, after = path.name[: found.start()], path.name[found.end() :]
        return path.with_name(f"{before}pro_stereotyped{after}"), path.with_name(f"{before}anti_stereotyped{after}")
    return None


def _both_sides(path: Path) -> list[Path]:
    """This file; of harmful or harmless instructions both files, where the other one is beside it."""
    found = _HARM.search(path.name)
    if found is None:
        return [path]
    both = [path.with_name(path.name.replace(found[0], side, 1)) for side in ("harmful", "harmless")]
    return both if all(one.is_file() for one in both) else [path]


def _in_memory(source: Source, split: str | None, name: str = "data") -> Unit:
    if hasattr(source, "to_dict") and hasattr(source, "iterrows"):  # a data frame
        source = source.to_dict("records")
    if isinstance(source, Mapping) and "samples" in source:
        return Unit(
            name, lambda: _relation(dict(source), (Place(name, i, "row") for i in range(len(source["samples"]))))
        )
    if isinstance(source, Mapping):  # parts of a data set
        listed = ", ".join(map(str, source))
        if split is None and len(source) != 1:
            raise TaskError(f"{name} has the parts {listed}: say which one to load, split=…")
        split = next(iter(source)) if split is None else split
        if split not in source:
            raise TaskError(f'{name} has no part "{split}"{nearest(split, source)}: it has {listed}')
        source = source[split]
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise TaskError(f"a task is loaded from a path or from rows (mappings), got {type(source).__name__}")

    def rows() -> Iterator[Row]:
        for i, row in enumerate(source):
            good = isinstance(row, Mapping)
            yield Place(name, i, "row"), row if good else f"a row must be a mapping of columns, got {row!r:.60}"

    return Unit(name, rows)


def _of_file(path: Path, wish: Wish) -> Iterator[Row]:
    """The rows of a file by its suffix, some formats brought into columns that `FORMATS` knows."""
    read = {".csv": _csv, ".tsv": _csv, ".json": _json}.get(path.suffix, _jsonl)
    harm = _HARM.search(path.name)
    with _opened(path, wish.encoding) as file:
        rows = read(path, file)
        first = next(rows, None)
        if first is None:
            return
        rows = chain([first], rows)
        columns = set(first[1]) if isinstance(first[1], Mapping) else set()
        if {"sentid", "sentence"} <= columns and wish.mapping is None:
            rows = _winogender(rows)
        elif "instruction" in columns and "label" not in columns and harm is not None and wish.mapping is None:
            rows = (
                (at, {**row, "label": harm["side"] == "ful"} if isinstance(row, Mapping) else row) for at, row in rows
            )
        yield from rows


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
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


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Lines with their ends; TaskError for one that would fill the memory."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise TaskError(f"{path.name} line {number} is longer than {LONGEST:,} characters: is it a file of rows?")
        yield line


def _jsonl(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = f"it is not JSON ({error})"
        good = isinstance(row, dict | str)
        yield Place(path.name, number), row if good else f"a row must be an object of columns, got {line.strip():.60}"


def _json(path: Path, file: TextIO) -> Iterator[Row]:
    """An array of objects, a relation with its samples, or JSON lines by another name."""
    start = file.read(4096)
    kind = start.lstrip()[:1]
    if kind == "[":
        yield from _array(path, file, start)
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
            yield from _jsonl(path, StringIO(text))
            return
        raise TaskError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(whole.get("samples"), list):
        yield Place(path.name, 1), whole
        return
    found = re.search(r'"samples"\s*:\s*(?=\[)', text)
    places = (place for place, _ in _array(path, StringIO(), text, found.end())) if found else iter(())
    yield from _relation(whole, places)


def _array(path: Path, file: TextIO, buffer: str, at: int = 0) -> Iterator[Row]:
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


def _relation(whole: Mapping[str, Any], places: Iterator[Place]) -> Iterator[Row]:
    """The samples of a relation (of Hernandez et al. 2023, arXiv 2308.09124), each with the relation's templates."""
    templates = [str(template).replace("{}", "{subject}") for template in whole.get("prompt_templates") or ()]
    for place, sample in zip(places, whole["samples"], strict=False):
        good = isinstance(sample, Mapping)
        yield (
            place,
            {**sample, "prompt_templates": templates} if good else f"a sample must be an object, got {sample!r:.60}",
        )


def _csv(path: Path, file: TextIO) -> Iterator[Row]:
    lines = _lines(path, file)
    head = next(lines, "")
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(chain([head], lines), delimiter=delimiter, strict=True)
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


def _parallel(one: Path, other: Path, encoding: str) -> Iterator[Row]:
    """Line by line of two files."""
    for place, first, second in _together(one, other, encoding):
        yield place, {"first": first, "second": second}


def _together(one: Path, other: Path, encoding: str) -> Iterator[tuple[Place, str, str]]:
    for path in (one, other):
        if not path.is_file():
            raise TaskError(f"{(one if path == other else other).name} goes with {path.name}, which is not beside it")
    with _opened(one, encoding) as left, _opened(other, encoding) as right:
        lines, others = _lines(one, left), _lines(other, right)
        for number, first in enumerate(lines, 1):
            second = next(others, None)
            if second is None:
                raise TaskError(
                    f"{other.name} ends after line {number - 1}, and {one.name} goes on: lines must correspond"
                )
            yield Place(one.name, number), first.strip("\r\n"), second.strip("\r\n")
        if next(others, None) is not None:
            raise TaskError(f"{one.name} ends before {other.name} does: lines must correspond")


def _winobias(pro: Path, anti: Path, encoding: str) -> Iterator[Row]:
    """WinoBias (Zhao et al. 2018, arXiv 1804.06876): two lines after each other are about the same two people."""
    held: list[tuple[Place, str, str, str]] = []

    def rows() -> Iterator[Row]:
        group = " and ".join(sorted({who for *_, who in held}))
        for place, fits, other, _ in held:
            yield place, {"pro": fits, "anti": other, "group": group}
        held.clear()

    for place, fits, other in _together(pro, anti, encoding):
        found = re.search(r"\[(.*?)\]", fits)
        if found is None:
            yield place, 'a sentence must mark who is meant, as in "1 [The developer] … because [he] …"'
            continue
        who = re.sub(r"^(the|an?) ", "", found[1].strip().lower())
        held.append((place, _unmarked(fits), _unmarked(other), who))
        if place.line % 2 == 0:
            yield from rows()
    yield from rows()


def _unmarked(sentence: str) -> str:
    """A sentence of WinoBias without its number and brackets."""
    plain = re.sub(r"\[\s*(.*?)\s*\]", r"\1", re.sub(r"^\d+\s+", "", sentence.strip()))
    return re.sub(r"\s+", " ", plain.replace(" 's", "'s"))


def _winogender(rows: Iterator[Row]) -> Iterator[Row]:
    """Winogender (Rudinger et al. 2018, arXiv 1804.09301): the male and the female form of each sentence."""
    waiting: dict[str, tuple[str, str]] = {}
    for place, row in rows:
        if not isinstance(row, Mapping):
            yield place, row
            continue
        parts = str(row["sentid"]).split(".")
        if len(parts) != 5:
            yield place, f'sentid must be as in "nurse.patient.1.male.txt", got {row["sentid"]!r}'
        elif parts[3] in ("male", "female"):
            key = ".".join(parts[:3])
            gender, sentence = waiting.pop(key, ("", ""))
            if not gender or gender == parts[3]:
                waiting[key] = parts[3], str(row["sentence"])
                continue
            both = {gender: sentence, parts[3]: str(row["sentence"])}
            yield place, {**both, "occupation": parts[0]}
