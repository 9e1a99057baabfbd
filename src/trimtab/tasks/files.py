"""Files: tasks from data of your own or from the data sets of the field, and back into a file.

A file is read row by row and never as a whole, rows that are broken are reported with their lines, and a text that is
in two groups is refused. What a row must hold is a table (`FORMATS`); how texts are paired is `tasks.pairs`' affair. It
knows nothing of models and tokenizers.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from io import StringIO
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from trimtab.errors import TaskError, nearest
from trimtab.tasks.builtin.refusal import HELP, REFUSAL
from trimtab.tasks.builtin.truth import QUESTION
from trimtab.tasks.example import Contrast, Counterfactual, Example
from trimtab.tasks.metrics import BY_NAME, Metric
from trimtab.tasks.pairs import Item, contrasts, fields_of, fill, own_groups, pair, refuse_leaks, sides_of, twins_of
from trimtab.tasks.task import Task

MOST = 20_000
"""Rows that are read unless more are asked for."""
LONGEST = 1_000_000
"""Characters of a row."""
SHOWN = 10
"""Broken rows that a message lists."""
CANDIDATES = 4
"""Corrupt prompts for each clean one, where they are made here."""

Source = Any  # a path, several, a mapping, or an iterable of mappings: whatever it is, its rows are looked at
Values = Mapping[str, object]
Kind = Literal["contrast", "counterfactual", "labelled", "samples"]

KINDS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contrast": (
        ("positive", "negative"),
        ("group", "prompt", "question", "answers", "distractors", "positive_system", "negative_system"),
    ),
    "counterfactual": (("clean", "corrupt", "answers", "distractors"), ("group", "spans", "corrupt_spans")),
    "samples": (("clean", "answers"), ("group",)),
    "labelled": (("text", "label"), ("group", "question", "answers", "distractors")),
}
"""The fields of each kind of row: those that it must have, and those that it may have."""
FIELDS = tuple(dict.fromkeys(name for need, may in KINDS.values() for name in (*need, *may)))
ALSO = {"answers": "answer", "distractors": "distractor"}
"""What a column may be called, too."""
TOGETHER = ("question", "answers", "distractors")


@dataclass(frozen=True)
class Format:
    """A data set that is recognised by its `columns`: where our fields are found in it, and how it is measured.

    `raw` is the mapping where prompts are not put into a chat template. `topic` is a column that names the group of a
    pair by its positive text, while texts are paired whatever their topics. `groups` says that groups are the data
    set's own, and become one where they share a text. Columns that are `made` here are in no file as they are.
    """

    name: str
    columns: tuple[str, ...]
    mapping: Mapping[str, str]
    raw: Mapping[str, str] = field(default_factory=dict)
    every: Mapping[str, object] = field(default_factory=dict)
    topic: str = ""
    sides: str = ""
    chat: bool = False
    read: str = "text"
    groups: bool = False
    made: bool = True
    poles: tuple[str, str] = ("positive", "negative")
    about: str = ""


FORMATS = (
    Format(
        "BLiMP",
        ("sentence_good", "sentence_bad"),
        {"positive": "sentence_good", "negative": "sentence_bad"},
        poles=("grammatical", "ungrammatical"),
        made=False,
        about="Sentences that are grammatical against their minimal pairs that are not.",
    ),
    Format(
        "behaviour",
        ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
        {"prompt": "question", "positive": "answer_matching_behavior", "negative": "answer_not_matching_behavior"},
        raw={
            "prompt": "{question}\n\nAnswer:",
            "positive": " {answer_matching_behavior}",
            "negative": " {answer_not_matching_behavior}",
        },
        chat=True,
        poles=("matching", "not matching"),
        made=False,
        about="Answers that match a behaviour against answers that do not.",
    ),
    Format(
        "true and false statements",
        ("statement", "label"),
        {"text": "statement", "label": "label", "group": "city"},
        every={
            "question": QUESTION.format("{text}"),
            "answers": (" true",),
            "distractors": (" false",),
        },
        poles=("true", "false"),
        made=False,
        about="True statements against false ones.",
    ),
    Format(
        "instructions",
        ("instruction", "label"),
        {"text": "instruction", "label": "label"},
        every={"question": "{text}", "answers": REFUSAL, "distractors": HELP},
        topic="category",
        sides='files named harmful… and harmless… are given together, load_task(["harmful.json", "harmless.json"])',
        chat=True,
        read="last",
        poles=("harmful", "harmless"),
        about="Harmful instructions against harmless ones.",
    ),
    Format(
        "relation",
        ("subject", "object", "prompt_templates"),
        {"clean": "prompt_templates", "answers": " {object}"},
        about="What a relation gives for one subject, against what it gives for another.",
    ),
    Format(
        "parallel lines",
        ("first", "second"),
        {"positive": "first", "negative": "second"},
        about="Lines of one file against the same lines of another.",
    ),
    Format(
        "WinoBias",
        ("pro", "anti", "group"),
        {"positive": "pro", "negative": "anti", "group": "group"},
        groups=True,
        poles=("stereotyped", "against the stereotype"),
        about="Pronouns that fit an occupation's stereotype against pronouns that do not.",
    ),
    Format(
        "Winogender",
        ("male", "female", "occupation"),
        {"positive": "male", "negative": "female", "group": "occupation"},
        groups=True,
        poles=("male", "female"),
        about="The same sentence with a male and with a female pronoun.",
    ),
)


class Place(NamedTuple):
    """Where a row stands: in a file at a line (from 1), or in a sequence as its row (from 0)."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


class Fault(NamedTuple):
    """A row that is broken, and what is wrong with it."""

    place: Place
    what: str


@dataclass(frozen=True)
class Loaded:
    """What a source holds: the `task` of its good rows (None where there are none) and the `faults` of the others.

    `places` say for each example where it, or its positive or clean text, stands; `notes` what was left out on purpose.
    """

    name: str
    format: str
    rows: int
    task: Task | None
    places: tuple[Place, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]

    def sound(self) -> Task:
        """The task; TaskError, with up to ten broken rows and their lines, where any is broken."""
        if self.faults:
            many = f"{len(self.faults)} of {self.rows} rows are broken" if len(self.faults) > 1 else "a row is broken"
            lines = [f"  {fault.place}: {fault.what}" for fault in self.faults[:SHOWN]]
            if len(self.faults) > SHOWN:
                lines.append(f"  … and {len(self.faults) - SHOWN} more")
            raise TaskError("\n".join((f"{self.name}: {many}, so nothing is loaded:", *lines, "mend or remove them")))
        assert self.task is not None
        return self.task


def load_task(
    source: Source,
    *,
    mapping: Mapping[str, str | Sequence[str]] | None = None,
    every: Mapping[str, object] | None = None,
    name: str | None = None,
    metric: Metric | None = None,
    chat: bool | None = None,
    positive: object = None,
    most: int = MOST,
    encoding: str = "utf-8",
    split: str | None = None,
) -> Task:
    """A task from a file, several, a folder, or rows in memory.

    `source`: a .jsonl, .json, .csv or .tsv file; a file of one of the known data sets (docs/tasks.md); a folder of such
    files, or one that Hugging Face datasets saved; a list of paths; any iterable of mappings, or a data frame.
    `mapping` names for our fields (`FIELDS`) the column or a template with columns in braces; columns that bear our
    names need no mention. `every` gives fields that are the same in all rows. `metric`, `chat` and `name` are those of
    the task, where they should not be the format's. `positive` is the label of the positive side. `most` rows are read,
    and a source with more is refused. `split` is the part of a data set that has several.

    Rows without a group are a group each, or share one where they share a text.

    Raises TaskError, which names file and line, where anything is broken.
    """
    wish = _Wish(mapping, every, name, metric, chat, positive, most, encoding, split)
    return _loaded(source, wish).sound()


def read_task(source: Source, **options: Any) -> Loaded:
    """As `load_task`, with its options, but broken rows are told and not raised."""
    return _loaded(source, _Wish(**options))


def _loaded(source: Source, wish: _Wish) -> Loaded:
    for key in (*(wish.mapping or ()), *(wish.every or ())):
        if key not in FIELDS:
            raise TaskError(f'"{key}" is not a field of a task{nearest(key, FIELDS)}: there are {", ".join(FIELDS)}')
    if isinstance(wish.metric, str) and wish.metric not in BY_NAME:
        known = ", ".join(BY_NAME)
        raise TaskError(f'unknown metric "{wish.metric}"{nearest(wish.metric, BY_NAME)}: there are {known}')
    if wish.most < 1:
        raise TaskError(f"most is the number of rows to read, 1 or more, got {wish.most}")
    name, units = _units(source, wish)
    budget = _Budget(wish.most)
    parts = [part for unit in units if (part := _read(unit, wish, budget)) is not None]
    if not parts:
        raise TaskError(f"{name} holds no rows: at least one example is needed")
    first = next((part for part in parts if part.rows), parts[0])
    forms = {part.plan.named: part.name for part in parts if part.rows}
    if len(forms) > 1:
        listed = "; ".join(f"{file}: {form}" for form, file in forms.items())
        raise TaskError(f"{name} holds rows of different formats ({listed}): load them one by one")
    examples, places, notes = _MAKERS[first.plan.kind](parts, wish.name or name, wish)
    faults = sorted(fault for part in parts for fault in part.faults)
    form = first.plan.form
    settings: dict[str, Any] = {"name": name, "source": "; ".join((name, *notes))}
    if form is not None:
        settings |= {"about": form.about, "poles": first.poles or form.poles, "chat": form.chat, "read": form.read}
    settings |= first.header
    asked = {"name": wish.name, "metric": wish.metric, "chat": wish.chat}
    settings |= {key: value for key, value in asked.items() if value is not None}
    task = Task(examples=examples, **settings) if examples else None  # pyright: ignore[reportArgumentType]
    return Loaded(settings["name"], first.plan.named, budget.used, task, tuple(places), tuple(faults), tuple(notes))


def save_task(task: Task, path: str | PathLike[str]) -> None:
    """Write a task as JSON lines, which `load_task` reads back equal: a line that says what it is, then its examples.

    TaskError where its metric is a function, where a text is in two groups, or where the file cannot be written.
    """
    path = Path(path)
    if not isinstance(task.metric, str):
        raise TaskError(f"{task.name}: its metric is a function, and a file holds names only: {', '.join(BY_NAME)}")
    refuse_leaks(task.examples, [f"example {i}" for i in range(len(task))], task.name)
    head = {"task": task.name} | {key: getattr(task, key) for key in HEADER if key != "name"}
    rows = [
        {key: value for key in _fields_of(e) if (value := getattr(e, key)) not in ("", (), {}, None)}
        for e in task.examples
    ]
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *rows))
        unfinished.replace(path)
    except OSError as error:
        raise TaskError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


HEADER = ("name", "about", "metric", "poles", "chat", "system", "read", "source")


def _fields_of(example: Example) -> tuple[str, ...]:
    need, may = KINDS["contrast" if isinstance(example, Contrast) else "counterfactual"]
    return *need, *may


# What is read: parts, each of one file
# ---------------------------------------------------------------------------------------------------------------------


class _Wish(NamedTuple):
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


class _Unit(NamedTuple):
    """Something with rows: its name, how to read them, and what its two sides are called, where the name says so."""

    name: str
    rows: Callable[[], Iterator[Row]]
    poles: tuple[str, str] | None = None


class _Plan(NamedTuple):
    """How a row becomes fields: its kind, and for each field a function of the row.

    `specs` say where each field is, `every` what it is in all rows; `loose` fields were not asked for: they are taken
    where a row has them.
    """

    kind: Kind
    form: Format | None
    specs: dict[str, str | Sequence[str]]
    every: Mapping[str, object]
    take: dict[str, Callable[[Values], object]]
    loose: frozenset[str] = frozenset()

    @property
    def named(self) -> str:
        """The format, or the kind of row where it is none."""
        return self.kind if self.form is None else self.form.name


class _Part(NamedTuple):
    """The rows of one unit: good ones as fields, the others as faults."""

    name: str
    plan: _Plan
    rows: list[tuple[Place, dict[str, Any]]]
    faults: list[Fault]
    header: dict[str, Any]
    poles: tuple[str, str] | None


class _Broken(Exception):
    """What is wrong with a row."""


class _Budget:
    """The rows that may still be read."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0

    def spend(self, place: Place) -> None:
        self.used += 1
        if self.used > self.most:
            raise TaskError(
                f"{place.file} holds more than {self.most:,} rows (reading stopped at {place.unit} {place.line}): read "
                f"more of them with most={10 * self.most:,}, or cut the file down"
            )


def _read(unit: _Unit, wish: _Wish, budget: _Budget) -> _Part | None:
    """The part that a unit holds; None where it has no rows at all."""
    faults: list[Fault] = []
    header: dict[str, Any] = {}
    rows = unit.rows()
    first: tuple[Place, Values] | None = None
    for place, row in rows:
        if isinstance(row, Mapping) and not budget.used and not header and _is_header(place, row, wish):
            header = _header(place, row)
            continue
        budget.spend(place)
        if isinstance(row, Mapping):
            first = place, row
            break
        faults.append(Fault(place, str(row)))
    if first is None:
        if faults:
            return _Part(unit.name, _Plan("contrast", None, {}, {}, {}), [], faults, header, unit.poles)
        return None
    plan = _plan(unit.name, first[1], wish)
    good: list[tuple[Place, dict[str, Any]]] = []
    for place, row in chain([first], _counted(rows, budget)):
        try:
            if not isinstance(row, Mapping):
                raise _Broken(str(row))
            good.append((place, _fields(plan, row)))
        except _Broken as error:
            faults.append(Fault(place, str(error)))
    return _Part(unit.name, plan, good, faults, header, unit.poles)


def _counted(rows: Iterator[tuple[Place, object]], budget: _Budget) -> Iterator[tuple[Place, object]]:
    for place, row in rows:
        budget.spend(place)
        yield place, row


def _is_header(place: Place, row: Values, wish: _Wish) -> bool:
    """Whether the first line says what the task is, rather than being an example with a column called task."""
    mapped = any(isinstance(spec, str) and spec in row for spec in (wish.mapping or {}).values())
    known = any(set(form.columns) <= set(row) for form in FORMATS)
    return place[1:] == (1, "line") and isinstance(row.get("task"), str) and not (mapped or known or _kind(set(row)))


def _header(place: Place, row: Values) -> dict[str, Any]:
    """The settings in the first line of a saved task."""
    found: dict[str, Any] = {"name": row["task"]}
    for key, value in row.items():
        if key == "task":
            continue
        if key not in HEADER:
            raise TaskError(f'{place}: "{key}" is no setting of a task{nearest(key, HEADER)}: {", ".join(HEADER)}')
        found[key] = tuple(value) if key == "poles" and isinstance(value, list) else value
    for key in ("name", "about", "metric", "read", "source"):
        if not isinstance(found.get(key, ""), str):
            raise TaskError(f"{place}: {key} must be a text, got {found[key]!r}")
    if found.get("metric", "log_prob_diff") not in BY_NAME:
        raise TaskError(f'{place}: unknown metric "{found["metric"]}"{nearest(found["metric"], BY_NAME)}')
    if not isinstance(found.get("chat", False), bool):
        raise TaskError(f"{place}: chat must be true or false, got {found['chat']!r}")
    poles = found.get("poles", ("", ""))
    if not (isinstance(poles, tuple) and len(poles) == 2 and all(isinstance(pole, str) for pole in poles)):
        raise TaskError(f"{place}: poles are the two texts that name the sides, got {poles!r}")
    return found


def _plan(file: str, row: Values, wish: _Wish) -> _Plan:
    """Where the fields are in rows like this one. TaskError, with the nearest column, where that cannot be told."""
    columns = [str(column) for column in row]
    form = (
        next((known for known in FORMATS if set(known.columns) <= set(columns)), None) if wish.mapping is None else None
    )
    specs: dict[str, str | Sequence[str]] = dict(wish.mapping or {})
    if form is not None:
        specs = {**form.mapping, **(form.raw if wish.chat is False else {})}
        specs = {name: spec for name, spec in specs.items() if spec in columns or "{" in spec}
    every = {**(form.every if form is not None else {}), **(wish.every or {})}
    own = [name for name in FIELDS if name in columns or ALSO.get(name) in columns]
    kind = _kind({*specs, *every}) or _kind({*specs, *every, *own})
    if kind is None:
        raise TaskError(_unrecognised(file, columns, specs))
    need, may = KINDS[kind]
    wrong = next((name for name in (*specs, *every) if name not in (*need, *may)), None)
    if wrong is not None:
        raise TaskError(f"{file}: {kind} rows have no {wrong}: they have {', '.join((*need, *may))}")
    if kind == "labelled" and (columnar := [name for name in TOGETHER if name in specs]):
        raise TaskError(f"{file}: {columnar[0]} of labelled rows is the same for all of them: give it in every={{…}}")
    given = {*specs, *every}
    loose: list[str] = []
    if form is None:
        optional = may if kind in ("contrast", "counterfactual") else ("group",)
        loose = [name for name in optional if name not in given]
        specs |= {name: name if name in columns else ALSO[name] for name in need if name in own and name not in given}
    lacking = [name for name in need if name not in specs and name not in every]
    if lacking:
        raise TaskError(f"{file}: {kind} rows need {', '.join(need)}; name the column of {lacking[0]} in mapping")
    if kind == "samples":
        specs, every = {**every, **specs}, {}
        templates = specs["clean"] if form is None else tuple(map(str, row["prompt_templates"]))  # pyright: ignore[reportArgumentType]
        specs |= {"clean": _templates(templates, columns), "answers": _templates(specs["answers"], columns)}
    take = {name: _taker(file, spec, columns) for name, spec in specs.items() if name in given or kind == "samples"}
    take |= {name: _column(name, ALSO.get(name)) for name in (*specs, *loose) if name not in take}
    if form is not None and form.topic in columns:
        take["topic"] = _column(form.topic)
    return _Plan(kind, form, specs, every, take, frozenset(loose))


def _templates(spec: str | Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """As templates: a column is one that holds nothing but it."""
    each = (spec,) if isinstance(spec, str) else tuple(spec)
    return tuple(f"{{{one}}}" if one in columns else one for one in each)


def _kind(names: set[str]) -> Kind | None:
    if {"clean", "corrupt"} <= names:
        return "counterfactual"
    return next((kind for kind, (need, _) in KINDS.items() if set(need) <= names), None)


def _unrecognised(file: str, columns: Sequence[str], specs: Mapping[str, object]) -> str:
    """Which format the columns come nearest to, and what they lack of it."""
    wanted = {known.name: known.columns for known in FORMATS if not known.made}
    wanted |= {kind: need for kind, (need, _) in KINDS.items()}
    best, score = "", 0.0
    for name, need in wanted.items():
        near = sum(
            1.0 if column in {*columns, *specs} else 0.75 if nearest(column, columns) else 0.0 for column in need
        )
        if near / len(need) > score:
            best, score = name, near / len(need)
    text = f"{file} has the columns {', '.join(columns) or '(none)'}"
    if best and score >= 0.5:
        lacks = [f'"{c}"{nearest(c, columns)}' for c in wanted[best] if c not in {*columns, *specs}]
        text += f"; of the format {best} they lack {', '.join(lacks)}"
    else:
        text += ", which are those of no format that is known"
    return (
        f'{text}. Say which column is what: mapping={{"positive": …, "negative": …}}, {{"text": …, "label": …}}, '
        '{"clean": …, "corrupt": …, "answers": …, "distractors": …} or {"clean": "a {column} in a text", "answers": …}'
    )


def _taker(file: str, spec: str | Sequence[str], columns: Sequence[str]) -> Callable[[Values], object]:
    """A function of a row that gives a field: a column's value, or a template filled. TaskError for another column."""
    if not isinstance(spec, str):
        each = [_taker(file, one, columns) for one in spec]
        return lambda row: tuple(take(row) for take in each)
    if spec in columns:
        return _column(spec)
    names = fields_of(spec)
    for name in names or [spec]:
        if name not in columns:
            raise TaskError(f'{file} has no column "{name}"{nearest(name, columns)}: it has {", ".join(columns)}')

    def filled(row: Values) -> str:
        values = {name: row.get(name) for name in names}
        empty = [name for name, value in values.items() if _missing(value)]
        if empty:
            raise _Broken(f'"{empty[0]}" is empty, and "{spec}" needs it')
        for name, value in values.items():
            if not isinstance(value, str | int | float):
                raise _Broken(f'"{name}" must be a text to be put into "{spec}", got {value!r:.60}')
        return fill(spec, values)[0]

    return filled


def _column(name: str, also: str | None = None) -> Callable[[Values], object]:
    return lambda row: row.get(name) if also is None or name in row else row.get(also)


def _missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is not itself


# Rows to fields, fields to examples
# ---------------------------------------------------------------------------------------------------------------------


def _fields(plan: _Plan, row: Values) -> dict[str, Any]:
    """The fields of a row, checked one by one."""
    found: dict[str, Any] = dict(plan.every)
    for name, take in plan.take.items():
        value = take(row)
        if not _missing(value):
            found[name] = _checked(name, value)
        elif name in KINDS[plan.kind][0]:
            column = str(plan.specs[name])
            if column in row:
                raise _Broken(f'"{column}" is {"empty" if isinstance(row[column], str) else row[column]}')
            raise _Broken(f'there is no "{column}"{nearest(column, map(str, row))}')
    if not found.keys() >= set(TOGETHER):  # a column called question need not be one that answers follow
        found = {name: value for name, value in found.items() if name not in plan.loose or name not in TOGETHER}
    if plan.kind == "samples":  # prompts are written later, when it is known which sample is whose twin
        templates, words = plan.specs["clean"], plan.specs["answers"]
        used = {column for template in (*templates, *words) for column in fields_of(template)}
        found |= {"values": {column: row[column] for column in used}, "templates": templates, "words": words}
    return found


def _checked(name: str, value: object) -> object:
    if name == "label":
        return value
    if name in ("group", "topic"):
        return _text(name, str(value))
    if name in ("answers", "distractors"):
        words = value if isinstance(value, list | tuple) else (value,)
        return tuple(_text(name, word) for word in words)
    if name in ("spans", "corrupt_spans"):
        if not isinstance(value, Mapping):
            raise _Broken(f'{name} must map names to texts, such as {{"subject": "France"}}, got {value!r}')
        return {str(key): tuple(span) if isinstance(span, list) else span for key, span in value.items()}
    if name == "clean" and isinstance(value, tuple):
        return tuple(_text(name, each) for each in value)
    return _text(name, value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Broken(f"{name} must be a text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Broken(f"{name} holds half of a character, {value[error.start]!r}") from error
    return str(value)


Made = tuple[list[Example], list[Place], list[str]]


def _examples(parts: Sequence[_Part], name: str, wish: _Wish) -> Made:
    """Contrast or counterfactual examples, one for each row; rows that make none become faults of their part."""
    made: list[tuple[Example, Place]] = []
    ours = any(part.plan.form is not None and part.plan.form.groups for part in parts)
    grouped = any("group" in values for part in parts for _, values in part.rows)
    for part in parts:
        shape = Contrast if part.plan.kind == "contrast" else Counterfactual
        for place, values in part.rows:
            if grouped and "group" not in values:
                part.faults.append(Fault(place, "it has no group, and other rows have one"))
                continue
            try:
                made.append((shape(**{"group": "-", **values}), place))
            except TaskError as error:
                part.faults.append(Fault(place, str(error)))
    examples, places = [example for example, _ in made], [place for _, place in made]
    if ours or not grouped:
        examples = own_groups(examples, named=ours)
    else:
        refuse_leaks(examples, list(map(str, places)), name)
    kept: dict[Example, Place] = {}
    for example, place in zip(examples, places, strict=True):
        kept.setdefault(example, place)
    repeated = len(examples) - len(kept)
    return list(kept), list(kept.values()), [f"{repeated} repeated rows counted once"] if repeated else []


def _labelled(parts: Sequence[_Part], name: str, wish: _Wish) -> Made:
    """Contrast examples from labelled texts: pairs of one file and group."""
    rows = [(part, place, values) for part in parts for place, values in part.rows]
    places = {str(place): place for _, place, _ in rows}
    try:
        sides = sides_of([values["label"] for _, _, values in rows], wish.positive)
        items: list[Item] = []
        for (part, place, values), side in zip(rows, sides, strict=True):
            topical = part.plan.form is not None and part.plan.form.topic
            bucket = "" if topical else f"{part.name}\n{values.get('group', '')}"
            items.append(Item(values["text"], side, values.get("group", values.get("topic")), str(place), bucket))
        pairs, notes = pair(items, name)
    except TaskError as error:
        if any(part.faults for part in parts):  # what is left of a broken file may be of one side: first things first
            return [], [], [str(error)]
        form = rows[0][0].plan.form
        hint = f"; {form.sides}" if form is not None and form.sides else ""
        raise TaskError(f"{name}: {str(error).removeprefix(f'{name}: ')}{hint}") from error
    every = rows[0][2]
    words = {key: every[key] for key in ("answers", "distractors") if key in every}
    made = contrasts(pairs, str(every.get("question", "")), **words)
    return [example for example, _ in made], [places[place] for _, place in made], notes


def _samples(parts: Sequence[_Part], name: str, wish: _Wish) -> Made:
    """Counterfactual examples from rows that fill a template."""
    prompts = sum(len(part.rows) * len(part.plan.specs["clean"]) for part in parts if part.rows)
    candidates = max(1, min(CANDIDATES, wish.most // max(1, prompts)))
    examples: list[Example] = []
    places: list[Place] = []
    for part in parts:
        values = [fields for _, fields in part.rows]
        if not values:
            continue
        groups = [fields["group"] for fields in values] if all("group" in fields for fields in values) else None
        samples, first = [fields["values"] for fields in values], values[0]
        try:
            made = twins_of(first["templates"], samples, first["words"], groups, candidates, part.name)
        except TaskError as error:
            if part.faults:  # what is left of a broken file may be too little: first things first
                return [], [], [str(error)]
            raise
        for example, sample in made:
            group = example.group if len(parts) == 1 or groups is not None else f"{part.name}: {example.group}"
            examples.append(example.with_(group=group))
            places.append(part.rows[sample][0])
    return examples, places, []


_MAKERS: dict[Kind, Callable[[Sequence[_Part], str, _Wish], Made]] = {
    "contrast": _examples,
    "counterfactual": _examples,
    "labelled": _labelled,
    "samples": _samples,
}


# Where rows come from
# ---------------------------------------------------------------------------------------------------------------------

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PARALLEL = re.compile(r"(?P<stem>.+)\.(?P<one>[a-z]{2,3})-(?P<other>[a-z]{2,3})\.(?P<own>[a-z]{2,3})")
_WINOBIAS = re.compile(r"(?P<side>pro|anti)_stereotyped")
_HARM = re.compile(r"harm(?P<side>ful|less)")
_SPACE = re.compile(r"\s*")
Row = tuple[Place, object]  # a mapping, or in its place a text that says what is wrong


def _units(source: Source, wish: _Wish) -> tuple[str, list[_Unit]]:
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


def _of_folder(folder: Path, wish: _Wish) -> list[_Unit]:
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


def _of_paths(paths: Sequence[Path], wish: _Wish) -> list[_Unit]:
    for path in paths:
        if not path.is_file():
            there = sorted(other.name for other in path.parent.glob("*")) if path.parent.is_dir() else []
            raise TaskError(f"there is no file {path}{nearest(path.name, there)}: check the path")
    plain = [path for path in paths if path.suffix not in SUFFIXES and _pair_of(path) is None]
    if len(plain) == len(paths) == 2:
        return [_Unit(f"{paths[0].name}, {paths[1].name}", lambda: _parallel(paths[0], paths[1], wish.encoding))]
    units: dict[tuple[Path, ...], _Unit] = {}
    for path in paths:
        both = _pair_of(path)
        if both is not None:
            found = _PARALLEL.fullmatch(path.name)
            if found is None:
                units[both] = _Unit(both[0].name, partial(_winobias, *both, wish.encoding))
            else:
                units[both] = _Unit(
                    both[0].name, partial(_parallel, *both, wish.encoding), (found["one"], found["other"])
                )
        elif path.suffix in SUFFIXES:
            for each in _both_sides(path) if len(paths) == 1 else (path,):
                units[each,] = _Unit(each.name, partial(_of_file, each, wish))
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


def _in_memory(source: Source, split: str | None, name: str = "data") -> _Unit:
    if hasattr(source, "to_dict") and hasattr(source, "iterrows"):  # a data frame
        source = source.to_dict("records")
    if isinstance(source, Mapping) and "samples" in source:
        return _Unit(
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

    return _Unit(name, rows)


def _of_file(path: Path, wish: _Wish) -> Iterator[Row]:
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
