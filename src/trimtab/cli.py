"""The command line: mounts the commands, and turns what they raise into one message and an exit code.

Exit codes: 0 done, 1 failed or an identity does not hold, 2 usage, 3 an optional part is missing, 130 interrupted. It
holds no method, and importing it imports no torch.
"""

from __future__ import annotations

import json
import traceback
from typing import Annotated

import typer
from typer.core import TyperGroup

from trimtab.commands import (
    ablation_study,
    chat,
    doctor,
    entanglement,
    explain,
    generate,
    inspect,
    lens,
    locate,
    models,
    robustness,
    run,
    runs,
    scores,
    search,
    serve,
    steer,
    task,
    vector,
)
from trimtab.commands.options import AS_JSON, defaults_from_file
from trimtab.errors import MissingExtra, TrimtabError


class Commands(TyperGroup):
    """A group of commands whose errors of ours end in one message on standard error."""

    def invoke(self, ctx: typer.Context) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except TrimtabError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            if ctx.meta.get(AS_JSON):
                typer.echo(json.dumps({"error": str(error)}, ensure_ascii=False))
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(3 if isinstance(error, MissingExtra) else 1) from error
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="trimtab",
    cls=Commands,
    help="Find the small part of a language model that carries a behaviour, change only that, show what it cost.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from trimtab import __version__

        typer.echo(f"trimtab {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Find the small part of a language model that carries a behaviour, change only that, show what it cost."""
    found = defaults_from_file()
    without = {key: value for key, value in found.items() if key != "model"}  # explain needs no model unless told
    commands = [
        "ablation-study",
        "chat",
        "doctor",
        "entanglement",
        "generate",
        "inspect",
        "lens",
        "robustness",
        "run",
        "search",
        "serve",
    ]
    context.default_map = {**dict.fromkeys(commands, found), "explain": without}


app.command("run")(run.run)
app.command("report")(run.report)
runs.app.command("reproduce")(run.reproduce)
app.add_typer(locate.app, name="locate")
app.add_typer(scores.app, name="scores")
app.add_typer(steer.app, name="steer")
app.command("search")(search.search)
app.add_typer(vector.app, name="vector")
app.command("robustness")(robustness.robustness)
app.command("entanglement")(entanglement.entanglement)
app.command("ablation-study")(ablation_study.ablation_study)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("lens")(lens.lens)
app.command("generate")(generate.generate)
app.command("explain")(explain.explain)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.add_typer(models.app, name="models")
app.add_typer(task.app, name="task")
app.add_typer(runs.app, name="runs")


if __name__ == "__main__":
    app()
