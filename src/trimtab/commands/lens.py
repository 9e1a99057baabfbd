"""`trimtab lens PROMPT`: the logit lens as a grid in the terminal, as one HTML page, or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    writable,
)

if TYPE_CHECKING:
    from rich.text import Text

    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts
    from trimtab.values.lens import Lens

WIDEST = 12
"""Columns of the terminal that one token may take."""


def lens(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to look into.")],
    model: ModelOption = DEFAULT_MODEL,
    top: Annotated[int, typer.Option(min=1, help="Tokens to keep of each cell.")] = 5,
    answer: Annotated[
        str | None, typer.Option(help='A token to follow, with its leading space: " Paris". Default: the model\'s own.')
    ] = None,
    sites: Annotated[str, typer.Option(help='Residual streams to read, such as "L*.resid_mid".')] = "L*.resid_post",
    tuned: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read through the translators of this tuned lens.", exists=True, dir_okay=False
        ),
    ] = None,
    edit: Edits = None,
    chat: Chat = False,
    system: System = None,
    every: Annotated[int | None, typer.Option(min=1, help="Show every N-th layer; default: as many as fit.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page to this file.", callback=writable)
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the lens as safetensors.", callback=writable)
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Show the logit lens, or a tuned lens, of a prompt.

    What the model would say next after each token, were each of its layers the last one.
    """
    if system is not None and not chat:
        usage("--system is a part of the chat template: give --chat too")
    translators = None
    if tuned is not None:
        from trimtab.values.tuned_lens import TunedLens

        translators = TunedLens.load(tuned)
    lm = open_model(model, dtype, device, check=not dry_run)
    prompts = lm.prompts(prompt, chat=chat, system=system)
    if dry_run:
        plan = planned(lm, prompts, len(lm.sites(sites)))
        if as_json:
            print_json({"plan": asdict(plan)})
        else:
            console().print(str(plan))
        return
    from trimtab.locate.lens import logit_lens

    found = logit_lens(lm, prompts, top=top, answer=answer, edit=edit, sites=sites, lens=translators)
    if html is not None:
        from trimtab.figures.figure import write_text
        from trimtab.report.lens import lens_html

        write_text(html, lens_html(found))
    if save is not None:
        found.save(save)
    if as_json:
        print_json(document(found))
    else:
        show(found, every)
    for path in (html, save):
        if path is not None:
            typer.echo(f"wrote {path}", err=True)


@dataclass(frozen=True)
class Planned:
    """What a lens costs: a pass of `tokens` through `layers`, and `sites` read out; work in FLOP, memory in bytes."""

    model: str
    tokens: int
    layers: int
    passes: int
    sites: int
    vocabulary: int
    flop: int
    memory: int

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.passes} forward pass of {self.tokens} tokens through {self.layers} layers,\n"
            f"then {self.sites} sites x {self.tokens} tokens unembedded into {self.vocabulary:,} logits each\n"
            f"about {self.flop / 1e9:,.1f} GFLOP; {size(self.memory)} of activations and logits. Nothing was run"
        )


def planned(lm: LM, prompts: Prompts, sites: int) -> Planned:
    """What a lens of these prompts with so many sites costs."""
    a, tokens = lm.anatomy, int(prompts.lengths.sum())
    parameters = sum(p.numel() for p in lm.hf.parameters())
    return Planned(
        model=lm.name,
        tokens=tokens,
        layers=a.n_layers,
        passes=1,
        sites=sites,
        vocabulary=a.vocab,
        flop=2 * parameters * tokens + 2 * sites * tokens * a.d_model * a.vocab,
        memory=sites * tokens * a.d_model * lm.dtype.itemsize + tokens * a.vocab * max(4, lm.dtype.itemsize),
    )


def document(lens: Lens) -> dict[str, object]:
    """The whole lens as plain values."""
    import json

    return {
        "prompt": lens.prompt,
        "tokens": list(lens.tokens),
        "token_ids": lens.token_ids.tolist(),
        "sites": list(lens.sites),
        "answer": lens.answer,
        "edits": list(lens.edits),
        "cells": list(lens.cells()),
        "provenance": None if lens.provenance is None else json.loads(lens.provenance.to_json()),
    }


def show(lens: Lens, every: int | None = None) -> None:
    """The grid, the last layer on top, and what is said of the last position."""
    from rich.text import Text

    from trimtab.report.lens import labels, percent
    from trimtab.values.lens import visible

    out = console()
    names = labels(lens.sites)
    rows = list(reversed(range(len(lens.sites))))
    step = every or (-(-len(rows) // max(3, out.height - 9)) if out.is_terminal else 1)
    rows = rows[::step]
    coloured = out.color_system is not None
    label = max(len("prompt"), *(len(names[i]) for i in rows))
    widths = _widths(lens, rows, coloured)
    first = _first(widths, out.width - label - 1)
    shown = range(first, len(lens.tokens))

    def line(name: str, cells: list[Text]) -> None:
        out.print(Text(" ").join([Text(name.rjust(label), "dim"), *cells]), no_wrap=True, overflow="crop")

    head = [_fitted(visible(lens.tokens[pos]), widths[pos], "bold") for pos in shown]
    line("prompt", head)
    for i in rows:
        line(names[i], [_cell(lens, i, pos, widths[pos], coloured) for pos in shown])
    out.print()
    out.print(_legend() if coloured else "beside each token its probability in percent")
    if first > 0:
        out.print(
            f"the last {len(shown)} of {len(lens.tokens)} positions: widen the terminal, or see all with --html FILE"
        )
    if step > 1 and every is None:
        out.print(f"every {_ordinal(step)} layer, so that the grid fits: --every 1 shows all")
    guesses = "   ".join(f"{visible(guess.token)} {percent(guess.probability)}" for guess in lens.top(-1))
    out.print(f"next: {guesses}")
    target = visible(lens.word(lens.targets[-1]))
    points = sorted({round(i * (len(lens.sites) - 1) / 5) for i in range(6)})
    ranks = "   ".join(f"{names[i]} {lens.rank[i, -1]:,}" for i in points)
    out.print(f"rank of {target}: {ranks}")
    if (where := lens.first_at()) is not None:
        out.print(f"{target} is first from {where} on")


def _widths(lens: Lens, rows: list[int], coloured: bool) -> list[int]:
    """How many columns of the terminal each position takes; without colours, room for two digits of percent."""
    from rich.cells import cell_len

    from trimtab.values.lens import visible

    widths = []
    for pos, token in enumerate(lens.tokens):
        words = [visible(token), *(visible(lens.word(lens.top_ids[i, pos, 0])) for i in rows)]
        widths.append(min(WIDEST, max(2, *map(cell_len, words))) + (0 if coloured else 3))
    return widths


def _first(widths: list[int], room: int) -> int:
    """The first position from which on all fit, counted from the end; the last one is always shown."""
    first = len(widths) - 1
    used = widths[first]
    while first > 0 and used + 1 + widths[first - 1] <= room:
        first -= 1
        used += 1 + widths[first]
    return first


def _cell(lens: Lens, row: int, pos: int, width: int, coloured: bool) -> Text:
    from trimtab.figures.colours import BINS, DARK, ink, ramp
    from trimtab.values.lens import visible

    p = float(lens.top_probabilities[row, pos, 0])
    word = visible(lens.word(lens.top_ids[row, pos, 0]))
    if not coloured:
        text = _fitted(word, width - 3)
        return text.append(f" {min(99, round(100 * p)):2d}")
    colour = ramp(DARK)[min(BINS - 1, int(p * BINS))]
    hit = " bold underline" if lens.rank[row, pos] == 1 else ""
    return _fitted(word, width, f"rgb{ink(colour)} on rgb{colour}{hit}".replace(", ", ","))


def _fitted(word: str, width: int, style: str = "") -> Text:
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    return Text(set_cell_size(word if cell_len(word) <= width else set_cell_size(word, width - 1) + "…", width), style)


def _legend() -> Text:
    from rich.text import Text

    from trimtab.figures.colours import DARK, ink, ramp

    text = Text("probability 0% ", "dim")
    for colour in ramp(DARK):
        text.append("  ", f"rgb{ink(colour)} on rgb{colour}".replace(", ", ","))
    text.append(" 100%, ", "dim").append("the followed token", "bold underline")
    return text


def _ordinal(n: int) -> str:
    return {1: "", 2: "2nd", 3: "3rd"}.get(n, f"{n}th")
