"""Files: tasks from data of your own or from the data sets of the field, and back into a file.

A file is read row by row and never as a whole, rows that are broken are reported with their lines, and a text that is
in two groups is refused. What a row must hold is a table (`tasks.formats`); how texts are paired is `tasks.labelled`'s
and `tasks.templates`' affair. It knows nothing of models and tokenizers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from trimtab.errors import TaskError, nearest
from trimtab.tasks.example import Contrast, Example
from trimtab.tasks.fields import Broken, Plan, fields, kind_of, plan_of
from trimtab.tasks.formats import FIELDS, FORMATS, KINDS
from trimtab.tasks.groups import refuse_leaks
from trimtab.tasks.making import MAKERS, Fault, Part
from trimtab.tasks.metrics import DEFAULT, NAMES, Metric, check_name
from trimtab.tasks.records import Place, Values
from trimtab.tasks.rows import MOST, Source, Unit, Wish, units
from trimtab.tasks.task import Task

SHOWN = 10
"""Broken rows that a message lists."""
HEADER = ("name", "about", "metric", "poles", "chat", "system", "read", "instruction", "source")
"""The settings of a task that the first line of its file may hold."""


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
    poles: Sequence[str] | None = None,
    instruction: str | None = None,
) -> Task:
    """A task from a file, several, a folder, or rows in memory.

    `source`: a .jsonl, .json, .csv or .tsv file; a file of one of the known data sets (docs/tasks.md); a folder of such
    files, or one that Hugging Face datasets saved; a list of paths; any iterable of mappings, or a data frame.
    `mapping` names for our fields (`FIELDS`) the column or a template with columns in braces; columns that bear our
    names need no mention. `every` gives fields that are the same in all rows. `metric`, `chat`, `name`, `poles` (words
    for the positive and the negative side) and `instruction` are those of the task, where they should not be those of
    the format or of the file's first line. `positive` is the label of the positive side. `most` rows are read,
    and a source with more is refused. `split` is the part of a data set that has several.

    Rows without a group are a group each, or share one where they share a text.

    Raises TaskError, which names file and line, where anything is broken.
    """
    wish = Wish(mapping, every, name, metric, chat, positive, most, encoding, split, poles, instruction)
    return _loaded(source, wish).sound()


def read_task(source: Source, **options: Any) -> Loaded:
    """As `load_task`, with its options, but broken rows are told and not raised."""
    return _loaded(source, Wish(**options))


def _loaded(source: Source, wish: Wish) -> Loaded:
    for key in (*(wish.mapping or ()), *(wish.every or ())):
        if key not in FIELDS:
            raise TaskError(f'"{key}" is not a field of a task{nearest(key, FIELDS)}: there are {", ".join(FIELDS)}')
    if isinstance(wish.metric, str):
        check_name(wish.metric)
    poles = tuple(wish.poles) if isinstance(wish.poles, Iterable) and not isinstance(wish.poles, str) else wish.poles
    if poles is not None and not _two_texts(poles):
        raise TaskError(f"poles are the two texts that name the sides, got {wish.poles!r}")
    if wish.instruction is not None and not isinstance(wish.instruction, str):
        raise TaskError(f"instruction must be a text, got {wish.instruction!r}")
    if wish.chat is not None and not isinstance(wish.chat, bool):
        raise TaskError(f"chat must be True or False, got {wish.chat!r}")
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
    examples, places, notes = MAKERS[first.plan.kind](parts, wish.name or name, wish)
    faults = sorted(fault for part in parts for fault in part.faults)
    form = first.plan.form
    settings: dict[str, Any] = {"name": name, "source": "; ".join((name, *notes))}
    if form is not None:
        settings |= {"about": form.about, "poles": first.poles or form.poles, "chat": form.chat, "read": form.read}
    settings |= first.header
    asked = {"name": wish.name, "metric": wish.metric, "chat": wish.chat, "poles": poles}
    asked |= {"instruction": wish.instruction}
    settings |= {key: value for key, value in asked.items() if value is not None}
    task = Task(examples=examples, **settings) if examples else None  # pyright: ignore[reportArgumentType]
    return Loaded(settings["name"], first.plan.named, budget.used, task, tuple(places), tuple(faults), tuple(notes))


def save_task(task: Task, path: str | PathLike[str]) -> None:
    """Write a task as JSON lines, which `load_task` reads back equal: a line that says what it is, then its examples.

    TaskError where its metric is a function, where a text is in two groups, or where the file cannot be written.
    """
    path = Path(path)
    if not isinstance(task.metric, str):
        raise TaskError(f"{task.name}: its metric is a function, and a file holds names only: {', '.join(NAMES)}")
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


def _fields_of(example: Example) -> tuple[str, ...]:
    need, may = KINDS["contrast" if isinstance(example, Contrast) else "counterfactual"]
    return *need, *may


# What is read: parts, each of one file
# ---------------------------------------------------------------------------------------------------------------------


class _Budget:
    """The rows that may still be read."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0

    def spend(self, place: Place) -> None:
        self.used += 1
        if self.used > self.most:
            more = 10 * self.most
            raise TaskError(
                f"{place.file} holds more than {self.most:,} rows (reading stopped at {place.unit} {place.line}): cut "
                f"the file down, or read more of them with most={more} in Python, --set most={more} of trimtab run, or "
                f"--most {more} of trimtab task check"
            )


def _read(unit: Unit, wish: Wish, budget: _Budget) -> Part | None:
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
            return Part(unit.name, Plan("contrast", None, {}, {}, {}), [], faults, header, unit.poles)
        return None
    plan = plan_of(unit.name, first[1], wish)
    good: list[tuple[Place, dict[str, Any]]] = []
    for place, row in chain([first], _counted(rows, budget)):
        try:
            if not isinstance(row, Mapping):
                raise Broken(str(row))
            good.append((place, fields(plan, row)))
        except Broken as error:
            faults.append(Fault(place, str(error)))
    return Part(unit.name, plan, good, faults, header, unit.poles)


def _counted(rows: Iterator[tuple[Place, object]], budget: _Budget) -> Iterator[tuple[Place, object]]:
    for place, row in rows:
        budget.spend(place)
        yield place, row


def _is_header(place: Place, row: Values, wish: Wish) -> bool:
    """Whether the first line says what the task is, rather than being an example with a column called task."""
    mapped = any(isinstance(spec, str) and spec in row for spec in (wish.mapping or {}).values())
    known = any(set(form.columns) <= set(row) for form in FORMATS)
    return place[1:] == (1, "line") and isinstance(row.get("task"), str) and not (mapped or known or kind_of(set(row)))


def _header(place: Place, row: Values) -> dict[str, Any]:
    """The settings in the first line of a saved task."""
    found: dict[str, Any] = {"name": row["task"]}
    for key, value in row.items():
        if key == "task":
            continue
        if key not in HEADER:
            raise TaskError(f'{place}: "{key}" is no setting of a task{nearest(key, HEADER)}: {", ".join(HEADER)}')
        found[key] = tuple(value) if key == "poles" and isinstance(value, list) else value
    for key in ("name", "about", "metric", "read", "instruction", "source"):
        if not isinstance(found.get(key, ""), str):
            raise TaskError(f"{place}: {key} must be a text, got {found[key]!r}")
    try:
        check_name(found.get("metric", DEFAULT))
    except TaskError as error:
        raise TaskError(f"{place}: {error}") from None
    if not isinstance(found.get("chat", False), bool):
        raise TaskError(f"{place}: chat must be true or false, got {found['chat']!r}")
    poles = found.get("poles", ("", ""))
    if not _two_texts(poles):
        raise TaskError(f"{place}: poles are the two texts that name the sides, got {poles!r}")
    return found


def _two_texts(poles: object) -> bool:
    return isinstance(poles, tuple) and len(poles) == 2 and all(isinstance(pole, str) for pole in poles)
