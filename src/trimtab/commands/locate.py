"""`trimtab locate METHOD`: any locating method on a task, its options read from its signature; and what else can be
made of a model by one call and kept: a monitor, a tuned lens, the wiring of heads.

Which there are is asked of `trimtab.locate.methods` when one is wanted, so that the command line itself stays quick.
What is found is shown, and kept in a file that `trimtab scores`, the other commands and later stages read.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.commands.methods import command, listing, method_group, opened, progress, reporting, value_of, written
from trimtab.commands.options import Json, TimedDryRun, console, defaults_from_file, print_json, writable
from trimtab.commands.outline import Outline, outlines
from trimtab.commands.plan import planned
from trimtab.commands.results import with_command
from trimtab.commands.scores import facts, page, table
from trimtab.commands.subjects import (
    OfModel,
    OnPrompts,
    OnTask,
    OnTexts,
    OnWeights,
    Subject,
    TaskOrNone,
    check_chat,
    parameters,
    taken,
)
from trimtab.commands.watch import watch

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from trimtab.tasks.signatures import Method, Option

TOP = 10
VERIFY = "verify"
"""Of `trimtab.evaluate`, and wanted right after locating."""
SHADOWED = ("metric", "top")
"""Shared options that give way to a method's own of the same name."""
SUBJECTS: dict[str, type[Subject]] = {"task": OnTask, "prompts": OnPrompts, "texts": OnTexts, "weights": OnWeights}
FITTED = {"part": "train", "examples": 0}
"""Where something is fitted (a parameter `train`): on the training part, all of it."""


@dataclass(frozen=True)
class Shown:
    """What is shown and kept."""

    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Keep the result, as safetensors.", callback=writable),
    ] = None
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with figure and table.", callback=writable)
    ] = None
    top: Annotated[int, typer.Option(min=1, help="Places to show.")] = TOP
    as_json: Json = False
    dry_run: TimedDryRun = False


def _listed() -> dict[str, str]:
    from trimtab.values.saved import Saved

    def kept(made: str) -> bool:
        module, name = made.split(":")
        return module.startswith("trimtab.values.") and issubclass(getattr(import_module(module), name), Saved)

    def fits(found: Outline) -> bool:
        return found.parameters[:1] == ("lm",) and any(map(kept, found.gives))

    def offered() -> Mapping[str, Method]:
        from trimtab.locate.methods import functions

        return functions()

    verifying = {found.name: found.about for found in outlines("trimtab.evaluate") if found.name == VERIFY}
    return listing("trimtab.locate", offered, fits) | verifying


def _called(name: str) -> Method:
    """A function of `trimtab.locate` or a method that another package offers; or what puts their scores to the test."""
    if name == VERIFY:
        from trimtab.evaluate.verify import verify

        return verify
    from trimtab.locate.methods import function

    return function(name)


def _made(name: str) -> TyperCommand:
    """The command of a function: what it is run on, its own options, and those of the model and of what is shown."""
    from trimtab.locate.methods import subject
    from trimtab.tasks.signatures import options

    called = _called(name)
    parameter, kind = subject(called)
    group = SUBJECTS[kind]
    own = options(called, given=("lm", parameter, "held_out"))
    names = {option.name for option in own}
    on = parameters(group, **FITTED if parameter == "train" else {})
    if kind == "task" and inspect.signature(called).parameters[parameter].default is not inspect.Parameter.empty:
        on["task"] = on["task"].replace(annotation=TaskOrNone, default=None)
    every = {**dict(list(on.items())[:1]), **parameters(OfModel), **on, **parameters(Shown)}
    shared = {key: p for key, p in every.items() if key not in names or key not in SHADOWED}

    def work(own: list[Option], told: dict[str, Any], flags: Mapping[str, str], given: dict[str, Any]) -> None:
        words = [word for key, value in told.items() for word in written(flags[key], value)]
        on = taken(group, given)
        locate(name, called, parameter, own, told, words, on, taken(OfModel, given), taken(Shown, given))

    return command(name, called, own, shared, work)


app = typer.Typer(
    name="locate",
    cls=method_group(_listed, _made),
    help="Score the places of a model for a task, by any locating method; make monitors, lenses, graphs of heads.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("watch")(watch)


@app.callback()
def settings(context: typer.Context) -> None:
    """Score the places of a model for a task, by any locating method; make monitors, lenses, graphs of heads.

    A method's own help says what its options are: trimtab locate patching --help
    """
    context.default_map = {context.invoked_subcommand or "": defaults_from_file()}


def locate(
    name: str,
    function: Method,
    parameter: str,
    own: list[Option],
    chosen: Mapping[str, Any],
    words: list[str],
    on: Subject,
    of_model: OfModel,
    shown: Shown,
) -> None:
    """Run a function on what it is given as `parameter`, or say what that would cost, and show and keep what it finds.

    `chosen` are its own options as they were written, `words` these as words of a command line.
    """
    from trimtab.locate.pairing import COMPARED, read_by

    if isinstance(on, OnPrompts):
        check_chat(on.chat, on.system)
    lm = of_model.open(check=not shown.dry_run)
    values = {o.name: value_of(o, chosen[o.name]) for o in own if o.name in chosen}
    read = read_by(function, values)
    given = on.given(lm, parameter, read) if isinstance(on, OnTask) else on.given(lm, parameter)
    seed = on.data_seed if isinstance(on, OnTask) else 0
    for o in own:
        if o.name in values:
            used = "both" if o.name in COMPARED else read
            values[o.name] = opened(o, values[o.name], lm, given.task, seed, read=used)
    if shown.dry_run:
        plan = planned(lm, name, function, parameter, given, values)
        if shown.as_json:
            print_json({"plan": plan.plain()})
        else:
            console().print(str(plan))
        return
    with progress(name) as told:
        result = function(lm, **given.arguments, **values, **reporting(function, told))
    line = shlex.join(["trimtab", "locate", name, *on.words(), *of_model.words(), *words])
    _finish(result, line, shown)


def _finish(result: Any, line: str, shown: Shown) -> None:
    """Show and keep a result; the command that made it goes into its provenance."""
    result = with_command(result, line)
    if shown.out is not None:
        result.save(shown.out)
    if shown.html is not None:
        page(shown.html, [result])
    if shown.as_json:
        files = {"out": shown.out and str(shown.out), "html": shown.html and str(shown.html)}
        print_json({**facts(result, shown.top), "command": line, **files})
    else:
        table(result, shown.top)
    for path in (shown.out, shown.html):
        if path is not None:
            typer.echo(f"wrote {path}", err=True)
