"""`trimtab robustness`, `entanglement` and `ablation-study`: whether what was located and steered holds.

Each writes a file that can be loaded again and a page with tables and figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.commands.methods import DataSeed, TaskName, prepared, progress
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
from trimtab.commands.results import bound, command_line, method_options, numbers, several, shown, with_command
from trimtab.commands.task import Every, Mapped, Metric, Positive, read_source

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.tasks.task import Task
    from trimtab.values.edit import Intervention

Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Keep the result.", callback=writable)]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with figures and tables.", callback=writable)
]
Methods = Annotated[
    list[str], typer.Option("--methods", metavar="NAMES", help="Vector methods, separated by commas; may be repeated.")
]
Sites = Annotated[list[str], typer.Option(metavar="SITES", help='Places, such as "L8-20.resid_post"; may be repeated.')]
Scope = Annotated[str, typer.Option("--scope", metavar="SCOPE", help="Positions at which vectors are added.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.OPTION=VALUE", help="An option of a method; may be repeated."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the parts, the examples and the draws.")]
Train = Annotated[int, typer.Option(min=1, help="Examples that vectors are made from, at most.")]
Length = Annotated[int, typer.Option(min=17, help="Tokens of each neutral passage.")]


def robustness(
    context: typer.Context,
    task: TaskName,
    methods: Methods,
    sites: Sites,
    coefficients: Annotated[str, typer.Option(metavar="NUMBERS", help="Of vectors, separated by commas.")] = "0.5,1,2",
    scope: Scope = "all",
    option: Set = None,
    on: Annotated[str, typer.Option(metavar="validation|test", help="The part that is measured.")] = "test",
    limit: Annotated[float, typer.Option(min=0.0, help="Nats of KL per token at which methods are compared.")] = 0.3,
    draws: Annotated[int, typer.Option(min=0, help="Random directions for each method and place.")] = 10,
    train: Train = 64,
    examples: Annotated[int, typer.Option(min=2, help="Examples that are measured, at most.")] = 48,
    length: Length = 64,
    seed: Seed = 0,
    out: Out = None,
    html: Html = None,
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
    """Make a concept's vector by several methods at several layers, and compare effect, cost and agreement."""
    if on not in ("validation", "test"):
        usage(f"--on is validation or test, got {on}")
    chosen, steps = several(methods), numbers(coefficients, (), "--coefficients")
    makes = bound(chosen, method_options(option, chosen), scope)
    found = read_source(task, mapped, every, metric, positive, "utf-8", None)
    lm = open_model(model, dtype, device, check=not dry_run)
    whole = prepared(lm, found, "all", 0, seed).task
    if dry_run:
        from trimtab.evaluate.places import parts_of, places

        where = places(lm, sites)
        part = getattr(parts_of(whole, seed), on)
        variants = len(makes) * len(where) * (len(steps) + 2 * draws)
        _plan({"places": [p.label for p in where], "variants": variants, "examples": min(examples, len(part))}, as_json)
        return
    from trimtab.evaluate.robustness import robustness as run

    with progress("robustness") as told:
        value = run(
            lm,
            whole,
            makes,
            sites,
            steps,
            on="validation" if on == "validation" else "test",
            limit=limit,
            draws=draws,
            train=train,
            examples=examples,
            length=length,
            seed=seed,
            progress=told,
        )
    value = with_command(value, command_line(context))
    shown(value, value.summary(), out, html, as_json)


def entanglement(
    context: typer.Context,
    tasks: Annotated[
        list[str], typer.Option("--tasks", metavar="NAMES", help="Tasks, separated by commas; may be repeated.")
    ],
    method: Annotated[str, typer.Option(metavar="NAME", help="Makes each task's vector.")] = "difference_of_means",
    site: Annotated[str | None, typer.Option(metavar="SITE", help="Where vectors are made and added.")] = None,
    vectors: Annotated[
        list[str] | None,
        typer.Option("--vector", metavar="NAME=FILE", help="An intervention from a file; may be repeated."),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Take files that were made on weights with another hash.")
    ] = False,
    scope: Scope = "all",
    option: Set = None,
    kl: Annotated[float, typer.Option(min=1e-6, help="Nats of KL per token that each is set to.")] = 0.1,
    draws: Annotated[int, typer.Option(min=0, help="Random directions of the same KL, to compare with.")] = 5,
    train: Train = 64,
    examples: Annotated[int, typer.Option(min=2, help="Examples of each task, at most.")] = 32,
    length: Length = 64,
    data_seed: DataSeed = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples that are measured and the random directions.")] = 0,
    out: Out = None,
    html: Html = None,
    model: ModelOption = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Show what each trait's intervention does to every other trait, all at the same KL on neutral text."""
    names = several(tasks)
    if site is None and not vectors:
        usage("give --site, where each task's vector is made and added, or interventions with --vector NAME=FILE")
    makes = bound([method], method_options(option, [method]), scope) if site is not None else {}
    lm = open_model(model, dtype, device, check=not dry_run)
    interventions = _loaded(lm, vectors or [], any_model)
    if site is not None and (twice := sorted({*names} & {*interventions})):
        usage(f"{twice[0]} is made at {site} and given with --vector too: give the file another NAME")
    parts = {name: _fitted(lm, name, data_seed).split(data_seed) for name in names}
    if dry_run:
        of_all = sum(min(examples, len(part.test)) for part in parts.values())
        rows = len(names) * (site is not None) + len(interventions) + draws
        _plan({"places": [site] if site else [], "variants": rows * len(names), "examples": of_all}, as_json)
        return
    from trimtab.evaluate.entanglement import entanglement as run

    made: dict[str, Intervention] = {}
    if site is not None:
        for name, part in parts.items():
            made[name] = next(iter(makes.values()))(lm, part.train.take(train, data_seed), [site])
    with progress("entanglement") as told:
        value = run(
            lm,
            made | interventions,
            {name: part.test for name, part in parts.items()},
            kl=kl,
            draws=draws,
            examples=examples,
            length=length,
            seed=seed,
            progress=told,
        )
    value = with_command(value, command_line(context))
    shown(value, value.to_frame(), out, html, as_json)


def ablation_study(
    context: typer.Context,
    task: TaskName,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Scores, as `trimtab locate --out` keeps them.")
    ] = None,
    sites: Annotated[
        list[str] | None, typer.Option(metavar="SITE", help="Parts in the order in which they go; may be repeated.")
    ] = None,
    k: Annotated[str, typer.Option("--k", metavar="NUMBERS", help="How many parts at once.")] = "1,2,4,8",
    kinds: Annotated[
        list[str] | None, typer.Option(metavar="zero|mean|resample", help="Separated by commas. Default: all three.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random sets of the same kind and layers.")] = 5,
    part: Annotated[str, typer.Option(metavar="train|validation|test|all", help="Which part of the task.")] = "test",
    examples: Annotated[int, typer.Option(min=2, help="Examples at most.")] = 32,
    length: Length = 64,
    data_seed: DataSeed = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets and of the prompts resampled from.")] = 0,
    out: Out = None,
    html: Html = None,
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
    """Ablate located parts, more and more, and read the behaviour and general performance beside random parts."""
    if (scores is None) == (not sites):
        usage("give the parts with --scores or with --sites")
    if part not in ("train", "validation", "test", "all"):
        usage(f"a part is train, validation, test, all, got {part}")
    given = numbers(k, (), "--k")
    if any(number < 1 or number != int(number) for number in given):
        usage(f"--k takes whole numbers of 1 or more, got {k}")
    wanted = [int(number) for number in given]
    located: Any = sites
    if scores is not None:
        from trimtab.values.scores import Scores

        located = Scores.load(scores)
    found = read_source(task, mapped, every, metric, positive, "utf-8", None)
    lm = open_model(model, dtype, device, check=not dry_run)
    chosen = prepared(lm, found, part, examples, data_seed).task
    from trimtab.evaluate.ablation_study import KINDS
    from trimtab.evaluate.ablation_study import ablation_study as run

    ways: list[Any] = several(kinds) or list(KINDS)
    if dry_run:
        variants = len(ways) * len(wanted) * (1 + draws)
        _plan({"places": [f"{max(wanted)} at most"], "variants": variants, "examples": len(chosen)}, as_json)
        return
    with progress("ablation study") as told:
        value = run(lm, chosen, located, k=wanted, kinds=ways, draws=draws, length=length, seed=seed, progress=told)
    value = with_command(value, command_line(context))
    shown(value, value.to_frame(), out, html, as_json)


def _fitted(lm: LM, name: str, seed: int) -> Task:
    return prepared(lm, read_source(name, None, None, None, None, "utf-8", None), "all", 0, seed).task


def _loaded(lm: LM, given: list[str], any_model: bool) -> dict[str, Intervention]:
    """Interventions written NAME=FILE, made on this model unless any will do."""
    from trimtab.steer.formats import load_vector

    found: dict[str, Intervention] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (equals and name and file):
            usage(f'an intervention is written NAME=FILE, got "{text}"')
        if name in found:
            usage(f"--vector names {name} twice: give each file a NAME of its own")
        found[name] = load_vector(file, lm, any_model=any_model)
    return found


def _plan(facts: dict[str, object], as_json: bool) -> None:
    """What would be run, as far as it is known beforehand."""
    if as_json:
        print_json({"plan": facts})
        return
    places = facts["places"]
    shown_places = ", ".join(map(str, places)) if isinstance(places, list) else places
    console().print(
        f"{facts['variants']:,} variants on {facts['examples']:,} examples; places: {shown_places}\nNothing was run"
    )
