"""What a package offers, told from its source: nothing of it is imported.

A group's help and the shell's completion name every method. Importing the methods would import torch, which takes
seconds; reading where they are written does not.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Outline:
    """A public function: its `parameters` by name, the classes that it `gives` as "module:name" (those of its
    annotation, and of a union each), and what it is `about`, the first paragraph of its docstring."""

    name: str
    parameters: tuple[str, ...]
    gives: tuple[str, ...]
    about: str


@cache
def outlines(package: str) -> tuple[Outline, ...]:
    """The functions that a package names in its `__init__` by `from package.module import name`.

    >>> [found.parameters[:2] for found in outlines("trimtab.locate") if found.name == "patching"]
    [('lm', 'task')]
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(spec.submodule_search_locations[0])
    wanted: dict[str, set[str]] = {}
    for module, name in _imported(_parsed(folder / "__init__.py")):
        wanted.setdefault(module, set()).add(name)
    inside = {module: folder / f"{module.removeprefix(package + '.').replace('.', '/')}" for module in wanted}
    found: list[Outline] = []
    for module, path in inside.items():
        if module.startswith(f"{package}."):
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            found += _functions(_parsed(file), wanted[module])
    return tuple(found)


def _functions(tree: ast.Module, wanted: set[str]) -> Iterator[Outline]:
    classes = {name: f"{module}:{name}" for module, name in _imported(tree)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            arguments = node.args
            named = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            gives = tuple(classes[name] for name in _roots(node.returns) if name in classes)
            words = inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0]
            yield Outline(node.name, tuple(named), gives, " ".join(words.replace("`", "").split()))


def _roots(node: ast.expr | None) -> Iterator[str]:
    """The names that an annotation is made of: of `A[B] | C` these are A and C."""
    if isinstance(node, ast.BinOp):
        yield from _roots(node.left)
        yield from _roots(node.right)
    elif isinstance(node, ast.Subscript):
        yield from _roots(node.value)
    elif isinstance(node, ast.Name):
        yield node.id


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a module imports by name at its top level."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, each.name) for each in node.names)


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
