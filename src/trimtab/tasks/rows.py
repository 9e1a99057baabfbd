"""Rows: what a source of rows is made of (files, folders, data sets in memory) and how each part of it is read.

Each row comes with its place, for messages. It knows nothing of what a row must hold: that is `tasks.fields`' affair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.errors import TaskError, nearest
from trimtab.tasks.corpora import parallel, winobias, winogender
from trimtab.tasks.metrics import Metric
from trimtab.tasks.records import Place, Row, opened, read_csv, read_json, read_jsonl, relation

MOST = 20_000
"""Rows that are read unless more are asked for."""
Source = Any  # a path, several, a mapping, or an iterable of mappings: whatever it is, its rows are looked at


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
    poles: Sequence[str] | None = None
    instruction: str | None = None


class Unit(NamedTuple):
    """Something with rows: its name, how to read them, and what its two sides are called, where the name says so."""

    name: str
    rows: Callable[[], Iterator[Row]]
    poles: tuple[str, str] | None = None


SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PARALLEL = re.compile(r"(?P<stem>.+)\.(?P<one>[a-z]{2,3})-(?P<other>[a-z]{2,3})\.(?P<own>[a-z]{2,3})")
_WINOBIAS = re.compile(r"(?P<side>pro|anti)_stereotyped")
_HARM = re.compile(r"harm(?P<side>ful|less)")


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
        return [Unit(f"{paths[0].name}, {paths[1].name}", lambda: parallel(paths[0], paths[1], wish.encoding))]
    units: dict[tuple[Path, ...], Unit] = {}
    for path in paths:
        both = _pair_of(path)
        if both is not None:
            found = _PARALLEL.fullmatch(path.name)
            if found is None:
                units[both] = Unit(both[0].name, partial(winobias, *both, wish.encoding))
            else:
                units[both] = Unit(
                    both[0].name, partial(parallel, *both, wish.encoding), (found["one"], found["other"])
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
            name, lambda: relation(dict(source), (Place(name, i, "row") for i in range(len(source["samples"]))))
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
    read = {".csv": read_csv, ".tsv": read_csv, ".json": read_json}.get(path.suffix, read_jsonl)
    harm = _HARM.search(path.name)
    with opened(path, wish.encoding) as file:
        rows = read(path, file)
        first = next(rows, None)
        if first is None:
            return
        rows = chain([first], rows)
        columns = set(first[1]) if isinstance(first[1], Mapping) else set()
        if {"sentid", "sentence"} <= columns and wish.mapping is None:
            rows = winogender(rows)
        elif "instruction" in columns and "label" not in columns and harm is not None and wish.mapping is None:
            rows = (
                (at, {**row, "label": harm["side"] == "ful"} if isinstance(row, Mapping) else row) for at, row in rows
            )
        yield from rows
