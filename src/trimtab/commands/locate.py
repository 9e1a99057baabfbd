"""`trimtab locate METHOD`: any locating method on a task, its options read from its signature.

Which methods there are is asked of `trimtab.locate.methods` when one is wanted, so that the command line itself stays
quick. What a method finds is shown, and kept in a file that `Scores.load`, `trimtab scores` and later stages read.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperGroup

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
    say,
    usage,
    writable,
)
from trimtab.commands.scores import facts, table
from trimtab.commands.task import Every, Mapped, Metric, Positive, read_source
from trimtab.errors import TaskError, TrimtabError

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from trimtab.locate.methods import Method, Option
    from trimtab.model.lm import LM
    from trimtab.tasks.files import Loaded
    from trimtab.tasks.task import Task

Part = Literal["train", "validation", "test", "all"]
PARTS = ("train", "validation", "test", "all")
EXAMPLES = 32
TOP = 10
SHADOWED = ("metric", "top")
"""Shared options that give way to a method's own of the same name."""


class Methods(TyperGroup):
    """A group whose commands are the locating methods, made when they are asked for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Every method."""
        from trimtab.locate.methods import methods

        return sorted(methods())

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The command of a method; a usage error, with the nearest one, where there is none."""
        from trimtab.locate.methods import method

        try:
            found = method(cmd_name)
        except TrimtabError as error:
            usage(str(error))
        return command(cmd_name.replace("-", "_"), found)


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


def complete_task(start: str) -> list[str]:
    """Names of built-in tasks, for the shell."""
    from trimtab.tasks import builtin

    return [name for name in builtin.names() if name.startswith(start)]


def _part(value: str) -> str:
    if value not in PARTS:
        usage(f"a part is {', '.join(PARTS)}, got {value}")
    return value


def shared(
    task: Annotated[
        str,
        typer.Option(
            "--task", "-t", metavar="NAME|FILE", help="A built-in task or a file.", autocompletion=complete_task
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    examples: Annotated[int, typer.Option(min=0, help="Examples at most; 0 for all.")] = EXAMPLES,
    part: Annotated[str, typer.Option(metavar="|".join(PARTS), help="Which part of the task.", callback=_part)] = "all",
    data_seed: Annotated[int, typer.Option(min=0, help="Of the parts and of the choice of examples.")] = 0,
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


def command(name: str, function: Method) -> TyperCommand:
    """The command of one method: the shared options, then its own, which come first where both have one name."""
    from trimtab.locate.methods import about, options

    own = options(function)
    names = {option.name for option in own}
    taken = {
        key: parameter
        for key, parameter in inspect.signature(shared, eval_str=True).parameters.items()
        if key not in names or key not in SHADOWED
    }
    if inspect.signature(function).parameters["task"].default is not inspect.Parameter.empty:
        taken["task"] = taken["task"].replace(annotation=TaskOrNone, default=None)
    flags = {option.name: f"method_{option.name}" if option.name in taken else option.name for option in own}

    def run(**given: Any) -> None:
        chosen = {o.name: given.pop(flags[o.name]) for o in own}
        told = {key: value for key, value in chosen.items() if value not in (None, [])}
        locate(name, function, own, told, flags, **{**dict.fromkeys(SHADOWED), **given})

    parameters = [
        inspect.Parameter(
            flags[o.name],
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if o.required else None,
            annotation=_annotated(o, flags[o.name]),
        )
        for o in own
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in taken.values()]
    ordered = [keyword[0], *parameters, *keyword[1:]]
    run.__signature__ = inspect.Signature(ordered)
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    run.__name__, run.__doc__ = name, about(function)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(name)(run)
    return cast("TyperCommand", typer.main.get_command(alone))


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
    line = ["--task", task] if task is not None else []
    line += [
        "--model",
        model,
        "--examples",
        str(examples),
        "--part",
        part,
        "--data-seed",
        str(data_seed),
    ]
    for flag, value in (("--metric", metric), ("--positive", positive), ("--dtype", dtype), ("--device", device)):
        line += [flag, value] if value is not None else []
    line += [word for pair in mapped or () for word in ("--map", pair)]
    line += [word for pair in every or () for word in ("--every", pair)]
    line += [word for key, value in chosen.items() for word in _written(flags[key], value)]
    given = {o.name: _value(o, chosen[o.name]) for o in own if o.name in chosen}
    lm = open_model(model, dtype, device, check=not dry_run)
    if task is None:
        if dry_run:
            usage(f"what {name} costs without a task is not known beforehand: give one with --task")
        with progress(name) as told:
            more = {"progress": told} if "progress" in inspect.signature(function).parameters else {}
            result = function(lm, **given, **more)
        _finish(result, shlex.join(["trimtab", "locate", name, *line]), out, html, top or TOP, as_json)
        return
    found = read_source(task, mapped, every, metric, positive, "utf-8", None)
    chosen_task = prepared(lm, found, part, examples, data_seed)
    for option in own:
        if option.name in given:
            given[option.name] = _opened(option, given[option.name], lm, chosen_task, data_seed)
    if dry_run:
        plan = planned(lm, chosen_task.task, name, function, given)
        if as_json:
            print_json({"plan": plan.plain()})
        else:
            console().print(str(plan))
        return
    with progress(name) as told:
        more = {"progress": told} if "progress" in inspect.signature(function).parameters else {}
        result = function(lm, chosen_task.task, **given, **more)
    _finish(result, shlex.join(["trimtab", "locate", name, *line]), out, html, top or TOP, as_json)


@dataclass(frozen=True)
class Prepared:
    """A task as a method gets it, and the whole that it was taken from."""

    task: Task
    whole: Task


def prepared(lm: LM, found: Loaded | Task, part: Part, examples: int, seed: int) -> Prepared:
    """The examples of a task that the model's tokenizer can do: a part of them, and so many of it."""
    from trimtab.tasks.fit import fit
    from trimtab.tasks.task import Task

    fitted = fit(lm, found if isinstance(found, Task) else found.sound())
    if fitted.dropped:
        say(str(fitted))
    whole = fitted.task
    task = _of(whole, part, seed)
    return Prepared(task.take(min(examples, len(task)), seed) if examples else task, whole)


def _of(task: Task, part: str, seed: int) -> Task:
    return task if part == "all" else getattr(task.split(seed), part)


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


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error with the time that is left, where someone is watching."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(name.replace("_", " "), total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


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


def _annotated(option: Option, flag: str) -> Any:
    """What Typer is told of one option: everything is text there but flags, so that its error can name the nearest."""
    from trimtab.locate.methods import READS

    name = f"--{flag.replace('_', '-')}"
    words = option.help.replace("`", "")
    words = words[:1].upper() + words[1:]
    if not option.required and option.default not in (None, ()):
        words = f"{words} Default: {_shown(option.default)}.".strip()
    if option.name in READS:
        return Annotated[
            list[str] if option.required else list[str] | None,
            typer.Option(name, metavar="SITES", help=f"{words} May be repeated: a list of candidates."),
        ]
    if option.kinds == ("flag",):
        return Annotated[bool | None, typer.Option(f"{name}/--no-{name[2:]}", help=words)]

    def complete(start: str) -> list[str]:
        return [word for word in option.choices if word.startswith(start)]

    metavar = "|".join([*option.choices, *(_METAVARS[kind] for kind in option.kinds)])
    made = typer.Option(
        name,
        metavar=f"{metavar},…" if option.listed else metavar,
        help=words,
        callback=_checked(option),
        autocompletion=complete,
    )
    return Annotated[str if option.required else str | None, made]


_METAVARS = {"flag": "BOOL", "whole": "INT", "number": "NUMBER", "words": "TEXT", "task": "NAME|FILE", "file": "FILE"}


def _checked(option: Option) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None:
            try:
                option.read(value)
            except TrimtabError as error:
                usage(str(error))
        return value

    return check


def _value(option: Option, given: Any) -> Any:
    from trimtab.locate.methods import READS

    if option.name in READS:
        return given[0] if len(given) == 1 else list(given)
    return option.read(given) if isinstance(given, str) else given


def _opened(option: Option, value: Any, lm: LM, task: Prepared, seed: int) -> Any:
    """What an option's text names: a part of the same task, another task, or a file of ours."""
    if not isinstance(value, str) or value in option.choices:
        return value
    if "task" in option.kinds:
        if value in PARTS:
            return _of(task.whole, value, seed)
        return prepared(lm, read_source(value, None, None, None, None, "utf-8", None), "all", 0, seed).task
    for kind in option.files:
        if Path(value).suffix or Path(value).exists():
            return kind.load(value)
    if option.files and "words" not in option.kinds:
        raise TaskError(f'{option.name} is {option.expected}, and there is no file "{value}"')
    return value


def _written(key: str, value: Any) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (flag, str(each))]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
