"""What a method is run on, and with which model: the options that commands of methods share, each group a value.

The fields of a group are its options: `parameters` gives them as Typer takes them, `taken` makes the value from what
was given. Which methods there are is not known here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from trimtab.commands.methods import DataSeed, Examples, PartName, Prepared, TaskName, complete_task, prepared
from trimtab.commands.options import DEFAULT_MODEL, Chat, Device, Dtype, ModelOption, System, open_model, usage
from trimtab.commands.task import Every, Mapped, Metric, Positive, checked_source, read_source
from trimtab.errors import FileError

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts
    from trimtab.tasks.fit import Read

EXAMPLES = 32
Group = TypeVar("Group")

TaskOrNone = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME|FILE",
        help="A built-in task or a file; without one, the method's own prompts.",
        callback=checked_source,
        autocompletion=complete_task,
    ),
]


def parameters(group: type[Any], **changed: object) -> dict[str, inspect.Parameter]:
    """The options of a group by name; `changed` are other defaults."""
    hints = get_type_hints(group, include_extras=True)
    found = {}
    for each in dataclasses.fields(group):
        given = inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default
        default = changed.get(each.name, given)
        found[each.name] = inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[each.name]
        )
    return found


def taken(group: type[Group], given: Mapping[str, Any]) -> Group:
    """A group's value from what was given; an option that was left out of the command is at its default."""
    names = {each.name for each in dataclasses.fields(group)}  # pyright: ignore[reportArgumentType]
    return group(**{name: value for name, value in given.items() if name in names})


def flagged(**values: object) -> list[str]:
    """Options that were given, as words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [f"--{name.replace('_', '-')}", str(each)] if each is not None else []
    return words


@dataclass(frozen=True)
class OfModel:
    """Which model, and how it is held."""

    model: ModelOption = DEFAULT_MODEL
    dtype: Dtype = None
    device: Device = None

    def words(self) -> list[str]:
        """As words of a command line."""
        return flagged(model=self.model, dtype=self.dtype, device=self.device)

    def open(self, check: bool = True) -> LM:
        """The model."""
        return open_model(self.model, self.dtype, self.device, check=check)


@dataclass(frozen=True)
class Given:
    """What a function is given beside its options: `arguments` by keyword, and what they were made from."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    task: Prepared | None = None
    prompts: Prompts | None = None


@dataclass(frozen=True)
class OnTask:
    """Examples of a task."""

    task: TaskName
    examples: Examples = EXAMPLES
    part: PartName = "all"
    data_seed: DataSeed = 0
    metric: Metric = None
    mapped: Mapped = None
    every: Every = None
    positive: Positive = None

    def words(self) -> list[str]:
        """As words of a command line; nothing where there is no task."""
        if self.task is None:
            return []
        words = flagged(task=self.task, examples=self.examples, part=self.part, data_seed=self.data_seed)
        return [*words, *flagged(metric=self.metric, positive=self.positive, map=self.mapped, every=self.every)]

    def given(self, lm: LM, name: str, read: Read = "both") -> Given:
        """The task as the argument `name`; nothing where there is none. `read` is which of its prompts are used."""
        if self.task is None:
            return Given()
        found = read_source(self.task, self.mapped, self.every, self.metric, self.positive, "utf-8", None)
        made = prepared(lm, found, self.part, self.examples, self.data_seed, read=read)
        return Given({name: made.task}, task=made)


@dataclass(frozen=True)
class OnPrompts:
    """Prompts, as they are or in the chat template."""

    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="The text to look into; several are rows.")]
    chat: Chat = False
    system: System = None

    def words(self) -> list[str]:
        """As words of a command line."""
        chat = ["--chat", *flagged(system=self.system)] if self.chat else []
        return [*self.prompts, *chat]

    def given(self, lm: LM, name: str) -> Given:
        """The prompts as the argument `name`."""
        made = lm.prompts(self.prompts, chat=self.chat, system=self.system)
        return Given({name: made}, prompts=made)


@dataclass(frozen=True)
class OnTexts:
    """Files of texts, or those that the package has of its own."""

    texts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help='A text file, or .jsonl with a "text" in each row; may be repeated. Default: shipped passages.',
            exists=True,
            dir_okay=False,
        ),
    ] = None
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Texts to judge by; default: a fifth of the others.", exists=True, dir_okay=False
        ),
    ] = None

    def words(self) -> list[str]:
        """As words of a command line."""
        return flagged(texts=self.texts, held_out=self.held_out)

    def given(self, lm: LM, name: str) -> Given:
        """The texts as the argument `name`, and those to judge by as `held_out`."""
        files = {name: self.texts, "held_out": self.held_out}
        return Given({key: texts_of(paths) for key, paths in files.items() if paths})


@dataclass(frozen=True)
class OnWeights:
    """Nothing but the model."""

    def words(self) -> list[str]:
        """No words."""
        return []

    def given(self, lm: LM, name: str) -> Given:
        """No arguments."""
        return Given()


Subject = OnTask | OnPrompts | OnTexts | OnWeights


def texts_of(paths: Sequence[Path]) -> list[str]:
    """The texts of some files: a row's "text" of .jsonl, another file as a whole. FileError where one holds none."""
    return [text for path in paths for text in _texts(path)]


def _texts(path: Path) -> list[str]:
    import json

    try:
        whole = path.read_text(encoding="utf-8")
        lines = whole.split("\n")  # a string of JSON may hold the other characters at which `splitlines` cuts
        rows = [json.loads(line) for line in lines if line.strip()] if path.suffix == ".jsonl" else [{"text": whole}]
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    good = [isinstance(row, dict) and isinstance(row.get("text"), str) for row in rows]
    if not all(good):
        raise FileError(f'{path}: row {good.index(False) + 1} has no "text": give one {{"text": "…"}} in each line')
    found: list[str] = [row["text"] for row in rows]
    if not any(text.strip() for text in found):
        raise FileError(f"{path} holds no text: give a file with text in it")
    return found


def check_chat(chat: bool, system: str | None) -> None:
    """A usage error for a system prompt without the template that it is a part of."""
    if system is not None and not chat:
        usage("--system is a part of the chat template: give --chat too")
