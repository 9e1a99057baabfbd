"""`trimtab runs`: the runs on this machine: list, show, compare, remove, find.

Everything is read from the folder of runs; nothing here needs a model.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.commands.options import Json, console, print_json, size, usage
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.studies.index import Row
    from trimtab.studies.state import RunState

app = typer.Typer(name="runs", help="The runs of studies: list, show, compare, remove.", no_args_is_help=True)


def complete_run(context: typer.Context, start: str) -> list[tuple[str, str]]:
    """Ids of runs, for the shell, with what they are."""
    from trimtab.studies.store import Store

    try:
        rows = Store(context.params.get("store")).list()
    except TrimtabError:
        return []
    words = [(row.id, f"{row.name}, {row.status}, {_when(row.created)}") for row in rows]
    words += [("last", "the latest of all")] if rows else []
    return [(word, about) for word, about in words if word.startswith(start)]


Folder = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="The folder of runs; ./runs by default.", envvar="TRIMTAB_RUNS"),
]
WHICH = 'A run: its id or the beginning of it, its folder, or "last".'
Run = Annotated[str, typer.Argument(metavar="RUN", help=WHICH, autocompletion=complete_run)]
Other = Annotated[str, typer.Argument(metavar="OTHER", help="Another run.", autocompletion=complete_run)]
Runs = Annotated[
    list[str], typer.Argument(metavar="RUN", help=WHICH + " Several may be given.", autocompletion=complete_run)
]


@app.command("list")
def list_runs(
    name: Annotated[str | None, typer.Option(help="Only runs of this name.")] = None,
    status: Annotated[str | None, typer.Option(help="Only new, running, finished, failed or interrupted runs.")] = None,
    store: Folder = None,
    as_json: Json = False,
) -> None:
    """List the runs, the latest first."""
    from trimtab.studies.state import STATUSES
    from trimtab.studies.store import Store

    if status is not None and status not in STATUSES:
        usage(f'there is no status "{status}": it is one of {", ".join(STATUSES)}')
    place = Store(store)
    rows = place.list(name=name, status=status)
    if as_json:
        print_json({"store": str(place.root), "runs": [_row(row) for row in rows], "damaged": dict(place.damaged)})
        return
    if rows:
        _table(rows)
    else:
        typer.echo(f"no runs{' like that' if name or status else ''} in {place.root}")
    for folder, reason in place.damaged.items():
        typer.echo(f"left out {folder}: {reason}", err=True)


@app.command()
def show(run: Run, store: Folder = None, as_json: Json = False) -> None:
    """Show what a run was asked and what it found: settings, stages, verdict, headline numbers, files."""
    from trimtab.studies.folder import run_files
    from trimtab.studies.store import Store

    folder = Store(store).find(run)
    state, files = folder.state, run_files(folder)
    if as_json:
        print_json(asdict(state) | {"path": str(folder.path), "files": files})
        return
    out = console()
    out.print(f"{state.name} {state.id}: {state.status}", style="bold")
    facts = {
        "folder": str(folder.path),
        "created": _when(state.created),
        "updated": _when(state.updated),
        "task": state.task,
        "model": f"{state.model} {state.model_hash[:12]}".strip(),
        "verdict": state.verdict or "",
        "error": state.error or "",
        "in use by": f"process {folder.holder()}" if state.status == "running" else "",
    }
    _pairs("", {name: fact for name, fact in facts.items() if fact})
    _pairs("notes", dict.fromkeys(state.notes, ""))
    _pairs("headline numbers", {name: _number(value) for name, value in state.metrics.items()})
    _pairs("stages", {name: f"{stage.seconds:,.1f} s" for name, stage in state.stages.items()})
    _pairs("settings", {name: _short(value) for name, value in flat(state.settings).items()})
    _pairs("files", {name: size(n) for name, n in files.items()})


@app.command()
def diff(run: Run, other: Other, store: Folder = None, as_json: Json = False) -> None:
    """Compare two runs: settings and stages that differ, and the headline numbers side by side."""
    from trimtab.studies.store import Store

    place = Store(store)
    a, b = place.find(run).state, place.find(other).state
    found = compare(a, b)
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(f"{a.id} ({a.name}) and {b.id} ({b.name})", style="bold")
    heads = (a.id, b.id)
    _sides("facts that differ", heads, found["facts"])
    _sides("settings that differ", heads, found["settings"])
    _sides("stages that differ", heads, {name: [d and d[:12] for d in pair] for name, pair in found["stages"].items()})
    if found["metrics"]:
        from rich.table import Table

        table = Table("headline numbers", *heads, "difference", box=None, pad_edge=False)
        for name, (left, right, change) in found["metrics"].items():
            table.add_row(name, _number(left), _number(right), _number(change, sign=True))
        out.print()
        out.print(table)
    if not (found["facts"] or found["settings"] or found["stages"]):
        out.print("\nno setting and no stage differs")


@app.command()
def remove(
    runs: Runs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Folder = None,
    as_json: Json = False,
) -> None:
    """Delete runs with all their files."""
    from trimtab.studies.store import Store

    place = Store(store)
    paths = list(dict.fromkeys(place.locate(run) for run in runs))  # all are known before the first one goes
    if not yes:
        if not sys.stdin.isatty():
            usage("deleting runs needs --yes where nobody can be asked")
        names = "".join(f"  {path.name}\n" for path in paths)
        typer.echo(f"{names}delete for good? [y/N]: ", nl=False, err=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            typer.echo("nothing was removed", err=True)
            raise typer.Exit(1)
    removed = [str(place.remove(str(path))) for path in paths]
    if as_json:
        print_json({"removed": removed})
    else:
        typer.echo("\n".join(f"removed {path}" for path in removed))


@app.command()
def rebuild(store: Folder = None, as_json: Json = False) -> None:
    """Make the index anew from the files."""
    from trimtab.studies.store import Store

    place = Store(store)
    count = place.rebuild()
    if as_json:
        print_json({"store": str(place.root), "runs": count, "damaged": dict(place.damaged)})
    else:
        typer.echo(f"runs in {place.root}: {count}, left out: {len(place.damaged)}")


@app.command()
def path(run: Run, store: Folder = None, as_json: Json = False) -> None:
    """Print the folder of a run."""
    from trimtab.studies.store import Store

    found = str(Store(store).find(run).path)
    if as_json:
        print_json({"path": found})
    else:
        typer.echo(found)


def compare(a: RunState, b: RunState) -> dict[str, Any]:
    """What differs between two runs, each as [a's, b's], and their numbers as [a's, b's, b's − a's]."""
    facts = {name: (getattr(a, name), getattr(b, name)) for name in ("name", "task", "model", "model_hash", "verdict")}
    left, right = flat(a.settings), flat(b.settings)
    digests = [{name: stage.digest for name, stage in state.stages.items()} for state in (a, b)]
    return {
        "runs": [a.id, b.id],
        "facts": {name: list(pair) for name, pair in facts.items() if pair[0] != pair[1]},
        "settings": _different(left, right),
        "stages": _different(*digests),
        "metrics": {
            name: [x, y, None if x is None or y is None else y - x]
            for name in dict.fromkeys([*a.metrics, *b.metrics])
            for x, y in [(a.metrics.get(name), b.metrics.get(name))]
        },
    }


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings with those of inner tables under dotted names.

    >>> flat({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found


def _different(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, list[Any]]:
    pairs = {name: [left.get(name), right.get(name)] for name in dict.fromkeys([*left, *right])}
    return {name: pair for name, pair in pairs.items() if _short(pair[0]) != _short(pair[1])}


def _row(row: Row) -> dict[str, object]:
    """A run of the list, for JSON."""
    names = ("id", "name", "status", "task", "model", "verdict", "created", "updated")
    return {name: getattr(row, name) for name in names} | {"metrics": row.numbers, "path": str(row.path)}


def _table(rows: list[Row]) -> None:
    from rich.table import Table

    table = Table("id", "name", "status", "created (UTC)", "model", "verdict", box=None, pad_edge=False)
    for column in (0, 2):
        table.columns[column].no_wrap = True
    for row in rows:
        table.add_row(row.id, row.name, row.status, _when(row.created), row.model, row.verdict or "")
    console().print(table)


def _pairs(title: str, pairs: Mapping[str, str]) -> None:
    """Names with what belongs to each, under a title; nothing where there are none."""
    from rich.table import Table

    if not pairs:
        return
    out = console()
    if title:
        out.print(f"\n{title}", style="bold")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in pairs.items():
        table.add_row(name, value)
    out.print(table)


def _sides(title: str, heads: tuple[str, str], pairs: Mapping[str, list[Any]]) -> None:
    """What two runs have under the same name, side by side; nothing where there is nothing."""
    from rich.table import Table

    if not pairs:
        return
    table = Table(title, *heads, box=None, pad_edge=False)
    for name, (left, right) in pairs.items():
        table.add_row(name, *("–" if value is None else _short(value)[:60] for value in (left, right)))
    console().print("")
    console().print(table)


def _short(value: object) -> str:
    """A setting as it is written in JSON, text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _number(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{'+' if sign else ''}.4g}"


def _when(time: str) -> str:
    """An ISO time down to the minute."""
    return time[:16].replace("T", " ")
