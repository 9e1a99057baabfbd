"""Files of our own: one safetensors file, with JSON in its metadata that says what it is.

Writing is atomic: a file of that name is the old one or the whole new one. Reading cannot run code: arrays and JSON
only, never pickle. It knows nothing of what the arrays mean.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import FileError

VERSION = 1
_HEADER = ("trimtab", "version", "meta")


def write_safetensors(path: str | PathLike[str], tensors: Mapping[str, np.ndarray], kind: str, meta: object) -> None:
    """Write arrays and JSON to one file of the given kind ("scores", "intervention", …), atomically.

    Raises FileError where the folder is missing or cannot be written; nothing half-written is left behind.
    """
    from safetensors.numpy import save

    path = Path(path)
    text = json.dumps(meta, ensure_ascii=False, separators=(",", ":"))
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in tensors.items()}
    data = save(arrays, {"trimtab": kind, "version": str(VERSION), "meta": text})
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}. Check that its folder exists and can be written"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def kind_of(path: str | PathLike[str]) -> str:
    """What a file that `write_safetensors` wrote holds ("scores", …). FileError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}" + (": it is a folder" if path.is_dir() else ""))
    try:
        with safe_open(path, framework="numpy") as file:
            kind = (file.metadata() or {}).get("trimtab", "")
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is damaged, truncated, or not a safetensors file ({error}); write it again") from error
    if not kind:
        raise FileError(f"{path} is a safetensors file, but not one that trimtab wrote")
    return kind


def read_safetensors(path: str | PathLike[str], kind: str) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays and the JSON of a file that `write_safetensors` wrote.

    Raises FileError for a file that is missing, truncated, not safetensors, not ours, of another kind, or of a newer
    version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no file {path}" + (": it is a folder" if path.is_dir() else ""))
    try:
        with safe_open(path, framework="numpy") as file:
            meta = _check(file.metadata() or {}, kind, path)
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} is damaged, truncated, or not a safetensors file ({error}); write it again") from error


def _check(header: Mapping[str, str], kind: str, path: Path) -> object:
    if any(name not in header for name in _HEADER):
        raise FileError(f"{path} is a safetensors file, but not one that trimtab wrote: a {kind} was expected")
    if header["trimtab"] != kind:
        raise FileError(f"{path} holds {header['trimtab']!r}, and {kind!r} was expected")
    if int(header["version"]) > VERSION:
        raise FileError(
            f"{path} is of format version {header['version']}, and this trimtab reads up to {VERSION}: "
            "install a newer trimtab"
        )
    return json.loads(header["meta"])
