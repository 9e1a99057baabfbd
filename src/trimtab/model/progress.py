"""A progress bar on standard error for long steps of the model room. It knows nothing of what is being done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from trimtab.model.convert import Progress


@contextmanager
def bar(name: str) -> Iterator[Progress]:
    """A `progress(stage, done, total)` in bytes that draws on standard error where that is a terminal; gone after."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{name}: {stage}", total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress
