"""`trimtab search`: methods, places, scopes and coefficients tried, and the intervention that a rule or a person picks.

The search is kept in a file, from which another point can be picked later without a model (`--from`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.commands.methods import DataSeed, complete_task, prepared, progress
from trimtab.commands.options import (
    DEFAULT_MODEL,
    Device,
    DryRun,
    Dtype,
    Json,
    ModelOption,
    console,
    open_model,
    print_json,
    usage,
    writable,
)
from trimtab.commands.results import command_line, kept, method_options, numbers, several, with_command
from trimtab.commands.task import Every, Mapped, Metric, Positive, read_source
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.tasks.task import Task
    from trimtab.values.search import Search

MENU = "menu"
COEFFICIENTS, FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0), (0.0, 0.5, 2.0, 3.0)


def _rule(value: str | None) -> str | None:
    if value is not None and value != MENU:
        from trimtab.values.front import Rule

        try:
            Rule.parse(value)
        except TrimtabError as error:
            usage(str(error))
    return value


def search(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", metavar="NAME|FILE", help="A built-in task or a file.", autocompletion=complete_task
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", metavar="NAMES", help="Steering methods, separated by commas; may be repeated."),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(metavar="SITES", help='Places, such as "L8-20.resid_post"; may be repeated; "A + B" together.'),
    ] = None,
    coefficients: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Of vectors, separated by commas. Default: 0.5,1,1.5,2,3.")
    ] = None,
    factors: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Of scalings, separated by commas. Default: 0,0.5,2,3.")
    ] = None,
    scopes: Annotated[
        list[str] | None, typer.Option(metavar="SCOPES", help="Positions, separated by commas. Default: all.")
    ] = None,
    tpe: Annotated[bool, typer.Option("--tpe", help="Draw trials by Optuna's estimator instead of a grid.")] = False,
    trials: Annotated[int, typer.Option(min=1, help="With --tpe, how many.")] = 64,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --tpe, where trials are kept; a killed search goes on.", callback=writable
        ),
    ] = None,
    capability: Annotated[bool, typer.Option(help="Also measure accuracy on unrelated items.")] = True,
    limit: Annotated[
        float | None, typer.Option(min=0.0, help="Nats of KL per token that a point may cost. Default: 0.3.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="RULE|menu",
            help="largest_effect_within:KL, least_cost_for:EFFECT, knee, or menu to choose. Default: the limit's rule.",
            callback=_rule,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.OPTION=VALUE", help="An option of a method; may be repeated."),
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Examples that vectors are made from, at most.")] = 64,
    validation: Annotated[int, typer.Option(min=2, help="Examples that points are measured on, at most.")] = 32,
    length: Annotated[int, typer.Option(min=17, help="Tokens of each neutral passage.")] = 64,
    data_seed: DataSeed = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of what --tpe draws.")] = 0,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Pick from a search that was kept; nothing is run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Keep the search.", callback=writable)
    ] = None,
    vector: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the picked intervention.", callback=writable)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with figures and tables.", callback=writable)
    ] = None,
    metric: Metric = None,
    mapped: Mapped = None,
    every: Every = None,
    positive: Positive = None,
    model: ModelOption = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Search for an intervention: effect against KL and capability, on the validation part; the whole front is kept."""
    if pick == MENU and as_json:
        usage("--pick menu asks a question, and --json prints one document: give a rule")
    if limit is not None and pick not in (None, MENU):
        usage(f"--limit is of the rule largest_effect_within, and --pick {pick} is another: leave one of them out")
    if source is not None:
        from trimtab.values.front import Rule
        from trimtab.values.search import Search

        kept_before = Search.load(source)
        if limit is not None:
            kept_before = kept_before.pick(Rule("largest_effect_within", limit))
        _finish(_picked(kept_before, pick), out, vector, html, as_json)
        return
    if task is None or not sites:
        usage("give --task and --sites, or --from with the file of a search")
    chosen = several(methods) or ["difference_of_means"]
    given: dict[str, Any] = {
        "methods": chosen,
        "sites": sites,
        "coefficients": numbers(coefficients, COEFFICIENTS, "--coefficients"),
        "factors": numbers(factors, FACTORS, "--factors"),
        "scopes": several(scopes) or ["all"],
        "how": "tpe" if tpe else "grid",
        "trials": trials,
        "journal": journal,
        "capability": capability,
        "limit": limit,
        "rule": pick if pick not in (None, MENU) else None,
        "options": method_options(option, chosen),
        "train": train,
        "validation": validation,
        "length": length,
        "data_seed": data_seed,
        "seed": seed,
    }
    if journal is not None and not tpe:
        usage("--journal keeps trials, and a grid has none: add --tpe")
    found = read_source(task, mapped, every, metric, positive, "utf-8", None)
    lm = open_model(model, dtype, device, check=not dry_run)
    whole = prepared(lm, found, "all", 0, data_seed).task
    if dry_run:
        plan = _plan(lm, whole, given)
        if as_json:
            print_json({"plan": plan})
        else:
            console().print(_told(plan))
        return
    from trimtab.steer.search import search as run

    with progress("search") as told:
        made = run(lm, whole, **given, progress=told)
    made = with_command(made, command_line(context))
    if pick == MENU:
        kept(made, out, None)  # a search takes long, and a question can be broken off
    _finish(_picked(made, MENU if pick == MENU else None), out, vector, html, as_json)


def _picked(found: Search, pick: str | None) -> Search:
    """The search with the point of a rule, or of the menu, picked."""
    if pick is None:
        return found
    return found.pick(pick) if pick != MENU else _menu(found)


def _menu(found: Search) -> Search:
    """The front as a table, and a question for a number of it; an empty answer keeps what the rule picked."""
    _front(found)
    front = {str(number) for number in found.front}
    kept = "none" if found.picked is None else str(found.picked)
    while True:
        answer = typer.prompt(f"Which point? (number; nothing keeps {kept})", default="", show_default=False, err=True)
        answer = str(answer).strip()
        if not answer:
            return found
        if answer in front:
            return found.pick(int(answer))
        typer.echo(f"{answer} is not on the front: {', '.join(sorted(front, key=int))}", err=True)


def _front(found: Search) -> None:
    """The points of the front, the cheapest first."""
    from rich.table import Table

    from trimtab.figures.numbers import NONE, common_places, exact, interval_of, mean_of, number, share

    points = [(i, found.points[i]) for i in found.front]
    places = common_places(point.effect for _, point in points)
    shown = Table("number", "method", "site", "scope", "coefficient", "effect", "95 %", "KL", "accuracy lost", "")
    shown.box = None
    for column in (0, 4, 5, 6, 7, 8):
        shown.columns[column].justify = "right"
    for i, p in points:
        lost = NONE if p.capability is None else share(max(p.capability.mean, 0.0))
        note = "picked" if i == found.picked else "" if p.allowed else "over the limit"
        effect = (mean_of(p.effect, places=places), interval_of(p.effect, places))
        shown.add_row(str(i), p.method, p.site, p.scope, exact(p.coefficient), *effect, number(p.kl), lost, note)
    console().print(shown)


def _finish(found: Search, out: Path | None, vector: Path | None, html: Path | None, as_json: bool) -> None:
    """Show the search, and keep what was asked for."""
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


def _plan(lm: LM, task: Task, given: dict[str, Any]) -> dict[str, object]:
    """How many points, and about how many tokens go through the whole model; nothing is run."""
    from trimtab.evaluate import texts
    from trimtab.evaluate.places import parts_of, places
    from trimtab.steer.methods import takes_factor
    from trimtab.steer.proposals import resolved
    from trimtab.steer.search import ITEMS, PASSAGES
    from trimtab.tasks.measure import measure

    parts = parts_of(task, given["data_seed"])
    known, where = resolved(given["methods"]), places(lm, given["sites"])
    each = [given["factors"] if takes_factor(make) else given["coefficients"] for make in known.values()]
    grid = sum(map(len, each)) * len(where) * len(given["scopes"])
    points = given["trials"] if given["how"] == "tpe" else grid
    validation = parts.validation.take(given["validation"], given["data_seed"])
    tokens = int(measure(lm, validation, on="gap").prompts.lengths.sum()) + PASSAGES * given["length"]
    if given["capability"]:
        items = texts.some(texts.capability("search"), ITEMS, given["data_seed"])
        tokens += int(lm.prompts([item.prompt for item in items]).lengths.sum())
    return {
        "methods": list(known),
        "places": [place.label for place in where],
        "scopes": given["scopes"],
        "points": points,
        "tokens_of_a_point": tokens,
        "tokens": points * tokens,
        "train_examples": min(given["train"], len(parts.train)),
        "validation_examples": len(validation),
    }


def _told(plan: dict[str, Any]) -> str:
    places: Sequence[str] = plan["places"]
    shown = ", ".join(places[:6]) + (f" … {len(places)} in all" if len(places) > 6 else "")
    return (
        f"{plan['points']:,} points: {', '.join(plan['methods'])} at {shown}, scopes {', '.join(plan['scopes'])}\n"
        f"each about {plan['tokens_of_a_point']:,} tokens through the layers above its place, {plan['tokens']:,} in "
        f"all at most\nvectors from {plan['train_examples']} examples, points on {plan['validation_examples']}\n"
        "Nothing was run"
    )
