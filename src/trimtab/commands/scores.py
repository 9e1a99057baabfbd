"""`trimtab scores`: what a file of scores, or any other result, holds, how several agree, and their figure or page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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

    scores = load(file)
    if not isinstance(scores, Scores):
        _show(scores, top, html, as_json)
        return
    if html is not None:
        _page(html, [scores])
    if as_json:
        print_json(facts(scores, top))
        return
    table(scores, top)
    out = console()
    for name, value in scores.options.items():
        out.print(f"{name}: {value}", style="dim", soft_wrap=True)
    if scores.provenance is not None and (line := scores.provenance.options.get("command")):
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
        _page(html, [scores for _, scores in several])
    if as_json:
        print_json({"compared": [{"first": a, "second": b, **asdict(c)} for a, b, c in found]})
        return
    from rich.table import Table

    shown = Table("scores", "and", "rank correlation", "shared", "p", "places", box=None, pad_edge=False)
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


def facts(scores: Scores, top: int) -> dict[str, object]:
    """What a file of scores holds, as plain values."""
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


def table(scores: Scores, top: int) -> None:
    """What was scored and the strongest places, for a terminal."""
    from rich.table import Table

    from trimtab.figures.numbers import common_places, interval_of, mean_of
    from trimtab.values.plots import about, pattern
    from trimtab.values.tables import strongest

    out = console()
    out.print(f"{scores.method or 'scores'}: {pattern(scores)}", style="bold")
    out.print(about(scores))
    rows = strongest(scores, top)
    places = common_places(value for _, _, value, _ in rows)
    shown = Table("site", "mean", "95 %", "n", box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
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


def _show(value: Saved, top: int, html: Path | None, as_json: bool) -> None:
    """A value that is no scores: its words and its table; the page is that of `report.value`."""
    if html is not None:
        from trimtab.figures.figure import write_text
        from trimtab.report.value import value_html

        write_text(html, value_html(value))
        typer.echo(f"wrote {html}", err=True)
    from trimtab.values.saved import frame_of

    frame = frame_of(value)
    if as_json:
        import json

        from trimtab.values.content import listed

        held = (
            {"content": listed(value)} if frame is None else {"rows": json.loads(str(frame.to_json(orient="records")))}
        )
        print_json({"kind": value.KIND, "says": str(value), **held})
        return
    out = console()
    out.print(str(value), soft_wrap=True)
    if frame is not None and top:
        from rich.table import Table

        shown = Table(*map(str, frame.columns), box=None, pad_edge=False)
        for row in frame.head(top).itertuples(index=False):
            shown.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
        out.print(shown)
        out.print(f"{min(top, len(frame))} of {len(frame):,} rows", style="dim")


def _page(path: Path, several: list[Scores]) -> None:
    from trimtab.figures.figure import write_text
    from trimtab.report.scores import scores_html

    write_text(path, scores_html(several))
    typer.echo(f"wrote {path}", err=True)
