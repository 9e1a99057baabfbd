"""`trimtab task`: the built-in tasks, a look at one, and a check of your own file against a model's tokenizer.

Exit codes: 0 done, 1 where rows are broken, too few examples fit or no parts can be made, 2 usage. What is found out is
in `trimtab.tasks`; here it is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.commands.options import (
    DEFAULT_MODEL,
    Json,
    ModelName,
    console,
    defaults_from_file,
    open_model,
    print_json,
    usage,
)
from trimtab.errors import TaskError, nearest

if TYPE_CHECKING:
    from trimtab.tasks.example import Example
    from trimtab.tasks.files import Loaded
    from trimtab.tasks.fit import Fitted
    from trimtab.tasks.records import Place
    from trimtab.tasks.task import Task

app = typer.Typer(
    name="task", help="Tasks: list the built-in ones, show one, check one of yours.", no_args_is_help=True
)

SHOWN = 10
"""Lines of each kind that are named."""


@app.callback()
def settings(context: typer.Context) -> None:
    """Tasks: list the built-in ones, show one, check one of yours."""
    found = defaults_from_file()
    context.default_map = {"check": {"model": found["model"]}} if "model" in found else {}


def _complete(start: str) -> list[str]:
    from trimtab.tasks import builtin

    return [name for name in builtin.names() if name.startswith(start)]


Source = Annotated[
    str, typer.Argument(metavar="FILE_OR_NAME", help="A file or folder, or a built-in task.", autocompletion=_complete)
]
Mapped = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD=COLUMN", help='Where a field is, such as "positive=good"; may be repeated.'),
]
Every = Annotated[
    list[str] | None,
    typer.Option("--every", metavar="FIELD=TEXT", help='What is the same in all rows, such as "question=It is".'),
]
Metric = Annotated[str | None, typer.Option(help="What is measured, such as logit_diff.")]
Positive = Annotated[str | None, typer.Option(metavar="LABEL", help="The label of the positive side.")]
Encoding = Annotated[str, typer.Option(help="Of the file.")]
Most = Annotated[int | None, typer.Option(min=1, help="Rows to read at most.")]
Split = Annotated[str | None, typer.Option(metavar="PART", help="Of a data set in several parts.")]


@app.command("list")
def list_tasks(as_json: Json = False) -> None:
    """Show every built-in task."""
    from trimtab.tasks import builtin

    rows = [_facts(builtin.task(name)) for name in builtin.names()]
    if as_json:
        print_json({"tasks": rows})
        return
    from rich.table import Table

    table = Table("task", "shape", "examples", "groups", "about", box=None, pad_edge=False)
    for column in table.columns[:4]:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "shape", "examples", "groups", "about")))
    console().print(table)


@app.command()
def show(
    source: Source,
    number: Annotated[int, typer.Option("--number", "-n", min=0, help="Examples to show.")] = 3,
    mapped: Mapped = None,
    every: Every = None,
    positive: Positive = None,
    encoding: Encoding = "utf-8",
    split: Split = None,
    as_json: Json = False,
) -> None:
    """Show what a task is, and some of its examples from different groups."""
    from trimtab.tasks.task import Task

    found = read_source(source, mapped, every, None, positive, encoding, None, split)
    task = found if isinstance(found, Task) else found.sound()
    examples = task.take(min(number, len(task))).examples if number else ()
    if as_json:
        print_json(_facts(task) | {"parts": _parts(task), "shown": [_fields(example) for example in examples]})
        return
    out = console()
    out.print(f"{task.name}: {task.about}" if task.about else task.name, style="bold")
    groups = len(set(task.groups))
    out.print(f"{len(task)} {task.shape} examples in {groups} groups; {task.metric}; {task.poles[0]} / {task.poles[1]}")
    out.print(_told(_parts(task)))
    if task.source:
        out.print(f"source: {task.source}", style="dim")
    from rich.table import Table

    for example in examples:
        out.print()
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in _fields(example).items():
            table.add_row(name, _shown(value))
        out.print(table)


@app.command()
def check(
    source: Source,
    model: ModelName = DEFAULT_MODEL,
    mapped: Mapped = None,
    every: Every = None,
    metric: Metric = None,
    positive: Positive = None,
    encoding: Encoding = "utf-8",
    split: Split = None,
    most: Most = None,
    least: Annotated[int | None, typer.Option(min=1, help="Fail where fewer examples than this fit.")] = None,
    as_json: Json = False,
) -> None:
    """Say which rows of a file are good, which of them a model's tokenizer can do, and how they part.

    Exits with 1 where rows are broken, fewer than --least fit, or there are too few groups for three parts.
    """
    from trimtab.tasks.fit import fit
    from trimtab.tasks.task import Task

    found = read_source(source, mapped, every, metric, positive, encoding, most, split)
    task = found if isinstance(found, Task) else found.task
    loaded = None if isinstance(found, Task) else found
    problems: list[str] = []
    if loaded is not None and loaded.faults:
        problems.append(f"{len(loaded.faults)} of {loaded.rows} rows are broken")
    fitted = parts = None
    if task is None:
        problems.append("no row is good")
    else:
        lm = open_model(model, None, None, check=False)
        try:
            fitted = fit(lm, task)
        except TaskError as error:
            problems.append(str(error))
        else:
            if least is not None and len(fitted.task) < least:
                problems.append(f"{len(fitted.task)} examples fit {lm.name}, and {least} are needed")
            parts = _parts(fitted.task)
            if "error" in parts:
                problems.append(str(parts["error"]))
    if as_json:
        print_json(_document(loaded, task, fitted, parts, problems))
    else:
        _tell(loaded, task, fitted, parts)
    if problems:
        typer.echo(f"error: {'; '.join(problems)}", err=True)
        raise typer.Exit(1)


def checked_source(source: str | None) -> str | None:
    """The name of a task or of a file; a usage error for an empty one."""
    if source is not None and not source.strip():
        usage("the name of a task is empty: give a built-in task, as `trimtab task list` shows them, or a file")
    return source


def read_source(
    source: str,
    mapped: list[str] | None,
    every: list[str] | None,
    metric: str | None,
    positive: str | None,
    encoding: str,
    most: int | None,
    split: str | None = None,
) -> Loaded | Task:
    """What a file holds, or the built-in task of that name; a usage error for an empty name."""
    from trimtab.tasks import builtin
    from trimtab.tasks.files import read_task
    from trimtab.tasks.rows import MOST

    checked_source(source)
    mapping = field_values(mapped, "--map", "positive=good")
    same = field_values(every, "--every", "question=It is")
    if not Path(source).exists() and not Path(source).suffix and "/" not in source:
        if source in builtin.names() and (mapping or same):
            usage(f"{'--map' if mapping else '--every'} is for files: a built-in task has its fields already")
        task = builtin.task(source)
        return task if metric is None else task.with_(metric=_known(metric))
    return read_task(
        source,
        mapping=mapping,
        every=same,
        metric=metric,
        positive=positive,
        encoding=encoding,
        most=MOST if most is None else most,
        split=split,
    )


def _known(metric: str) -> str:
    from trimtab.tasks.metrics import check_name

    check_name(metric)
    return metric


def field_values(given: list[str] | None, flag: str, such: str) -> dict[str, str | list[str]] | None:
    """Fields and what was given for each; a field that is named again has several. `such` is an example of the flag."""
    from trimtab.tasks.formats import FIELDS

    found: dict[str, list[str]] = {}
    for text in given or ():
        name, sign, column = text.partition("=")
        if not sign or not column:
            usage(f'"{text}" must be a field and a {"column" if flag == "--map" else "text"}: {flag} "{such}"')
        if name not in FIELDS:
            usage(f'"{name}" is not a field of a task{nearest(name, FIELDS)}: there are {", ".join(FIELDS)}')
        found.setdefault(name, []).append(column)
    return {name: columns[0] if len(columns) == 1 else columns for name, columns in found.items()} or None


def _facts(task: Task) -> dict[str, object]:
    return {
        "name": task.name,
        "shape": task.shape,
        "examples": len(task),
        "groups": len(set(task.groups)),
        "metric": task.metric,
        "poles": list(task.poles),
        "about": task.about,
        "source": task.source,
    }


def _parts(task: Task) -> dict[str, object]:
    """Examples and groups of the three parts, or why there are none."""
    try:
        parts = task.split()
    except TaskError as error:
        return {"error": str(error)}
    return {
        name: {"examples": len(part), "groups": len(set(part.groups))}
        for name, part in zip(("train", "validation", "test"), parts, strict=True)
    }


def _told(parts: Mapping[str, object]) -> str:
    if "error" in parts:
        return f"no parts: {parts['error']}"
    told = [f"{name} {part['examples']} in {part['groups']}" for name, part in parts.items() if isinstance(part, dict)]
    return f"parts, in examples and groups: {', '.join(told)}"


def _fields(example: Example) -> dict[str, object]:
    """The fields of an example that hold something."""
    import dataclasses

    found = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
    return {name: value for name, value in found.items() if value not in ("", (), {}, None)}


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(part)}" for name, part in value.items())
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        return f"characters {value[0]} to {value[1]}"
    if isinstance(value, tuple):
        return ", ".join(repr(part) for part in value)
    return repr(value)


def _document(
    loaded: Loaded | None,
    task: Task | None,
    fitted: Fitted | None,
    parts: Mapping[str, object] | None,
    problems: list[str],
) -> dict[str, object]:
    faults = loaded.faults if loaded is not None else ()
    places = loaded.places if loaded is not None else ()
    dropped = fitted.dropped if fitted is not None else ()
    return {
        "task": loaded.name if loaded is not None else task.name if task is not None else None,
        "format": loaded.format if loaded is not None else "built-in",
        "rows": loaded.rows if loaded is not None else None,
        "broken": [{"file": at.file, at.unit: at.line, "reason": what} for at, what in faults],
        "notes": list(loaded.notes) if loaded is not None else [],
        "examples": 0 if task is None else len(task),
        "model": None if fitted is None else fitted.model,
        "fit": 0 if fitted is None else len(fitted.task),
        "dropped": [
            ({"file": places[d.index].file, places[d.index].unit: places[d.index].line} if places else {})
            | {"example": d.index, "reason": d.reason}
            for d in dropped
        ],
        "groups": 0 if fitted is None else len(set(fitted.task.groups)),
        "parts": parts,
        "good": not problems,
        "problems": problems,
    }


def _tell(loaded: Loaded | None, task: Task | None, fitted: Fitted | None, parts: Mapping[str, object] | None) -> None:
    out = console()
    if loaded is not None:
        good = loaded.rows - len(loaded.faults)
        out.print(f"{loaded.name}: {good} of {loaded.rows} rows are good ({loaded.format})", style="bold")
        for fault in loaded.faults[:SHOWN]:
            out.print(f"  {fault.place}: {fault.what}")
        if len(loaded.faults) > SHOWN:
            out.print(f"  … and {len(loaded.faults) - SHOWN} more")
        for note in loaded.notes:
            out.print(f"  {note}")
    if task is not None:
        out.print(f"{len(task)} {task.shape} examples in {len(set(task.groups))} groups, {task.metric}")
    if fitted is None:
        return
    out.print(str(fitted))
    if loaded is not None:
        for kind in dict.fromkeys(dropped.kind for dropped in fitted.dropped):
            at = dict.fromkeys(loaded.places[d.index] for d in fitted.dropped if d.kind == kind)
            out.print(f"  {kind}: {_listed(list(at))}")
    if parts is not None:
        out.print(_told(parts))


def _listed(places: Sequence[Place]) -> str:
    """Places in a few words: "pairs.csv lines 4, 9"."""
    shown: dict[str, list[str]] = {}
    for place in places[:SHOWN]:
        shown.setdefault(f"{place.file} {place.unit}", []).append(str(place.line))
    told = "; ".join(f"{where}{'s' if len(lines) > 1 else ''} {', '.join(lines)}" for where, lines in shown.items())
    return told + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
