"""`trimtab locate METHOD`: any locating method on a task, its options read from its signature.

Which methods there are is asked of `trimtab.locate.methods` when one is wanted, so that the command line itself stays
quick. What a method finds is shown, and kept in a file that `Scores.load`, `trimtab scores` and later stages read.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.commands.methods import (
    EXAMPLES,
    DataSeed,
    Examples,
    MethodGroup,
    Part,
    PartName,
    TaskName,
    command,
    complete_task,
    opened,
    prepared,
    progress,
    reporting,
    task_words,
    value_of,
    written,
)
from trimtab.commands.options import (
    DEFAULT_MODEL,
    Device,
    DryRun,
    Dtype,
    Json,
    ModelOption,
    console,
    defaults_from_file,
    open_model,
    print_json,
    usage,
    writable,
)
from trimtab.commands.scores import facts, table
from trimtab.commands.task import Every, Mapped, Metric, Positive, read_source

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from trimtab.model.lm import LM
    from trimtab.tasks.signatures import Method, Option
    from trimtab.tasks.task import Task

TOP = 10
SHADOWED = ("metric", "top")
"""Shared options that give way to a method's own of the same name."""


class Methods(MethodGroup):
    """A group whose commands are the locating methods."""

    def known(self) -> Mapping[str, Method]:
        """Every method by its name."""
        from trimtab.locate.methods import methods

        return methods()

    def named(self, name: str) -> Method:
        """A method by its name."""
        from trimtab.locate.methods import method

        return method(name)

    def made(self, name: str, function: Method) -> TyperCommand:
        """The command of a method: the shared options, and its own, which come first where both have one name."""
        from trimtab.tasks.signatures import options

        own = options(function)
        names = {option.name for option in own}
        shared = {
            key: parameter
            for key, parameter in inspect.signature(_shared, eval_str=True).parameters.items()
            if key not in names or key not in SHADOWED
        }
        if inspect.signature(function).parameters["task"].default is not inspect.Parameter.empty:
            shared["task"] = shared["task"].replace(annotation=TaskOrNone, default=None)

        def work(own: list[Option], told: dict[str, Any], flags: Mapping[str, str], given: dict[str, Any]) -> None:
            locate(name, function, own, told, flags, **{**dict.fromkeys(SHADOWED), **given})

        return command(name, function, own, shared, work)


app = typer.Typer(
    name="locate",
    cls=Methods,
    help="Score the places of a model for a task, by any locating method.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def settings(context: typer.Context) -> None:
    """Score the places of a model for a task, by any locating method.

    A method's own help says what its options are: trimtab locate patching --help
    """
    context.default_map = {context.invoked_subcommand or "": defaults_from_file()}


def _shared(
    task: TaskName,
    model: ModelOption = DEFAULT_MODEL,
    examples: Examples = EXAMPLES,
    part: PartName = "all",
    data_seed: DataSeed = 0,
    metric: Metric = None,
    mapped: Mapped = None,
    every: Every = None,
    positive: Positive = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Keep the scores, as safetensors.", callback=writable),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with figure and table.", callback=writable)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Places to show.")] = TOP,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """The options that all methods share; only its signature is used."""


TaskOrNone = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME|FILE",
        help="A built-in task or a file; without one, the method's own prompts.",
        autocompletion=complete_task,
    ),
]


def locate(
    name: str,
    function: Method,
    own: list[Option],
    chosen: dict[str, Any],
    flags: Mapping[str, str],
    *,
    task: str | None,
    model: str,
    examples: int,
    part: Part,
    data_seed: int,
    metric: str | None,
    mapped: list[str] | None,
    every: list[str] | None,
    positive: str | None,
    out: Path | None,
    html: Path | None,
    top: int | None,
    dtype: str | None,
    device: str | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Run a method, or say what that would cost, and show and keep what it finds."""
    more = {"--metric": metric, "--positive": positive, "--dtype": dtype, "--device": device}
    line = task_words(task, model, examples, part, data_seed, more, mapped, every)
    line += [word for key, value in chosen.items() for word in written(flags[key], value)]
    given = {o.name: value_of(o, chosen[o.name]) for o in own if o.name in chosen}
    lm = open_model(model, dtype, device, check=not dry_run)
    if task is None:
        if dry_run:
            usage(f"what {name} costs without a task is not known beforehand: give one with --task")
        with progress(name) as told:
            result = function(lm, **given, **reporting(function, told))
        _finish(result, shlex.join(["trimtab", "locate", name, *line]), out, html, top or TOP, as_json)
        return
    found = read_source(task, mapped, every, metric, positive, "utf-8", None)
    chosen_task = prepared(lm, found, part, examples, data_seed)
    for option in own:
        if option.name in given:
            given[option.name] = opened(option, given[option.name], lm, chosen_task, data_seed)
    if dry_run:
        plan = planned(lm, chosen_task.task, name, function, given)
        if as_json:
            print_json({"plan": plan.plain()})
        else:
            console().print(str(plan))
        return
    with progress(name) as told:
        result = function(lm, chosen_task.task, **given, **reporting(function, told))
    _finish(result, shlex.join(["trimtab", "locate", name, *line]), out, html, top or TOP, as_json)


@dataclass(frozen=True)
class Planned:
    """What a method would run on: examples and their tokens; and `plans.Cost`, as far as it is known beforehand."""

    method: str
    model: str
    task: str
    examples: int
    groups: int
    tokens: int
    places: int | None
    variants: int | None
    passes: float | None
    memory: int | None

    def plain(self) -> dict[str, object]:
        """As JSON holds it."""
        from dataclasses import asdict

        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.method} on {self.model}: {self.examples} examples of {self.task} in {self.groups} groups,",
            f"{self.tokens:,} tokens in their prompts, both sides together",
        ]
        if self.places is not None:
            lines.append(f"{self.places:,} places, each with a value for every example")
        if self.variants is not None:
            lines.append(f"at most {self.variants:,} variants of a run of one prompt")
        if self.passes is not None:
            lines.append(
                f"about {self.passes:,.0f} forward passes of a prompt at most, what an edit leaves as it was (layers "
                "below, positions before) not computed again"
            )
        else:
            lines.append("how many passes it takes is not known beforehand: it reads or differentiates whole batches")
        if self.memory is not None:
            lines.append(f"about {self.memory / 2**20:,.0f} MiB of activations together, the model apart")
        return "\n".join([*lines, "Nothing was run"])


def planned(lm: LM, task: Task, name: str, function: Method, given: Mapping[str, Any]) -> Planned:
    """The plan of a method with these options: prompts are tokenised and places counted, nothing is run."""
    from dataclasses import asdict

    from trimtab.locate.plans import cost, tokens

    found = cost(function, lm, task, given)
    groups = len(set(task.groups))
    return Planned(name, lm.name, task.name, len(task), groups, tokens(lm, task), **asdict(found))


def _finish(result: Any, line: str, out: Path | None, html: Path | None, top: int, as_json: bool) -> None:
    """Show and keep a result; the command that made it goes into its provenance."""
    from trimtab.values.scores import Scores

    scores = result if isinstance(result, Scores) else None
    if scores is not None and scores.provenance is not None:
        options = {**scores.provenance.options, "command": line}
        result = scores = scores.with_(provenance=scores.provenance.with_(options=options))
    if html is not None and scores is None:
        usage(f"--html shows scores, and this method gives a {type(result).__name__}: keep it with --out")
    if out is not None:
        result.save(out)
    if html is not None and scores is not None:
        from trimtab.figures.figure import write_text
        from trimtab.report.scores import scores_html

        write_text(html, scores_html(scores))
    if as_json:
        files = {"out": out and str(out), "html": html and str(html)}
        found = facts(scores, top) if scores is not None else {"result": repr(result)}
        print_json({**found, "command": line, **files})
    elif scores is not None:
        table(scores, top)
    else:
        console().print(repr(result))
    for path in (out, html):
        if path is not None:
            typer.echo(f"wrote {path}", err=True)
