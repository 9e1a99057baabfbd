"""The tasks that come with the package: one file each, whose one function has the file's name.

from trimtab.tasks import builtin

builtin.names()
builtin.task("greater-than")
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from trimtab.errors import TaskError, nearest

if TYPE_CHECKING:
    from trimtab.tasks.task import Task


def names() -> list[str]:
    """The names of all built-in tasks, in alphabetical order."""
    return sorted(
        module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def task(name: str) -> Task:
    """A built-in task by name. TaskError, with the nearest name, where there is none."""
    if name not in names():
        raise TaskError(f'no built-in task "{name}"{nearest(name, names())}: there are {", ".join(names())}')
    module = name.replace("-", "_")
    return getattr(import_module(f"{__name__}.{module}"), module)()
