"""`trimtab locate watch PROMPT --monitor FILE`: a continuation with monitors on every token, shown as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.commands.generate import planned, printable
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
    usage,
    writable,
)
from trimtab.commands.scores import page
from trimtab.commands.subjects import check_chat

if TYPE_CHECKING:
    from trimtab.locate.watching import WatchedPiece
    from trimtab.values.monitor import Monitor
    from trimtab.values.watched import Watched

Monitors = Annotated[
    list[str],
    typer.Option(
        "--monitor",
        metavar="[NAME=]FILE",
        help="A monitor, as `trimtab locate fit_monitor --out` keeps it; may be repeated.",
    ),
]


def watch(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="The text to continue; several are rows.")],
    monitor: Monitors,
    model: ModelOption = DEFAULT_MODEL,
    edit: Edits = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Chat = False,
    system: System = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Keep texts and margins.", callback=writable)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the texts, coloured.", callback=writable)
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Continue a prompt with monitors on every token, and say where one flags it.

    Tokens of a single prompt are printed as they come, on a ground that is the brighter the likelier the first monitor
    takes them to be of its positive side.
    """
    check_chat(chat, system)
    named = monitors_of(monitor)
    lm = open_model(model, dtype, device, check=not dry_run)
    if dry_run:
        plan = planned(lm, lm.prompts(prompts, chat=chat, system=system), max_new_tokens, edit or [], 1)
        if as_json:
            print_json({"plan": asdict(plan) | {"monitors": list(named)}})
        else:
            console().print(str(plan))
        return
    from trimtab.locate import watch as watched

    streamed = not as_json and len(prompts) == 1
    if streamed:
        console().print(printable(prompts[0]), style="dim", end="", soft_wrap=True)
    seen = watched(
        lm,
        prompts,
        named,
        edit,
        on_token=_told(*next(iter(named.items()))) if streamed else None,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        system=system,
    )
    if out is not None:
        seen.save(out)
    if html is not None:
        page(html, [seen])
    if as_json:
        files = {"out": out and str(out), "html": html and str(html)}
        print_json({"monitors": {name: repr(each) for name, each in named.items()}, "rows": facts(seen), **files})
    else:
        show(seen, streamed)
    for path in (out, html):
        if path is not None:
            typer.echo(f"wrote {path}", err=True)


def monitors_of(given: Sequence[str]) -> dict[str, Monitor]:
    """Monitors by name, from files or NAME=FILE: by default a monitor has the name of the task it was fitted on."""
    from trimtab.values.monitor import Monitor

    found: dict[str, Monitor] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name, path = (name.strip(), path) if equals and not Path(text).exists() else ("", text)
        made = Monitor.load(path)
        name = name or made.probe.task or Path(path).stem
        if name in found:
            usage(f'two monitors are called "{name}": give them names, such as --monitor first={path}')
        found[name] = made
    return found


def facts(seen: Watched) -> list[dict[str, object]]:
    """What was written after each prompt and what the monitors made of it, as plain values."""
    rows = []
    for row, (tokens, start) in enumerate(zip(seen.tokens, seen.prompt, strict=True)):
        new = tokens[start:]
        monitors = {}
        for name, monitor in seen.monitors.items():
            monitors[name] = {
                "prompt": float(monitor.probability(seen.of_prompt(name)[row])),
                "probability": seen.probability(name)[row, : len(new)].tolist(),
                "margins": seen.new(name)[row, : len(new)].tolist(),
                "flagged": seen.flagged_if_calibrated(name)[row],
            }
        rows.append({"prompt": "".join(tokens[:start]), "text": "".join(new), "monitors": monitors})
    return rows


def show(seen: Watched, streamed: bool) -> None:
    """The texts, where they were not printed as they came, and a line for each text and monitor."""
    from rich.table import Table

    from trimtab.values.lens import visible

    shown = Table("text", "monitor", "prompt", "at the end", "flagged", box=None, pad_edge=False)
    for row, said in enumerate(facts(seen)):
        if not streamed:
            console().print(f"{row}: {printable(str(said['prompt']))}", style="dim", end="", soft_wrap=True)
            console().print(printable(str(said["text"])), soft_wrap=True)
        for name, monitor in seen.monitors.items():
            start, hit = seen.prompt[row], seen.flagged_if_calibrated(name)[row]
            last = len(seen.tokens[row]) - start - 1
            where = "no threshold" if monitor.stream_threshold is None else "no"
            if hit is not None:
                where = f"after token {hit + 1}, {visible(seen.tokens[row][start + hit])}"
            ends = monitor.probability(seen.of_prompt(name)[row]), seen.probability(name)[row, last]
            shown.add_row(str(row), name, *(f"{float(p):.2f}" for p in ends), where)
    if streamed:
        typer.echo()
    console().print(shown)


def _told(name: str, monitor: Monitor) -> Callable[[WatchedPiece], None]:
    """What prints each token of the one row on a ground by the probability of its margin."""
    out = console()

    def tell(piece: WatchedPiece) -> None:
        from rich.text import Text

        text = printable(piece.texts[0])
        style = ground(float(monitor.probability(piece.margins[name][0]))) if out.color_system is not None else ""
        out.print(Text(text, style), end="", soft_wrap=True)

    return tell


def ground(p: float) -> str:
    """The style of a token whose probability is p; none where it is not known."""
    from trimtab.figures.colours import BINS, DARK, ink, ramp

    if p != p:
        return ""
    colour = ramp(DARK)[min(BINS - 1, int(p * BINS))]
    return f"rgb{ink(colour)} on rgb{colour}".replace(", ", ",")
