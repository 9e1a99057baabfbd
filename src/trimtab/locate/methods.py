"""Which locating methods there are, and which of them a study can use: told from the functions themselves.

A method is a public function of `trimtab.locate` whose first parameters are `lm` and `task`, or one of the same shape
that another package offers under the entry point group "trimtab.locate":

    [project.entry-points."trimtab.locate"]
    my_method = "my_package.my_module:my_method"

Other functions of a model whose result can be kept are called by name too (`functions`): on a part of a task to fit
something to, on prompts, on texts, or on the weights alone. Their options are read by `tasks.signatures`.
"""

from __future__ import annotations

import inspect
import typing
from typing import Literal

from trimtab.tasks.offers import named, with_offers
from trimtab.tasks.signatures import READS, Method, Option, about, described, hints, options, parts, required
from trimtab.values.scores import Scores
from trimtab.values.site import Edge, Site

__all__ = [
    "GROUP",
    "READS",
    "SUBJECTS",
    "Method",
    "Option",
    "Subject",
    "about",
    "described",
    "function",
    "functions",
    "is_function",
    "is_method",
    "method",
    "methods",
    "options",
    "scores_sites",
    "subject",
    "unfit",
]

GROUP = "trimtab.locate"
"""The entry point group under which other packages offer methods."""
Subject = Literal["task", "prompts", "texts", "weights"]
SUBJECTS: dict[str, Subject] = {
    "task": "task",
    "train": "task",
    "prompt": "prompts",
    "prompts": "prompts",
    "texts": "texts",
}
"""What a parameter of this name says that a function is run on."""


def methods() -> dict[str, Method]:
    """Every locating method by its name: those here, then those of other packages whose name is not taken."""
    from trimtab import locate

    own = {name: getattr(locate, name) for name in locate.__all__}
    found = {name: function for name, function in own.items() if is_method(function)}
    return with_offers(found, GROUP, is_method, "function whose first parameters are lm and task")


def method(name: str) -> Method:
    """A locating method by its name, dashes as good as underscores. TrimtabError with the nearest name for another."""
    return named(methods(), name, "locating")


def functions() -> dict[str, Method]:
    """Every function that can be called by name: the methods, and those that take a model and something else."""
    from trimtab import locate

    own = {name: getattr(locate, name) for name in locate.__all__}
    return {name: found for name, found in own.items() if is_function(found)} | methods()


def function(name: str) -> Method:
    """One of the `functions` by its name. TrimtabError with the nearest name for another."""
    return named(functions(), name, "locating")


def subject(function: Method) -> tuple[str, Subject]:
    """What a function is run on, and the parameter that takes it; the weights alone, and no parameter, where none is
    told.

    >>> from trimtab.locate import composition, fit_monitor, patching
    >>> [subject(each) for each in (patching, fit_monitor, composition)]
    [('task', 'task'), ('train', 'task'), ('', 'weights')]
    """
    name = next((name for name in inspect.signature(function).parameters if name in SUBJECTS), "")
    return name, SUBJECTS.get(name, "weights")


def is_function(function: object) -> bool:
    """Whether something is a function of `lm` that gives a value with a file."""
    if not inspect.isroutine(function) or list(inspect.signature(function).parameters)[:1] != ["lm"]:
        return False
    return any(hasattr(part, "save") for part in _given_by(function))


def is_method(function: object) -> bool:
    """Whether something is a function of `lm` and `task` whose result can be kept: `Scores`, or another with a file."""
    if not inspect.isroutine(function) or list(inspect.signature(function).parameters)[:2] != ["lm", "task"]:
        return False
    return "return" not in hints(function) or any(hasattr(part, "save") for part in _given_by(function))


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


def _given_by(function: Method) -> list[object]:
    """The classes of a function's result, of a union each."""
    made = hints(function).get("return")
    return [] if made is None else [typing.get_origin(part) or part for part in parts(made)]
