"""The run-time type checker of the tests: beartype, for the arrays in signatures and for nothing else.

Shapes that do not fit are bugs of ours and stop a test. Other wrong arguments are the caller's, and the message that
they get is itself under test, so they are let through. A test that gives an array of the wrong shape on purpose takes
the fixture `unchecked`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar, Union, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable)


def checked(function: F) -> F:
    """Beartype the arrays in the signature of `function`, unless it constructs a value, which converts what it gets."""
    if function.__name__ == "__init__" and function.__module__.startswith("trimtab.values"):
        return function
    hints = {name: hint for name, hint in function.__annotations__.items() if _of_arrays(hint)}
    if not hints:
        return function
    function.__annotations__ = {name: hints.get(name, Any) for name in function.__annotations__}
    return beartype(function)


def _of_arrays(hint: object) -> bool:
    """Whether a hint is an array with a shape, or such arrays in a container, or one of those or None."""
    if isinstance(hint, type) and not get_args(hint):
        return issubclass(hint, AbstractArray)
    if get_origin(hint) in (Union, types.UnionType):
        return all(part is types.NoneType or _of_arrays(part) for part in get_args(hint))
    return any(_of_arrays(part) for part in get_args(hint))
