"""Which prompts of a counterfactual task a method reads, told by the method itself.

A method that puts nothing of one prompt into its twin does not need the two to be of one length; `alone` marks it, so
that whoever prepares its task leaves no example out for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from trimtab.locate.plans import settled
from trimtab.tasks.fit import Read

Method = TypeVar("Method", bound=Callable[..., Any])

COMPARED = ("source",)
"""Parameters that take another task, whose two sides are compared whichever prompts of its own a method reads."""
_MARK = "pairs"
_READ: dict[object, Read] = {"clean": "clean", "positive": "clean", "corrupt": "corrupt", "negative": "corrupt"}


def alone(method: Method) -> Method:
    """Mark a method that reads one prompt of each example: the one that its option `on`, or `side`, names, else clean.

    >>> @alone
    ... def method(lm, task, *, on="clean"): ...
    >>> read_by(method, {}), read_by(method, {"on": "corrupt"})
    ('clean', 'corrupt')
    """
    return paired_where(lambda **_: False)(method)


def paired_where(pairs: Callable[..., bool], else_: Read = "clean") -> Callable[[Method], Method]:
    """Mark a method that reads one prompt of each example but where `pairs(**options)` says that it compares both.

    `else_` is the one that it reads where no option `on` or `side` names it.

    >>> @paired_where(lambda *, baseline, **_: baseline == "corrupt")
    ... def method(lm, task, *, baseline="corrupt"): ...
    >>> read_by(method, {}), read_by(method, {"baseline": "zero"})
    ('both', 'clean')
    """

    def marked(method: Method) -> Method:
        setattr(method, _MARK, (pairs, else_))
        return method

    return marked


def read_by(method: Callable[..., Any], given: Mapping[str, Any]) -> Read:
    """Which prompts of each example a method reads with these options: both, which then have to correspond, where it
    does not say otherwise.

    >>> from trimtab.locate import ablation, patching
    >>> read_by(ablation, {"on": "corrupt"}), read_by(patching, {})
    ('corrupt', 'both')
    """
    mark, options = getattr(method, _MARK, None), settled(method, given)
    if mark is None:
        return "both"
    pairs, else_ = mark
    return "both" if pairs(**options) else _READ.get(options.get("on", options.get("side", else_)), "both")
