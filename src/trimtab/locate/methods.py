"""Which locating methods there are, and which of them a study can use: told from the functions themselves.

A method is a public function of `trimtab.locate` whose first parameters are `lm` and `task`, or one of the same shape
that another package offers under the entry point group "trimtab.locate":

    [project.entry-points."trimtab.locate"]
    my_method = "my_package.my_module:my_method"

Their options are read by `tasks.signatures`.
"""

from __future__ import annotations

import inspect
import typing

from trimtab.tasks.offers import named, with_offers
from trimtab.tasks.signatures import READS, Method, Option, about, described, hints, options, parts, required
from trimtab.values.scores import Scores
from trimtab.values.site import Edge, Site

__all__ = [
    "GROUP",
    "READS",
    "Method",
    "Option",
    "about",
    "described",
    "is_method",
    "method",
    "methods",
    "options",
    "scores_sites",
    "unfit",
]

GROUP = "trimtab.locate"
"""The entry point group under which other packages offer methods."""


def methods() -> dict[str, Method]:
    """Every locating method by its name: those here, then those of other packages whose name is not taken."""
    from trimtab import locate

    own = {name: getattr(locate, name) for name in locate.__all__}
    found = {name: function for name, function in own.items() if is_method(function)}
    return with_offers(found, GROUP, is_method, "function whose first parameters are lm and task")


def method(name: str) -> Method:
    """A locating method by its name, dashes as good as underscores. TrimtabError with the nearest name for another."""
    return named(methods(), name, "locating")


def is_method(function: object) -> bool:
    """Whether something is a function of `lm` and `task` whose result can be kept: `Scores`, or another with a file."""
    if not inspect.isroutine(function) or list(inspect.signature(function).parameters)[:2] != ["lm", "task"]:
        return False
    made = hints(function).get("return")
    return made is None or any(hasattr(typing.get_origin(part) or part, "save") for part in parts(made))


def scores_sites(function: Method) -> bool:
    """Whether a method takes sites and gives scores of sites, from nothing else that has to be given."""
    return unfit(function) is None


def unfit(function: Method) -> str | None:
    """Why a method cannot score the sites of a study by itself, in words that follow its name; None where it can."""
    made = hints(function).get("return")
    kinds = [] if made is None else parts(made, whole=True)
    if any(typing.get_args(part) == (Edge,) for part in kinds):
        return "scores paths from one place to another, and not places"
    if kinds and not any(part is Scores or typing.get_args(part) == (Site,) for part in kinds):
        return f"gives {' or '.join(getattr(part, '__name__', str(part)) for part in kinds)}, and no scores of places"
    parameters = list(inspect.signature(function).parameters)
    if "sites" not in parameters:
        return "scores whole prompts and takes no sites"
    if needed := required(function, *parameters[:2], "sites"):
        return f"has to be told {' and '.join(needed)}, which is different for every task"
    return None if parameters[2] == "sites" else "takes its sites in another place than the third"
