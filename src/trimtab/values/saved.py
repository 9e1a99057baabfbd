"""Saved: values that keep themselves in one safetensors file, and notice when that file was altered."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from trimtab.errors import FileError, nearest
from trimtab.values.content import Content, decode, encode
from trimtab.values.files import kind_of, read_safetensors, write_safetensors

if TYPE_CHECKING:
    import pandas as pd


class Saved(Content):
    """A base of contents with a file of their own: `KIND` is what the file says it holds."""

    KIND: ClassVar[str]

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to one safetensors file: arrays bit for bit, the rest as JSON in the metadata. FileError where it
        cannot."""
        arrays: dict[str, np.ndarray] = {}
        content = encode(self, arrays)
        write_safetensors(path, arrays, self.KIND, {"content": content, "digest": self.digest})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote; no code in a file can run. FileError for another, a damaged or an altered file."""
        arrays, meta = read_safetensors(path, cls.KIND)
        if not isinstance(meta, dict) or not {"content", "digest"} <= meta.keys():
            raise FileError(f"{path} is damaged: its description is incomplete")
        try:
            made = decode(meta["content"], arrays, cls)
        except FileError as error:
            raise FileError(f"{path}: {error}") from error
        if made.digest != meta["digest"]:
            raise FileError(f"{path} was altered after it was written: its contents no longer give its digest")
        return made


def load(path: str | PathLike[str]) -> Saved:
    """Whatever value a file holds: its kind is in the file. FileError for one that holds none of ours.

    >>> load("scores.safetensors")  # doctest: +SKIP
    <Scores patching: …>
    """
    import trimtab.values as room

    for module in pkgutil.iter_modules(room.__path__):
        import_module(f"{room.__name__}.{module.name}")
    known = {cls.KIND: cls for cls in Saved.__subclasses__() if cls.__module__.startswith(f"{room.__name__}.")}
    kind = kind_of(path)
    if kind not in known:
        raise FileError(f"{path} holds {kind!r}{nearest(kind, known)}: there are {', '.join(sorted(known))}")
    return known[kind].load(path)


def frame_of(value: Saved) -> pd.DataFrame | None:
    """The table of a value that has one (`to_frame`)."""
    to_frame = getattr(value, "to_frame", None)
    return cast("pd.DataFrame", to_frame()) if callable(to_frame) else None
