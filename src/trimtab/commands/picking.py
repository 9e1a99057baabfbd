"""Picking from a search in the terminal: its front, the menu, another rule for a search that was kept; and its files.

What is searched, and how, is not known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trimtab.commands.options import console, print_json, usage
from trimtab.commands.results import kept
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.values.search import Search

MENU = "menu"


def checked_rule(value: str | None) -> str | None:
    """A rule as it was written, or the menu; a usage error where it cannot be read."""
    if value is not None and value != MENU:
        from trimtab.values.front import Rule

        try:
            Rule.parse(value)
        except TrimtabError as error:
            usage(str(error))
    return value


def check_pick(pick: str | None, limit: float | None, as_json: bool) -> None:
    """A usage error for ways to pick that exclude each other."""
    if pick == MENU and as_json:
        usage("--pick menu asks a question, and --json prints one document: give a rule")
    if limit is not None and pick not in (None, MENU):
        usage(f"--limit is of the rule largest_effect_within, and --pick {pick} is another: leave one of them out")


def repicked(source: Path, limit: float | None, pick: str | None) -> Search:
    """A search that was kept, with the point of a limit, of a rule or of the menu picked."""
    from trimtab.values.front import Rule
    from trimtab.values.search import Search

    found = Search.load(source)
    if limit is not None:
        found = found.pick(Rule("largest_effect_within", limit))
    if pick is None:
        return found
    return menu(found) if pick == MENU else found.pick(pick)


def menu(found: Search) -> Search:
    """The front as a table, and a question for a number of it; an empty answer keeps what the rule picked."""
    _front(found)
    front = {str(number) for number in found.front}
    now = "none" if found.picked is None else str(found.picked)
    while True:
        answer = typer.prompt(f"Which point? (number; nothing keeps {now})", default="", show_default=False, err=True)
        answer = str(answer).strip()
        if not answer:
            return found
        if answer in front:
            return found.pick(int(answer))
        typer.echo(f"{answer} is not on the front: {', '.join(sorted(front, key=int))}", err=True)


def finish(found: Search, out: Path | None, vector: Path | None, html: Path | None, as_json: bool) -> None:
    """Show a search, and keep what was asked for."""
    if as_json:
        frame = found.to_frame()
        document: dict[str, object] = {"rule": found.rule, "unit": found.unit, "picked": found.picked, "how": found.how}
        document |= {"points": frame.to_dict(orient="records"), "left_out": dict(found.left_out)}
        document |= {"intervention": str(found.intervention) if found.picked is not None else None}
        print_json(document | {"out": out and str(out), "vector": vector and str(vector), "html": html and str(html)})
    else:
        _front(found)
        console().print(str(found), soft_wrap=True)
    kept(found, out, html)
    if vector is not None:
        if found.picked is None:
            raise TrimtabError(f"no point qualifies by the rule ({found.rule}): no intervention was kept")
        name = found.intervention.name or "picked"
        found.intervention.with_(name=name, provenance=found.provenance).save(vector)
        typer.echo(f"wrote {vector}", err=True)


def _front(found: Search) -> None:
    """The points of the front, the cheapest first; narrow enough for 80 columns where there is one method."""
    from rich.table import Column, Table

    from trimtab.figures.numbers import NONE, common_places, exact, interval_of, mean_of, number, share

    points = [(i, found.points[i]) for i in found.front]
    places = common_places(point.effect for _, point in points)
    methods = list(dict.fromkeys(point.method for point in found.points))
    names = ["method"] * (len(methods) > 1) + ["site", "scope"]
    columns = [Column("point", justify="right"), *(Column(name, overflow="fold") for name in names)]
    numbers = ("×", "effect", "95 %", "KL", "accuracy lost")
    columns += [Column(name, justify="right", no_wrap=name == "95 %") for name in numbers]
    title = methods[0] if len(methods) == 1 else None
    shown = Table(*columns, "", title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for i, p in points:
        where = [p.method] * (len(methods) > 1) + [p.site, p.scope]
        lost = NONE if p.capability is None else share(max(p.capability.mean, 0.0))
        note = "picked" if i == found.picked else "" if p.allowed else "over the limit"
        effect = (mean_of(p.effect, places=places), interval_of(p.effect, places))
        shown.add_row(str(i), *where, exact(p.coefficient), *effect, number(p.kl), lost, note)
    console().print(shown)
