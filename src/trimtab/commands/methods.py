"""Commands made of methods: a group of them, their options read from signatures, and the task that they are given.

`trimtab locate METHOD` and `trimtab steer METHOD` share it. Which methods there are, and what becomes of a result, is
not known here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from trimtab.commands.options import say, usage
from trimtab.commands.outline import Outline, outlines
from trimtab.commands.task import checked_source, read_source
from trimtab.errors import TaskError, TrimtabError

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.tasks.files import Loaded
    from trimtab.tasks.fit import Read
    from trimtab.tasks.signatures import Method, Option
    from trimtab.tasks.task import Task

PARTS = ("train", "validation", "test", "all")

Run = Callable[["list[Option]", "dict[str, Any]", "Mapping[str, str]", "dict[str, Any]"], None]
"""(the method's own options, what was given of them, the flag of each, what was given of the shared ones)"""


def method_group(listed: Callable[[], Mapping[str, str]], made: Callable[[str], TyperCommand]) -> type[TyperGroup]:
    """A group whose commands are methods, beside those that are registered with it.

    `listed` gives every method's name and what it is about, without importing it, for help and completion; `made` the
    command of one, when it is called. It raises TrimtabError, with the nearest name, where there is none.
    """

    class Methods(TyperGroup):
        """Commands that are made when they are asked for."""

        def list_commands(self, ctx: typer.Context) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Every name."""
            return sorted({*self.commands, *listed()})

        def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """What a list says of a command: its name and what it is about."""
            if cmd_name in self.commands:
                return cast("TyperCommand", self.commands[cmd_name])
            about = listed().get(cmd_name)
            return None if about is None else TyperCommand(cmd_name, help=about)

        def resolve_command(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, ctx: typer.Context, args: list[str]
        ) -> tuple[str | None, TyperCommand | None, list[str]]:
            """The command that is called, with its options."""
            name = args[0].replace("-", "_")
            if name in self.commands:
                return name, cast("TyperCommand", self.commands[name]), args[1:]
            try:
                return args[0], made(name), args[1:]
            except TrimtabError as error:
                if ctx.resilient_parsing:
                    return None, None, args[1:]
                usage(str(error))

    return Methods


def listing(
    package: str, offered: Callable[[], Mapping[str, Method]], fits: Callable[[Outline], bool]
) -> dict[str, str]:
    """The names of a package's methods and what they are about.

    Told from the package's source by `fits`; where other packages offer methods under the entry point group of its
    name, from the functions themselves (`offered`), since these have to be imported to be described.
    """
    if metadata.entry_points(group=package):
        from trimtab.tasks.signatures import about

        return {name: about(function) for name, function in offered().items()}
    return {found.name: found.about for found in outlines(package) if fits(found)}


def command(
    name: str, function: Method, own: list[Option], shared: Mapping[str, inspect.Parameter], work: Run
) -> TyperCommand:
    """The command of one method: the first of the shared options, then its own, then the others.

    An option of the method's own that has the name of a shared one is written `--method-NAME`.
    """
    from trimtab.tasks.signatures import about

    flags = {option.name: f"method_{option.name}" if option.name in shared else option.name for option in own}

    def run(**given: Any) -> None:
        chosen = {o.name: given.pop(flags[o.name]) for o in own}
        told = {key: value for key, value in chosen.items() if value not in (None, [])}
        work(own, told, flags, given)

    parameters = [
        inspect.Parameter(
            flags[o.name],
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if o.required else None,
            annotation=_annotated(o, flags[o.name]),
        )
        for o in own
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shared.values()]
    ordered = [*keyword[:1], *parameters, *keyword[1:]]
    run.__signature__ = inspect.Signature(ordered)
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    run.__name__, run.__doc__ = name, about(function)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(name)(run)
    return cast("TyperCommand", typer.main.get_command(alone))


# The task
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A task as a method gets it, the whole that it was taken from, and which prompts of that are used."""

    task: Task
    whole: Task
    read: Read = "both"


def prepared(lm: LM, found: Loaded | Task, part: str, examples: int, seed: int, *, read: Read = "both") -> Prepared:
    """The examples of a task that the model's tokenizer can do: a part of them, and so many of it.

    `read` is which prompts of counterfactual ones are used (`tasks.fit`)."""
    from trimtab.tasks.fit import fit
    from trimtab.tasks.task import Task

    fitted = fit(lm, found if isinstance(found, Task) else found.sound(), read=read)
    if fitted.dropped:
        say(str(fitted))
    whole = fitted.task
    task = part_of(whole, part, seed)
    return Prepared(task.take(min(examples, len(task)), seed) if examples else task, whole, read)


def part_of(task: Task, part: str, seed: int) -> Task:
    """A part of a task, or all of it."""
    return task if part == "all" else getattr(task.split(seed), part)


def checked_part(value: str) -> str:
    """The name of a part; a usage error for another."""
    if value not in PARTS:
        usage(f"a part is {', '.join(PARTS)}, got {value}")
    return value


def complete_task(start: str) -> list[str]:
    """Names of built-in tasks, for the shell."""
    from trimtab.tasks import builtin

    return [name for name in builtin.names() if name.startswith(start)]


TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME|FILE",
        help="A built-in task or a file.",
        callback=checked_source,
        autocompletion=complete_task,
    ),
]
Examples = Annotated[int, typer.Option(min=0, help="Examples at most; 0 for all.")]
PartName = Annotated[str, typer.Option(metavar="|".join(PARTS), help="Which part of the task.", callback=checked_part)]
DataSeed = Annotated[int, typer.Option(min=0, help="Of the parts and of the choice of examples.")]


# Values
# ---------------------------------------------------------------------------------------------------------------------


def value_of(option: Option, given: Any) -> Any:
    """What the text of an option stands for."""
    from trimtab.tasks.signatures import READS

    if option.name in READS:
        return given[0] if len(given) == 1 else list(given)
    return option.read(given) if isinstance(given, str) else given


def opened(option: Option, value: Any, lm: LM, task: Prepared | None, seed: int, *, read: Read = "both") -> Any:
    """What an option's text names: a part of the same task, another task, or a file of ours.

    `read` is which prompts of that task are used. Where the task itself was fitted for other ones, its part is fitted
    again: it still shares no group with the other parts.
    """
    if not isinstance(value, str) or value in option.choices:
        return value
    if "task" in option.kinds:
        if value in PARTS and task is not None:
            part = part_of(task.whole, value, seed)
            return part if read == task.read else prepared(lm, part, "all", 0, seed, read=read).task
        found = read_source(value, None, None, None, None, "utf-8", None)
        return prepared(lm, found, "all", 0, seed, read=read).task
    for kind in option.files:
        if Path(value).suffix or Path(value).exists():
            return kind.load(value)
    if option.files and "words" not in option.kinds:
        raise TaskError(f'{option.name} is {option.expected}, and there is no file "{value}"')
    return value


def written(key: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (flag, str(each))]


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


def reporting(function: Method, told: Callable[[int, int], None] | None) -> dict[str, Any]:
    """The keyword by which a method reports how far it is, where it has one."""
    return {"progress": told} if "progress" in inspect.signature(function).parameters else {}


def _annotated(option: Option, flag: str) -> Any:
    """What Typer is told of one option: everything is text there but flags, so that its error can name the nearest."""
    from trimtab.tasks.signatures import READS

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


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
