"""What commands share: options and where their defaults come from, opening a model, what is said on standard error.

An option is taken from its flag, else from the environment, else from `trimtab.toml` in the current folder, else from
its default. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from trimtab.errors import TrimtabError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.model.lm import LM

DEFAULT_MODEL = "smollm2-135m-instruct"
CONFIG = "trimtab.toml"
KEYS = ("model", "dtype", "device")
AS_JSON = "trimtab.json"
"""Key of a context's `meta`: whether the command was asked for one JSON document."""


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta[AS_JSON] = value
    return value


def complete_model(start: str) -> list[str]:
    """Names of bundled models, for the shell."""
    from trimtab.model.bundled import BUNDLED

    return [name for name in BUNDLED if name.startswith(start)]


def checked_edits(values: list[str] | None) -> list[str] | None:
    """Edits as they were written; a usage error where one cannot be read. An edit may be of a selection of sites."""
    from trimtab.values.edit import Edit
    from trimtab.values.notation import split_edit
    from trimtab.values.site import Selection

    for text in values or []:
        address, rest = split_edit(text)
        try:
            Edit.parse(f"{Selection.parse(address).site} {rest}" if rest else text)
        except TrimtabError as error:
            raise typer.BadParameter(str(error)) from error
    return values


def writable(path: Path | None) -> Path | None:
    """A file that can be written; a usage error where its folder is not there, before anything is computed."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f'there is no folder "{path.parent}" to write {path.name} to: make it first')
    if path is not None and path.is_dir():
        raise typer.BadParameter(f'"{path}" is a folder: name a file')
    return path


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A bundled model, a hub id, a folder or a GGUF file.",
        envvar="TRIMTAB_MODEL",
        autocompletion=complete_model,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A bundled model, a hub id, a folder or a GGUF file.",
        envvar="TRIMTAB_MODEL",
        autocompletion=complete_model,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16, float64 or auto (as stored).", envvar="TRIMTAB_DTYPE"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", envvar="TRIMTAB_DEVICE")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output.", callback=_remember, is_eager=True)
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        "-e",
        metavar="EDIT",
        help='A change to make, such as "L12.head[7] scale 0"; may be repeated.',
        callback=checked_edits,
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")]
System = Annotated[str | None, typer.Option(help="The system prompt, with --chat.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and do none of it.")]
TimedDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and its cost; run nothing but one plain batch to time it.")
]


def defaults_from_file(path: Path | None = None) -> dict[str, str]:
    """What `trimtab.toml` says of `model`, `dtype` and `device`; a usage error where it says anything else."""
    path = path or Path(CONFIG)
    if not path.is_file():
        return {}
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    for key, value in found.items():
        if key not in KEYS:
            raise typer.BadParameter(f'{path}: unknown key "{key}"{nearest(key, KEYS)}: it may hold {", ".join(KEYS)}')
        if not isinstance(value, str):
            raise typer.BadParameter(f'{path}: {key} must be text, such as {key} = "…", got {value!r}')
    return found


def open_model(name: str, dtype: str | None, device: str | None, *, check: bool = True) -> LM:
    """The model, said on standard error where someone is watching."""
    say(f"loading {name} …")
    from trimtab.model.load import load

    return load(name, dtype=dtype, device=device, check=check)


def console() -> Console:
    """Standard output for tables."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """A line for whoever watches: on standard error, where that is a terminal."""
    if sys.stderr.isatty():
        typer.secho(text, err=True, dim=True)


def print_json(document: Mapping[str, object]) -> None:
    """The one document of a command on standard output; numbers that JSON does not know are null."""
    typer.echo(json.dumps(finite(document), ensure_ascii=False, allow_nan=False))


def finite(value: object) -> object:
    """A value of dicts, lists, text and numbers, with None for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def usage(message: str) -> NoReturn:
    """End with a usage error."""
    raise typer.BadParameter(message)


def size(n: float) -> str:
    """Bytes to be read."""
    for unit in ("B", "kB", "MB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
