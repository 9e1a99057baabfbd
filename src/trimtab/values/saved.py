"""Saved: values that keep themselves in one safetensors file, and notice when that file was altered."""

from __future__ import annotations

from os import PathLike
from typing import ClassVar, Self

import numpy as np

from trimtab.errors import FileError
from trimtab.values.content import Content, decode, encode
from trimtab.values.files import read_safetensors, write_safetensors


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
