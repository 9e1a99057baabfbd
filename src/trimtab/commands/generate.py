"""`trimtab generate PROMPT --edit …`: a continuation with edits on, streamed, or beside the one without them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from trimtab.commands.options import (
    DEFAULT_MODEL,
    Chat,
    Device,
    DryRun,
    Dtype,
    Edits,
    Json,
    ModelOption,
    System,
    console,
    open_model,
    print_json,
    size,
    usage,
)

if TYPE_CHECKING:
    from trimtab.model.generate import Generation
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    model: ModelOption = DEFAULT_MODEL,
    edit: Edits = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest this much.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from this many likeliest tokens; 0 for all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text that ends it where it appears; may be repeated.")
    ] = None,
    chat: Chat = False,
    system: System = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the text without and with the edits.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Continue a prompt, with edits on.

    Tokens are printed as they come.
    """
    if system is not None and not chat:
        usage("--system is a part of the chat template: give --chat too")
    for name, value in (("--top-p", top_p), ("--top-k", top_k)):
        if value is not None and temperature == 0:
            usage(f"{name} is about sampling: give a --temperature above 0 too")
    if "" in (stop or []):
        usage("--stop is empty, and every text contains that: give the text to stop at")
    if compare and not edit:
        usage("--compare sets the text without edits beside the one with them: give at least one --edit")
    lm = open_model(model, dtype, device, check=not dry_run)
    prompts = lm.prompts(prompt, chat=chat, system=system)
    if dry_run:
        plan = planned(lm, prompts, max_new_tokens, edit or [], 2 if compare else 1)
        if as_json:
            print_json({"plan": asdict(plan)})
        else:
            console().print(str(plan))
        return
    options: Sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or [],
    }
    if not as_json and not compare:
        _stream(lm, prompts, edit, options)
        return
    with_edits = lm.generate(prompts, edit, **options)
    without = lm.generate(prompts, None, **options) if compare else None
    if as_json:
        document = {
            "model": lm.name,
            "prompt": prompt,
            "chat": prompts.chat,
            "bos": prompts.bos,
            "edits": edit or [],
            **options,
            **_said(with_edits),
        }
        print_json(document if without is None else document | {"without": _said(without)})
    else:
        assert without is not None
        side_by_side(without.texts[0], with_edits.texts[0], edit or [])


class Sampling(TypedDict):
    """How tokens are picked and where they end, as `lm.generate` takes it."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int
    stop: list[str]


@dataclass(frozen=True)
class Planned:
    """What a generation costs at most: passes, work in FLOP, and keys and values kept, in bytes."""

    model: str
    tokens: int
    new_tokens: int
    layers: int
    passes: int
    edits: tuple[str, ...]
    flop: int
    cache: int

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.tokens} prompt tokens, up to {self.new_tokens} new ones, {self.layers} layers",
            f"up to {self.passes} forward passes, about {self.flop / 1e9:,.1f} GFLOP",
            f"{size(self.cache)} of keys and values",
            *(f"edit: {edit}" for edit in self.edits),
            "Nothing was run",
        ]
        return "\n".join(lines)


def planned(lm: LM, prompts: Prompts, new: int, edits: list[str], times: int) -> Planned:
    """What `times` continuations of these prompts by `new` tokens cost at most."""
    a, tokens = lm.anatomy, int(prompts.lengths.sum())
    parameters = sum(p.numel() for p in lm.hf.parameters())
    return Planned(
        model=lm.name,
        tokens=tokens,
        new_tokens=new,
        layers=a.n_layers,
        passes=times * new,
        edits=tuple(edits),
        flop=times * 2 * parameters * (tokens + new - 1),
        cache=2 * a.n_layers * a.n_kv * a.d_head * lm.dtype.itemsize * (tokens + new - 1),
    )


def _said(generation: Generation) -> dict[str, object]:
    return {"text": generation.texts[0], "ids": list(generation.ids[0])}


def _stream(lm: LM, prompts: Prompts, edit: list[str] | None, options: Sampling) -> None:
    try:
        for piece in lm.stream(prompts, edit, **options):
            typer.echo(printable(piece.texts[0]), nl=False)
    finally:
        typer.echo()


def printable(text: str) -> str:
    """Text without the control characters that a terminal would obey."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def side_by_side(without: str, with_edits: str, edits: list[str]) -> None:
    """Two continuations of one prompt, the one without edits on the left."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for heading in ("without", "with " + "; ".join(edits)):
        table.add_column(Text(heading), ratio=1, overflow="fold")
    table.add_row(Text(printable(without)), Text(printable(with_edits)))
    console().print(table)
