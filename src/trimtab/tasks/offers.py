"""Methods that other packages offer under an entry point group, beside our own: one that is broken breaks nothing else.

[project.entry-points."trimtab.locate"]
my_method = "my_package.my_module:my_method"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import NoReturn

from trimtab.errors import TrimtabError, nearest
from trimtab.tasks.signatures import Method


def with_offers(own: Mapping[str, Method], group: str, fits: Callable[[object], bool], shape: str) -> dict[str, Method]:
    """Our own methods, then those offered under `group` whose name is not taken.

    What is offered and is no function that `fits` (in words, of which `shape`), or cannot be loaded, says so where it
    is called.
    """
    found = dict(own)
    for point in metadata.entry_points(group=group):
        if point.name not in found:
            found[point.name] = _loaded(point, fits, shape)
    return found


def named(known: Mapping[str, Method], name: str, what: str) -> Method:
    """One of the known methods, dashes as good as underscores. TrimtabError with the nearest name for another."""
    wanted = name.replace("-", "_")
    if wanted not in known:
        raise TrimtabError(f'no {what} method "{name}"{nearest(wanted, known)}: there are {", ".join(sorted(known))}')
    return known[wanted]


def _loaded(point: metadata.EntryPoint, fits: Callable[[object], bool], shape: str) -> Method:
    try:
        function = point.load()
    except (ImportError, AttributeError) as error:
        return _broken(point, f"it cannot be loaded ({error})")
    return function if fits(function) else _broken(point, f"it is no {shape}")


def _broken(point: metadata.EntryPoint, why: str) -> Method:
    """A method in the place of one that is not there: it says so where it is called, and the others stay usable."""

    def broken(lm: object, task: object, *_: object, **__: object) -> NoReturn:
        raise TrimtabError(f'the method "{point.name}" of {point.value} cannot be used: {why}')

    broken.__doc__ = f"Not usable: {why}."
    broken.__annotations__ = {}  # it gives nothing, and is of no use to whoever asks what it gives
    return broken
