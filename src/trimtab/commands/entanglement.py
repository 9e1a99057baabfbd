"""`trimtab entanglement`: what each trait's intervention does to every other trait, all at the same KL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.commands.methods import DataSeed, prepared, progress
from trimtab.commands.options import (
    DEFAULT_MODEL,
    Device,
    DryRun,
    Dtype,
    Json,
    ModelOption,
    open_model,
    usage,
)
from trimtab.commands.results import (
    Html,
    Length,
    Out,
    Scope,
    Set,
    Train,
    bound,
    command_line,
    method_options,
    planned,
    several,
    shown,
    with_command,
)
from trimtab.commands.task import read_source

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.tasks.task import Task
    from trimtab.values.edit import Intervention


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
        planned([site] if site else [], rows * len(names), of_all, as_json)
        return
    from trimtab.evaluate.entanglement import entanglement as run

    made = {
        name: make(lm, part.train.take(train, data_seed), [site])
        for make in makes.values()
        for name, part in parts.items()
    }
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
