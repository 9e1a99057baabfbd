"""Files: tasks from data of your own or from the data sets of the field, and back into a file.

A file is read row by row and never as a whole, rows that are broken are reported with their lines, and a text that is
in two groups is refused. What a row must hold is a table (`FORMATS`); how texts are paired is `tasks.pairs`' affair. It
knows nothing of models and tokenizers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.errors import TaskError, nearest
from trimtab.tasks.builtin.refusal import HELP, REFUSAL
from trimtab.tasks.builtin.truth import QUESTION
from trimtab.tasks.example import Contrast, Counterfactual, Example
from trimtab.tasks.metrics import BY_NAME, Metric
from trimtab.tasks.pairs import Item, contrasts, fields_of, fill, own_groups, pair, refuse_leaks, sides_of, twins_of
from trimtab.tasks.rows import MOST, Place, Source, Unit, Values, Wish, units
from trimtab.tasks.task import Task

SHOWN = 10
"""Broken rows that a message lists."""
CANDIDATES = 4
"""Corrupt prompts for each clean one, where they are made here."""

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
    wish = Wish(mapping, every, name, metric, chat, positive, most, encoding, split)
    return _loaded(source, wish).sound()


def read_task(source: Source, **options: Any) -> Loaded:
    """As `load_task`, with its options, but broken rows are told and not raised."""
    return _loaded(source, Wish(**options))


def _loaded(source: Source, wish: Wish) -> Loaded:
    for key in (*(wish.mapping or ()), *(wish.every or ())):
        if key not in FIELDS:
            raise TaskError(f'"{key}" is not a field of a task{nearest(key, FIELDS)}: there are {", ".join(FIELDS)}')
    if isinstance(wish.metric, str) and wish.metric not in BY_NAME:
        known = ", ".join(BY_NAME)
        raise TaskError(f'unknown metric "{wish.metric}"{nearest(wish.metric, BY_NAME)}: there are {known}')
    if wish.most < 1:
        raise TaskError(f"most is the number of rows to read, 1 or more, got {wish.most}")
    name, found = units(source, wish)
    budget = _Budget(wish.most)
    parts = [part for unit in found if (part := _read(unit, wish, budget)) is not None]
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


HEADER = ("name", "about", "metric", "poles", "chat", "system", "read", "instruction", "source")


def _fields_of(example: Example) -> tuple[str, ...]:
    need, may = KINDS["contrast" if isinstance(example, Contrast) else "counterfactual"]
    return *need, *may


# What is read: parts, each of one file
# ---------------------------------------------------------------------------------------------------------------------


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


def _read(unit: Unit, wish: Wish, budget: _Budget) -> _Part | None:
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


def _is_header(place: Place, row: Values, wish: Wish) -> bool:
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


def _plan(file: str, row: Values, wish: Wish) -> _Plan:
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


def _examples(parts: Sequence[_Part], name: str, wish: Wish) -> Made:
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


def _labelled(parts: Sequence[_Part], name: str, wish: Wish) -> Made:
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


def _samples(parts: Sequence[_Part], name: str, wish: Wish) -> Made:
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


_MAKERS: dict[Kind, Callable[[Sequence[_Part], str, Wish], Made]] = {
    "contrast": _examples,
    "counterfactual": _examples,
    "labelled": _labelled,
    "samples": _samples,
}
