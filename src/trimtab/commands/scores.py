"""`trimtab scores`: what a file of scores, or any other result, holds, how several agree, and their figure or page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.commands import results
from trimtab.commands.options import Json, console, print_json, usage, writable

if TYPE_CHECKING:
    from trimtab.values.saved import Saved
    from trimtab.values.scores import Scores

app = typer.Typer(
    name="scores",
    help="Files of scores and other results: show one, compare several, draw one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Scores, as `trimtab locate --out` keeps them.")]
Anything = Annotated[Path, typer.Argument(metavar="FILE", help="A file that `trimtab` or a value's `save` wrote.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Two files of scores or more.")]
Top = Annotated[int, typer.Option(min=0, help="Places to show.")]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with figures and tables.", callback=writable)
]


@app.command()
def show(file: Anything, top: Top = 20, html: Html = None, as_json: Json = False) -> None:
    """Show what was scored, how, and the strongest places; of any other kind of result what it holds."""
    from trimtab.values.saved import load
    from trimtab.values.scores import Scores

    value = load(file)
    if html is not None:
        page(html, [value])
        typer.echo(f"wrote {html}", err=True)
    if as_json:
        print_json(facts(value, top))
        return
    table(value, top)
    out = console()
    if isinstance(value, Scores):
        for name, option in value.options.items():
            out.print(f"{name}: {option}", style="dim", soft_wrap=True)
    provenance = getattr(value, "provenance", None)
    if provenance is not None and (line := provenance.options.get("command")):
        out.print(f"again: {line}", style="dim", soft_wrap=True)


@app.command()
def compare(
    files: Files,
    top: Annotated[int, typer.Option(min=1, help="How many of the strongest are compared.")] = 10,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Say how the rankings of several files agree, place by place."""
    if len(files) < 2:
        usage("compare takes two files of scores or more")
    from dataclasses import asdict
    from itertools import combinations

    several = [(str(path), _load(path)) for path in files]
    found = [(a, b, one.compare(other, top)) for (a, one), (b, other) in combinations(several, 2)]
    if html is not None:
        page(html, [scores for _, scores in several])
        typer.echo(f"wrote {html}", err=True)
    if as_json:
        print_json({"compared": [{"first": a, "second": b, **asdict(c)} for a, b, c in found]})
        return
    from rich.table import Column, Table

    names = [Column(name, overflow="fold") for name in ("scores", "and")]
    shown = Table(*names, "rank correlation", "shared", "p", "places", box=None, pad_edge=False)
    for a, b, c in found:
        shared = f"{round(c.overlap * c.k)} of {c.k}"
        shown.add_row(a, b, f"{c.rank_correlation:.2f}", shared, f"{c.p_value:.2g}", f"{c.cells:,}")
    console().print(shown)


@app.command()
def plot(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="An .svg or .html file.", callback=writable)],
    kind: Annotated[
        str | None, typer.Option(metavar="map|lines|bars", help="Which drawing; by default what fits.")
    ] = None,
) -> None:
    """Draw the scores to a file that needs nothing else to be seen."""
    _load(file).plot(kind).save(out)  # pyright: ignore[reportArgumentType]
    typer.echo(f"wrote {out}", err=True)


def facts(value: Saved, top: int) -> dict[str, object]:
    """What a value holds, as plain values: of scores the strongest places, of another its table or all its fields."""
    import json

    from trimtab.values.content import listed
    from trimtab.values.saved import frame_of
    from trimtab.values.scores import Scores

    if isinstance(value, Scores):
        return _facts_of_scores(value, top)
    frame = frame_of(value)
    held = {"content": listed(value)} if frame is None else {"rows": json.loads(str(frame.to_json(orient="records")))}
    return {"kind": value.KIND, "says": str(value), **held}


def _facts_of_scores(scores: Scores, top: int) -> dict[str, object]:
    import json

    from trimtab.values.tables import strongest

    return {
        "method": scores.method,
        "unit": scores.unit,
        "direction": scores.direction,
        "options": dict(scores.options),
        "examples": len(scores),
        "axes": {dim: len(scores.coords[dim]) for dim in scores.places},
        "site": scores.site,
        "order": scores.order,
        "top": [
            {**labels, "site": site, "mean": value.mean, "low": value.low, "high": value.high, "n": n}
            for labels, site, value, n in strongest(scores, top)
        ],
        "provenance": None if scores.provenance is None else json.loads(scores.provenance.to_json()),
    }


def table(value: Saved, top: int) -> None:
    """A value for a terminal: of scores the strongest places, of another its words and the first rows of its table."""
    from trimtab.values.saved import frame_of
    from trimtab.values.scores import Scores

    if isinstance(value, Scores):
        _table_of_scores(value, top)
        return
    frame = frame_of(value)
    console().print(str(value), soft_wrap=True)
    if frame is not None and top:
        results.table(frame, top)


def _table_of_scores(scores: Scores, top: int) -> None:
    from rich.table import Column, Table

    from trimtab.figures.numbers import common_places, interval_of, mean_of
    from trimtab.values.plots import about, pattern
    from trimtab.values.tables import strongest

    out = console()
    out.print(f"{scores.method or 'scores'}: {pattern(scores)}", style="bold")
    out.print(about(scores))
    rows = strongest(scores, top)
    places = common_places(value for _, _, value, _ in rows)
    numbers = [Column(name, justify="right") for name in ("mean", "95 %", "n")]
    shown = Table(Column("site", overflow="fold"), *numbers, box=None, pad_edge=False)
    for _, site, value, n in rows:
        shown.add_row(site, mean_of(value, places=places), interval_of(value, places), str(n))
    if rows:
        out.print(shown)
        out.print(f"the {len(rows)} strongest of {scores.mean().size:,} places", style="dim")
    else:
        out.print("no place has a value" if top else f"{scores.mean().size:,} places")


def _load(path: Path) -> Scores:
    from trimtab.values.scores import Scores

    return Scores.load(path)


def page(path: Path, values: Sequence[Saved]) -> None:
    """The page of several scores, or of one other value."""
    from trimtab.figures.figure import write_text
    from trimtab.report.scores import scores_html
    from trimtab.report.value import value_html
    from trimtab.values.scores import Scores

    scores = [value for value in values if isinstance(value, Scores)]
    write_text(path, scores_html(scores) if scores else value_html(values[0]))
