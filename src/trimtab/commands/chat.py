"""`trimtab chat MODEL --vector calm=calm.safetensors:1.5`: talk to a model, without and with its vectors.

Answers are written by a batcher in a thread of its own, so that Ctrl-C stops an answer between two tokens and nothing
else, and two answers to one question are written at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.commands.chatting import Conversation, Quit, Sampling, named_vector
from trimtab.commands.generate import printable
from trimtab.commands.options import DEFAULT_MODEL, Device, Dtype, ModelName, console, open_model, usage
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trimtab.model.requests import Delta, Ticket
    from trimtab.model.serving import Batcher
    from trimtab.values.edit import Intervention


def chat(
    model: ModelName = DEFAULT_MODEL,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            "--vector", "-v", metavar="NAME=PATH[:COEF]", help="A vector, and its coefficient (1); may be repeated."
        ),
    ] = None,
    ab: Annotated[bool, typer.Option("--ab", help="Answer twice, without the vectors and with them.")] = False,
    scope: Annotated[
        str | None, typer.Option(help="Where vectors act: all, generated, -1: … Default: as their files say.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest this much.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample from this many likeliest tokens; 0 for all.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1, what was said is less likely.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Take vectors that were made with other weights too.")
    ] = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Talk to a model, without and with its vectors; /help in the conversation lists what can be changed.

    Reads standard input where that is no terminal, one line a turn.
    """
    for name, value in (("--top-p", top_p), ("--top-k", top_k)):
        if value is not None and temperature == 0:
            usage(f"{name} is about sampling: give a --temperature above 0 too")
    from trimtab.steer.formats import load_vector

    try:
        named = [named_vector(text) for text in vector or []]
    except TrimtabError as error:
        usage(str(error))
    lm = open_model(model, dtype, device)

    def load(path: str) -> Intervention:
        return load_vector(path, lm, any_model=any_model)

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    talk = Conversation(lm, load, sampling, ab=ab, system=system)
    for name, place in named:
        talk.add(name, place)
    if scope is not None:
        talk.command(f"/scope {scope}")
    from trimtab.model.serving import Batcher

    with Batcher(lm, max_rows=2) as batcher:
        _talk(talk, batcher)


def _talk(talk: Conversation, batcher: Batcher) -> None:
    watched = sys.stdin.isatty()
    if watched:
        with suppress(ImportError):
            import readline  # noqa: F401 (lines can be edited)
        typer.secho(f"{talk.lm.name}: {talk.state}. /help lists the commands.", dim=True)
    while True:
        try:
            line = _line(watched)
        except KeyboardInterrupt:
            typer.secho("\n/quit ends the conversation", dim=True)
            continue
        if line is None:
            return
        try:
            if line.startswith("/") and not line.startswith("//"):
                typer.secho(printable(talk.command(line)), dim=True)
            elif line.strip():
                _answer(talk, batcher, line.removeprefix("/") if line.startswith("//") else line)
        except Quit:
            return
        except TrimtabError as error:
            typer.echo(f"error: {printable(str(error))}", err=True)


def _line(watched: bool) -> str | None:
    """The next line; None at the end."""
    if watched:
        try:
            return input("you> ")
        except EOFError:
            typer.echo()
            return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _answer(talk: Conversation, batcher: Batcher, text: str) -> None:
    """Show the answer, or both, as they are written, and keep what was said."""
    tickets: dict[str, Ticket] = {}
    heard: dict[str, list[Delta]] = {}
    out = console()
    try:
        for label, request in talk.requests(text).items():
            tickets[label], heard[label] = batcher.submit(request), []
        if len(tickets) > 1 and out.is_terminal:
            side_by_side(tickets, heard, out)
        else:
            _one_after_the_other(tickets, heard)
    except KeyboardInterrupt:
        for ticket in tickets.values():
            ticket.cancel()
        typer.secho("[stopped]", dim=True)
    if not heard:
        return
    for label, deltas in heard.items():
        if deltas and deltas[-1].finish == "error":
            typer.echo(f"error: the {label} answer ended: {printable(str(deltas[-1].error))}", err=True)
            return
    talk.said(text, {label: "".join(delta.text for delta in deltas) for label, deltas in heard.items()})


def _one_after_the_other(tickets: Mapping[str, Ticket], heard: Mapping[str, list[Delta]]) -> None:
    for label, ticket in tickets.items():
        if len(tickets) > 1:
            typer.secho(f"{label}: ", nl=False, dim=True)
        try:
            for delta in ticket:
                heard[label].append(delta)
                typer.echo(printable(delta.text), nl=False)
        finally:
            typer.echo()


def side_by_side(tickets: Mapping[str, Ticket], heard: Mapping[str, list[Delta]], out: Console) -> None:
    """Both answers in two columns as they are written."""
    from rich.live import Live

    arrived: SimpleQueue[tuple[str, Delta]] = SimpleQueue()
    for label, ticket in tickets.items():
        ticket.on_delta(lambda delta, label=label: arrived.put((label, delta)))
    with Live(console=out, refresh_per_second=10) as live:
        left = len(tickets)
        while left:
            label, delta = arrived.get()
            heard[label].append(delta)
            left -= delta.finish is not None
            live.update(_columns(heard))


def _columns(heard: Mapping[str, list[Delta]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for label in heard:
        table.add_column(Text(label), ratio=1, overflow="fold")
    table.add_row(*(Text(printable("".join(delta.text for delta in deltas))) for deltas in heard.values()))
    return table
