"""Fields: how a row of a table becomes the fields of an example, by our names, a mapping, or a known format.

What is wrong with the columns is a TaskError with the nearest name; what is wrong with one row is `Broken`, which
whoever reads rows collects with their places. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from trimtab.errors import TaskError, nearest
from trimtab.tasks.formats import ALSO, FIELDS, FORMATS, KINDS, TOGETHER, Format, Kind
from trimtab.tasks.records import Values
from trimtab.tasks.rows import Wish
from trimtab.tasks.templates import fields_of, fill


class Plan(NamedTuple):
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


class Broken(Exception):
    """What is wrong with a row."""


def plan_of(file: str, row: Values, wish: Wish) -> Plan:
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
    kind = kind_of({*specs, *every}) or kind_of({*specs, *every, *own})
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
    return Plan(kind, form, specs, every, take, frozenset(loose))


def _templates(spec: str | Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """As templates: a column is one that holds nothing but it."""
    each = (spec,) if isinstance(spec, str) else tuple(spec)
    return tuple(f"{{{one}}}" if one in columns else one for one in each)


def kind_of(names: set[str]) -> Kind | None:
    """The kind of row that has all the fields it must have in these; None where there is none."""
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
            raise Broken(f'"{empty[0]}" is empty, and "{spec}" needs it')
        for name, value in values.items():
            if not isinstance(value, str | int | float):
                raise Broken(f'"{name}" must be a text to be put into "{spec}", got {value!r:.60}')
        return fill(spec, values)[0]

    return filled


def _column(name: str, also: str | None = None) -> Callable[[Values], object]:
    return lambda row: row.get(name) if also is None or name in row else row.get(also)


def _missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is not itself


def fields(plan: Plan, row: Values) -> dict[str, Any]:
    """The fields of a row, checked one by one."""
    found: dict[str, Any] = dict(plan.every)
    for name, take in plan.take.items():
        value = take(row)
        if not _missing(value):
            found[name] = _checked(name, value)
        elif name in KINDS[plan.kind][0]:
            column = str(plan.specs[name])
            if column in row:
                raise Broken(f'"{column}" is {"empty" if isinstance(row[column], str) else row[column]}')
            raise Broken(f'there is no "{column}"{nearest(column, map(str, row))}')
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
            raise Broken(f'{name} must map names to texts, such as {{"subject": "France"}}, got {value!r}')
        return {str(key): tuple(span) if isinstance(span, list) else span for key, span in value.items()}
    if name == "clean" and isinstance(value, tuple):
        return tuple(_text(name, each) for each in value)
    return _text(name, value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise Broken(f"{name} must be a text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Broken(f"{name} holds half of a character, {value[error.start]!r}") from error
    return str(value)
