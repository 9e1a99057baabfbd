"""Which locating methods there are, and their options: read from the functions themselves, so that no list can drift.

A method is a public function of `trimtab.locate` whose first parameters are `lm` and `task`, or one of the same shape
that another package offers under the entry point group "trimtab.locate":

    [project.entry-points."trimtab.locate"]
    my_method = "my_package.my_module:my_method"

What needs Python values (dictionaries, callbacks) is no option here; everything else can be said in text.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, Union

from trimtab.errors import TrimtabError, nearest
from trimtab.tasks.task import Task
from trimtab.values.saved import Saved
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Edge, Selection, Site

GROUP = "trimtab.locate"
"""The entry point group under which other packages offer methods."""

Method = Callable[..., Any]
Kind = Literal["flag", "whole", "number", "words", "task", "file"]

READS = ("sites", "senders")
"""Parameters that select sites: brackets have commas of their own, so several are given one by one."""

_WORDS = (str, Site, Scope, Selection)


@dataclass(frozen=True)
class Option:
    """A keyword of a method that can be given as text.

    `kinds` are what it may be, `choices` the words it is one of (where it is), `listed` whether several may be given,
    separated by commas; `single` whether one may stand alone. `files` are the classes that a file may hold.
    """

    name: str
    kinds: tuple[Kind, ...]
    choices: tuple[str, ...]
    listed: bool
    single: bool
    required: bool
    default: object
    help: str
    files: tuple[type[Saved], ...] = ()

    def read(self, text: str) -> object:
        """The value that a text stands for; a task or a file as its text. TrimtabError where it can be none."""
        parts = [part.strip() for part in text.split(",")] if self.listed and ("," in text or not self.single) else None
        if parts is not None:
            return tuple(self._one(part) for part in parts if part)
        return self._one(text)

    def _one(self, text: str) -> object:
        if text in self.choices:
            return text
        for kind, made in (("whole", int), ("number", float)):
            if kind in self.kinds:
                try:
                    return made(text)
                except ValueError:
                    continue
        if {"words", "task", "file"} & set(self.kinds):
            return text
        raise TrimtabError(f'{self.name} is {self.expected}, got "{text}"{nearest(text, self.choices)}')

    @property
    def expected(self) -> str:
        """What it may be, in words."""
        names = {
            "flag": "yes or no",
            "whole": "a whole number",
            "number": "a number",
            "words": "text",
            "task": "a task",
            "file": f"a file of {' or '.join(each.KIND for each in self.files)}",
        }
        one = [*self.choices, *(names[kind] for kind in self.kinds)]
        return f"{', '.join(one[:-1])} or {one[-1]}" if len(one) > 1 else (one or ["text"])[0]


def methods() -> dict[str, Method]:
    """Every locating method by its name: those here, then those of other packages whose name is not taken."""
    from trimtab import locate

    own = {name: getattr(locate, name) for name in locate.__all__}
    found = {name: function for name, function in own.items() if is_method(function)}
    for point in metadata.entry_points(group=GROUP):
        if point.name not in found:
            found[point.name] = _loaded(point)
    return found


def method(name: str) -> Method:
    """A locating method by its name, dashes as good as underscores. TrimtabError with the nearest name for another."""
    known = methods()
    wanted = name.replace("-", "_")
    if wanted not in known:
        raise TrimtabError(f'no locating method "{name}"{nearest(wanted, known)}: there are {", ".join(sorted(known))}')
    return known[wanted]


def is_method(function: object) -> bool:
    """Whether something is a function of `lm` and `task` whose result can be kept: `Scores`, or another with a file."""
    if not inspect.isroutine(function) or list(inspect.signature(function).parameters)[:2] != ["lm", "task"]:
        return False
    made = _hints(function).get("return")
    return made is None or any(hasattr(typing.get_origin(part) or part, "save") for part in _parts(made))


def scores_sites(function: Method) -> bool:
    """Whether a method takes sites and gives scores of sites, from nothing else that has to be given."""
    return unfit(function) is None


def unfit(function: Method) -> str | None:
    """Why a method cannot score the sites of a study by itself, in words that follow its name; None where it can."""
    made = _hints(function).get("return")
    kinds = [] if made is None else _parts(made, whole=True)
    if any(typing.get_args(part) == (Edge,) for part in kinds):
        return "scores paths from one place to another, and not places"
    if kinds and not any(part is Scores or typing.get_args(part) == (Site,) for part in kinds):
        return f"gives {' or '.join(getattr(part, '__name__', str(part)) for part in kinds)}, and no scores of places"
    parameters = inspect.signature(function).parameters
    if "sites" not in parameters:
        return "scores whole prompts and takes no sites"
    named = (p for p in list(parameters.values())[2:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    needed = [p.name for p in named if p.name != "sites" and p.default is p.empty]
    if needed:
        return f"has to be told {' and '.join(needed)}, which is different for every task"
    return None if list(parameters)[2] == "sites" else "takes its sites in another place than the third"


def options(function: Method) -> list[Option]:
    """The keywords of a method that can be given as text, in its own order; `lm` and `task` apart."""
    hints, words = _hints(function), described(function)
    found = []
    for name, parameter in list(inspect.signature(function).parameters.items())[2:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in ("progress", "dictionaries"):
            continue
        option = _option(name, hints.get(name, str), parameter, words.get(name, ""))
        if option is not None:
            found.append(option)
    return found


def described(function: Method) -> dict[str, str]:
    """What the docstring's `Args:` say of each parameter, on one line."""
    text = inspect.getdoc(function) or ""
    found: dict[str, str] = {}
    part = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    if part is None:
        return found
    indent = min(len(line) - len(line.lstrip()) for line in part[1].splitlines() if line.strip())
    name = ""
    for line in part[1].splitlines():
        entry = re.match(rf" {{{indent}}}([\w, ]+?)(?: \([^)]*\))?: (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2].strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {each.strip(): words for names, words in found.items() for each in names.split(",")}


def about(function: Method) -> str:
    """The docstring up to its `Args:`, its code marks and examples left out."""
    text = (inspect.getdoc(function) or "").split("\nArgs:")[0]
    return text.split("\n>>>")[0].replace("`", "").strip()


def _loaded(point: metadata.EntryPoint) -> Method:
    try:
        function = point.load()
    except (ImportError, AttributeError) as error:
        return _broken(point, f"it cannot be loaded ({error})")
    if not is_method(function):
        return _broken(point, "it is no function whose first parameters are lm and task")
    return function


def _broken(point: metadata.EntryPoint, why: str) -> Method:
    """A method in the place of one that is not there: it says so where it is called, and the others stay usable."""

    def broken(lm: object, task: object) -> Scores:
        raise TrimtabError(f'the method "{point.name}" of {point.value} cannot be used: {why}')

    broken.__doc__ = f"Not usable: {why}."
    return broken


def _hints(function: Method) -> dict[str, Any]:
    """The annotations as types; names that exist for type checkers only stand for something that is no option."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(function, localns=unknown)
        except NameError as error:
            if error.name is None or error.name in unknown:
                return {}
            unknown[error.name] = type(error.name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})
        except TypeError:
            return {}


def _option(name: str, hint: Any, parameter: inspect.Parameter, words: str) -> Option | None:
    kinds: list[Kind] = []
    choices: list[str] = []
    files: list[type[Saved]] = []
    listed = single = False
    for part in (str, list[str]) if name in READS else _parts(hint):
        if typing.get_origin(part) in (tuple, list, Sequence, Iterable, *_ABSTRACT):
            inner = [each for whole in typing.get_args(part) if whole is not Ellipsis for each in _parts(whole)]
            before = len(kinds) + len(choices)
            for each in inner:
                _add(each, kinds, choices, files)
            listed |= len(kinds) + len(choices) > before or bool(kinds or choices)
        else:
            single |= _add(part, kinds, choices, files)
    if not kinds and not choices:
        return None
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    kept = tuple(dict.fromkeys(kinds))
    return Option(name, kept, tuple(dict.fromkeys(choices)), listed, single, required, default, words, tuple(files))


_ABSTRACT = (typing.get_origin(Sequence[str]), typing.get_origin(Iterable[str]), frozenset, set)


def _add(part: Any, kinds: list[Kind], choices: list[str], files: list[type[Saved]]) -> bool:
    """Take one type into what an option may be; whether it is one that can be written."""
    if typing.get_origin(part) is Literal:
        words = [value for value in typing.get_args(part) if isinstance(value, str)]
        choices += words
        if any(isinstance(value, int) for value in typing.get_args(part)):
            kinds.append("whole")
        return bool(words)
    if not isinstance(part, type):
        return False
    if part is bool:
        kinds.append("flag")
    elif part is int:
        kinds.append("whole")
    elif part is float:
        kinds.append("number")
    elif part in _WORDS:
        kinds.append("words")
    elif part is Task:
        kinds.append("task")
    elif issubclass(part, Saved):
        kinds.append("file")
        files.append(part)
    else:
        return False
    return True


def _parts(hint: Any, whole: bool = False) -> list[Any]:
    """The members of a union, None left out; the type itself where it is none. `whole`: as `Scores[Edge]`, not
    `Scores`."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return [each for part in typing.get_args(hint) for each in _parts(part, whole)]
    if origin is typing.Annotated:
        return _parts(typing.get_args(hint)[0], whole)
    if not whole and isinstance(origin, type) and issubclass(origin, Saved):
        return [origin]
    return [] if hint is type(None) else [hint]
