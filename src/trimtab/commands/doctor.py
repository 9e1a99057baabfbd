"""`trimtab doctor MODEL`: whether its sites are what they should be, how exact the engine is on it, what jobs cost.

What is found out is in `trimtab.model.doctor`; here it is printed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from trimtab.commands.options import (
    DEFAULT_MODEL,
    Device,
    Dtype,
    Json,
    ModelName,
    console,
    open_model,
    print_json,
    say,
    size,
)

if TYPE_CHECKING:
    from trimtab.model.doctor import Checkup


def doctor(model: ModelName = DEFAULT_MODEL, dtype: Dtype = None, device: Device = None, as_json: Json = False) -> None:
    """Check a model and the engine on it.

    Exits with 1 where an identity fails; says what common jobs will cost.
    """
    lm = open_model(model, dtype, device, check=False)
    from trimtab.model.doctor import checkup

    found = checkup(lm, progress=lambda stage: say(f"{stage} …"))
    if as_json:
        print_json(asdict(found) | {"healthy": found.healthy})
    else:
        _show(found)
    if not found.healthy:
        failed = [check.name for check in found.checks if not check.holds]
        failed += [f"engine = whole passes in {d.dtype}" for d in found.deviations if not d.holds]
        typer.echo(f"error: {found.model} fails: {'; '.join(failed)}. Its sites would be wrong tensors", err=True)
        raise typer.Exit(1)


def _show(found: Checkup) -> None:
    from rich.table import Table

    out = console()
    out.print(f"{found.model}, {found.dtype} on {found.device}\n", style="bold")
    table = Table("identity", "layers", "worst", "error", "tolerance", "holds", box=None, pad_edge=False)
    for check in found.checks:
        worst = "" if check.worst is None or check.error == 0 else f"L{check.worst}"
        layers = "" if check.worst is None else str(check.layers)
        numbers = (_short(check.error), _short(check.tolerance))
        table.add_row(
            check.name, layers, worst, *numbers, "yes" if check.holds else "NO", style="" if check.holds else "red"
        )
    _numbers(table, 1, 2, 3, 4)
    out.print(table)
    out.print("\nthe engine against whole forward passes, largest deviation", style="bold")
    table = Table("format", "cells", "logits", "relative", "model against float32", box=None, pad_edge=False)
    for row in found.deviations:
        rounding = "" if row.rounding is None else f"{row.rounding:.2g} logits"
        table.add_row(row.dtype, str(row.cells), _short(row.largest), _short(row.relative), rounding)
    _numbers(table, 1, 2, 3)
    out.print(table)
    out.print("\njobs on this machine", style="bold")
    table = Table("job", "time", "memory", "", box=None, pad_edge=False)
    for job in found.jobs:
        about = "" if job.measured else "about "
        table.add_row(job.name, about + duration(job.seconds), size(job.bytes), job.detail)
    table.columns[0].no_wrap = table.columns[1].no_wrap = table.columns[2].no_wrap = True
    out.print(table)
    for note in found.notes:
        out.print(f"note: {note}")


def duration(seconds: float) -> str:
    """A time to be read: 12 ms, 3.4 s, 5 min, 2.1 h."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _numbers(table: object, *columns: int) -> None:
    from rich.table import Table

    assert isinstance(table, Table)
    for column in columns:
        table.columns[column].justify = "right"
        table.columns[column].no_wrap = True
