"""`trimtab models`: the bundled models in the cache: list them, pull, check every byte, remove.

Progress and errors go to standard error, answers to standard output; with `--json` that is exactly one document. Exit
codes: 0 done, 1 failed, 2 usage, 3 an optional part is missing. How a model gets there, this file does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.errors import MissingExtra, TrimtabError

if TYPE_CHECKING:
    from trimtab.model.bundled import ModelStatus

app = typer.Typer(
    name="models", help="The bundled models in the cache: list, pull, check, remove.", no_args_is_help=True
)


def _known(name: str | None) -> str | None:
    """The name of a bundled model; any other is a usage error that names the nearest."""
    from trimtab.model.bundled import bundled_model

    try:
        return name and bundled_model(name).name
    except TrimtabError as error:
        raise typer.BadParameter(str(error)) from error


def _complete(start: str) -> list[str]:
    from trimtab.model.bundled import BUNDLED

    return [name for name in BUNDLED if name.startswith(start)]


Name = Annotated[str, typer.Argument(help="A bundled model.", callback=_known, autocompletion=_complete)]
AnyName = Annotated[
    str | None,
    typer.Argument(help="A bundled model; all of them by default.", callback=_known, autocompletion=_complete),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Show every bundled model, and whether it is in the cache."""
    from trimtab.model.bundled import BUNDLED, status

    with _failing(as_json):
        _show([status(name) for name in BUNDLED], as_json)


@app.command()
def pull(name: AnyName = None, as_json: Json = False) -> None:
    """Fetch a model and convert it, where that is not done; goes on where an earlier pull stopped."""
    from trimtab.model.bundled import BUNDLED, status
    from trimtab.model.bundled import pull as pull_model
    from trimtab.model.progress import bar

    names = [name] if name else list(BUNDLED)
    with _failing(as_json):
        for each in names:
            with bar(each) as progress:
                pull_model(each, progress)
        _show([status(each) for each in names], as_json)


@app.command()
def check(name: AnyName = None, as_json: Json = False) -> None:
    """Read every byte of what is in the cache; fails where a model is not as it should be."""
    from trimtab.model.bundled import BUNDLED, status
    from trimtab.model.bundled import check as check_model
    from trimtab.model.progress import bar

    found = []
    with _failing(as_json):
        for each in [name] if name else [each for each in BUNDLED if status(each).state != "absent"]:
            with bar(each) as progress:
                found.append(check_model(each, progress))
        _show(found, as_json)
    bad = [status for status in found if status.state != "ready"]
    for status_ in bad:
        reason = f": {status_.problem}" if status_.problem else ""
        typer.echo(
            f"{status_.name} is {status_.state}{reason}. Make it with: trimtab models pull {status_.name}", err=True
        )
    if bad:
        raise typer.Exit(1)


@app.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Delete a model from the cache, with all that was fetched for it."""
    from trimtab.model.bundled import remove as remove_model

    with _failing(as_json):
        freed = remove_model(name)
        typer.echo(json.dumps({"name": name, "freed": freed}) if as_json else f"{name}: {freed / 1e6:,.0f} MB freed")


def _show(found: list[ModelStatus], as_json: bool) -> None:
    """The state of models as a table or as one JSON document."""
    from trimtab.model.bundled import bundled_model

    if as_json:
        rows = [
            {
                "name": status.name,
                "state": status.state,
                "folder": str(status.folder),
                "size": status.size,
                "problem": status.problem,
                "to_fetch": bundled_model(status.name).wheel_size,
                "licence": bundled_model(status.name).licence,
            }
            for status in found
        ]
        typer.echo(json.dumps({"models": rows}, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "state", "in the cache", "to fetch", "licence", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for status in found:
        row = bundled_model(status.name)
        sizes = (f"{status.size / 1e6:,.0f} MB", f"{row.wheel_size / 1e6:,.0f} MB")
        table.add_row(status.name, status.state, *sizes, row.licence)
    Console().print(table)
    for status in found:
        if status.state != "absent":
            typer.echo(f"{status.name} is in {status.folder}")


@contextmanager
def _failing(as_json: bool) -> Iterator[None]:
    """An error of ours becomes one line on standard error, with `--json` a document too, and an exit code."""
    try:
        yield
    except TrimtabError as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error)}, ensure_ascii=False))
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3 if isinstance(error, MissingExtra) else 1) from error
