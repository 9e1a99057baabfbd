"""`trimtab ablation-study`: what becomes of the behaviour, and of the model, without more and more located parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.commands.methods import DataSeed, PartName, TaskName, prepared, progress
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
    command_line,
    numbers,
    planned,
    several,
    shown,
    with_command,
)
from trimtab.commands.task import Every, Mapped, Metric, Positive, read_source


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
    part: PartName = "test",
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
    wanted = _counts(k)
    located: Any = sites
    if scores is not None:
        from trimtab.values.scores import Scores

        located = Scores.load(scores)
    found = read_source(task, mapped, every, metric, positive, "utf-8", None)
    lm = open_model(model, dtype, device, check=not dry_run)
    chosen = prepared(lm, found, part, examples, data_seed, read="clean").task
    from trimtab.evaluate.ablation_study import KINDS, ablated_sets
    from trimtab.evaluate.ablation_study import ablation_study as run

    ways: list[Any] = several(kinds) or list(KINDS)
    if dry_run:
        sets = ablated_sets(lm, located, k=wanted, kinds=ways, draws=draws, seed=seed)
        planned(list(map(str, sets[0])), len(ways) * len(wanted) * len(sets), len(chosen), as_json)
        return
    with progress("ablation study") as told:
        value = run(lm, chosen, located, k=wanted, kinds=ways, draws=draws, length=length, seed=seed, progress=told)
    value = with_command(value, command_line(context))
    shown(value, value.to_frame(), out, html, as_json)


def _counts(k: str) -> list[int]:
    """How many parts at once, each once; a usage error for what is no whole number of 1 or more."""
    given = numbers(k, (), "--k")
    if any(number < 1 or number != int(number) for number in given):
        usage(f"--k takes whole numbers of 1 or more, got {k}")
    return sorted({int(number) for number in given})
