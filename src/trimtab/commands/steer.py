"""`trimtab steer METHOD`: an intervention by any steering method, its options read from its signature.

Which methods there are is asked of `trimtab.steer.methods` when one is wanted. What is made is shown, and kept in a
file that `Intervention.load`, `trimtab chat`, `trimtab serve` and later stages read.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.commands.intervention import finish, tried_on
from trimtab.commands.methods import (
    DataSeed,
    Examples,
    MethodGroup,
    Part,
    PartName,
    Prepared,
    TaskName,
    command,
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
    Chat,
    Device,
    DryRun,
    Dtype,
    Json,
    ModelOption,
    System,
    console,
    defaults_from_file,
    open_model,
    print_json,
    usage,
    writable,
)
from trimtab.commands.task import Every, Mapped, Metric, Positive, read_source

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from trimtab.model.lm import LM
    from trimtab.tasks.signatures import Method, Option
    from trimtab.tasks.task import Task
    from trimtab.values.edit import Intervention

EXAMPLES = 64
TOP = 5
OF_A_TASK = ("task", "examples", "part", "data_seed", "metric", "mapped", "every", "positive")
"""Shared options that a scaling has no use for."""
SHADOWED = ("scores", "top", "metric", "chat", "system", "new_tokens")
"""Shared options that give way to a method's own of the same name."""


class Methods(MethodGroup):
    """A group whose commands are the steering methods."""

    def known(self) -> Mapping[str, Method]:
        """Every method by its name."""
        from trimtab.steer.methods import methods

        return methods()

    def named(self, name: str) -> Method:
        """A method by its name."""
        from trimtab.steer.methods import method

        return method(name)

    def made(self, name: str, function: Method) -> TyperCommand:
        """The command of a method: the shared options, and its own, which come first where both have one name. Its
        sites may be those of a file of scores."""
        from trimtab.steer.methods import is_scaling
        from trimtab.tasks.signatures import options

        own = options(function)
        names = {option.name for option in own}
        left = (*(n for n in SHADOWED if n in names), *(OF_A_TASK if is_scaling(function) else ()))
        every = inspect.signature(_shared, eval_str=True).parameters
        shared = {key: parameter for key, parameter in every.items() if key not in left}
        needs_sites = any(option.name == "sites" and option.required for option in own)
        listed = [replace(o, required=False) if o.name == "sites" and "scores" in shared else o for o in own]

        def work(own: list[Option], told: dict[str, Any], flags: Mapping[str, str], given: dict[str, Any]) -> None:
            scores, top = given.pop("scores", None), given.pop("top", TOP)
            sites = _sites(told.pop("sites", None), scores, top, needs_sites)
            unset = {key: None if p.default is p.empty else p.default for key, p in every.items()}
            kept = [(flags[key], value) for key, value in told.items()]
            kept += [("scores", scores), ("top", top)] if scores is not None else [("sites", sites)] if sites else []
            words = [word for key, value in kept for word in written(key, value)]
            rest = {key: value for key, value in {**unset, **given}.items() if key not in ("scores", "top")}
            steer(name, function, own, told, words, sites, **rest)

        return command(name, function, listed, shared, work)


app = typer.Typer(
    name="steer",
    cls=Methods,
    help="Make an intervention for a task, by any steering method.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def settings(context: typer.Context) -> None:
    """Make an intervention for a task, by any steering method, and try it.

    A method's own help says what its options are: trimtab steer difference_of_means --help
    """
    context.default_map = {context.invoked_subcommand or "": defaults_from_file()}


def _shared(
    task: TaskName,
    model: ModelOption = DEFAULT_MODEL,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the strongest sites of these scores.", exists=True)
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="How many of them, with --scores.")] = TOP,
    examples: Examples = EXAMPLES,
    part: PartName = "train",
    data_seed: DataSeed = 0,
    metric: Metric = None,
    mapped: Mapped = None,
    every: Every = None,
    positive: Positive = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Keep the intervention, as safetensors.", callback=writable),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--try", metavar="PROMPT", help="Continue this without and with the intervention.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most, with --try.")] = 48,
    chat: Chat = False,
    system: System = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """The options that all methods share; only its signature is used."""


def steer(
    name: str,
    function: Method,
    own: list[Option],
    chosen: dict[str, Any],
    words: list[str],
    sites: str | list[str] | None,
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
    prompt: str | None,
    new_tokens: int,
    chat: bool,
    system: str | None,
    dtype: str | None,
    device: str | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Make an intervention, or say what that would take, and show, keep and try it."""
    from trimtab.steer.methods import is_scaling

    if system is not None and not chat:
        usage("--system is a part of the chat template: give --chat too")
    scales = is_scaling(function)
    given = {o.name: value_of(o, chosen[o.name]) for o in own if o.name in chosen}
    lm = open_model(model, dtype, device, check=not dry_run)
    of_task: Prepared | None = None
    if scales:
        line = ["--model", model, *words]
    else:
        more = {"--metric": metric, "--positive": positive, "--dtype": dtype, "--device": device}
        line = [*task_words(str(task), model, examples, part, data_seed, more, mapped, every), *words]
        found = read_source(str(task), mapped, every, metric, positive, "utf-8", None)
        of_task = prepared(lm, found, part, examples, data_seed)
    for option in own:
        if option.name in given:
            given[option.name] = opened(option, given[option.name], lm, of_task, data_seed)
    if dry_run:
        _tell_plan(planned(lm, name, function, sites, of_task.task if of_task else None), as_json)
        return
    where = {} if sites is None else {"sites": lm.sites(sites) if scales else sites}
    with progress(name) as told:
        if of_task is None:
            made = function(**where, **given)
        else:
            made = function(lm, of_task.task, **where, **given, **reporting(function, told))
    made = _signed(lm, made, name, given, shlex.join(["trimtab", "steer", name, *line]), of_task)
    tried = None if prompt is None else tried_on(lm, made, prompt, new_tokens, chat, system)
    finish(lm, made, tried, out, as_json)


# What it takes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """What a method would read: sites, examples and the tokens of both their sides; none of a task for a scaling."""

    method: str
    model: str
    sites: int
    task: str | None = None
    examples: int = 0
    groups: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        first = f"{self.method} on {self.model} at {self.sites:,} site{'s' * (self.sites != 1)}"
        if self.task is None:
            return f"{first}: takes no task, and nothing has to be run to make it\nNothing was run"
        return (
            f"{first}: {self.examples} examples of {self.task} in {self.groups} groups,\n{self.tokens:,} tokens in "
            "their prompts, both sides together; how many passes a method makes over them is its own affair\n"
            "Nothing was run"
        )


def planned(lm: LM, name: str, function: Method, sites: str | list[str] | None, task: Task | None) -> Planned:
    """What a method would read with these options: sites are counted and prompts tokenised, nothing is run."""
    asked = inspect.signature(function).parameters["sites"].default if sites is None else sites
    count = len(lm.sites(asked)) if isinstance(asked, str | list | tuple) else 0
    if task is None:
        return Planned(name, lm.name, count)
    from trimtab.locate.plans import tokens

    return Planned(name, lm.name, count, task.name, len(task), len(set(task.groups)), tokens(lm, task))


def _tell_plan(plan: Planned, as_json: bool) -> None:
    if as_json:
        print_json({"plan": asdict(plan)})
    else:
        console().print(str(plan))


def _sites(given: list[str] | None, scores: Path | None, top: int, needed: bool) -> str | list[str] | None:
    """The sites that were written, or the strongest of a file; None where the method is left to its own."""
    if given and scores is not None:
        usage("--sites and --scores both say where: give one of them")
    if scores is not None:
        from trimtab.values.scores import Scores
        from trimtab.values.site import Site

        found = Scores.load(scores).top(top)
        if not found or not all(isinstance(site, Site) for site in found):
            usage(f"{scores} holds no scores of sites with a value")
        return [str(site) for site in found]
    if not given:
        if needed:
            usage('--sites is missing: give addresses such as "L12.resid_post", or --scores FILE')
        return None
    return given[0] if len(given) == 1 else list(given)


# What was made
# ---------------------------------------------------------------------------------------------------------------------


def _signed(
    lm: LM, made: Intervention, name: str, given: Mapping[str, Any], line: str, task: Prepared | None
) -> Intervention:
    """With the command that made it, and with model and data where the method has not said them itself."""
    from trimtab.values.provenance import Provenance

    if made.provenance is None:
        plain = {key: value for key, value in given.items() if isinstance(value, str | int | float | bool | tuple)}
        known = Provenance.now(
            lm.name,
            model_hash=lm.hash,
            data_hash=None if task is None else task.task.digest,
            method=name,
            options=plain,
            dtype=str(lm.dtype).removeprefix("torch."),
            attention=lm.attention,
        )
    else:
        known = made.provenance
    return made.with_(provenance=known.with_(options={**known.options, "command": line}))
