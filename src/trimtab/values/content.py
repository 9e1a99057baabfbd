"""Content: values as JSON and arrays, and their digest.

A value is written as nested JSON whose objects name their class under "is"; arrays stand aside under a key each.
Reading goes the other way through a fixed table of our own classes, so nothing in a file can name any other code. It
knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import ClassVar, Self, TypeVar

import numpy as np

from trimtab.errors import FileError, TrimtabError
from trimtab.values.scope import Scope
from trimtab.values.site import Edge, Selection, Site

T = TypeVar("T")

_WRITTEN: dict[str, type] = {"Site": Site, "Scope": Scope, "Selection": Selection, "Edge": Edge}
_CLASSES: dict[str, type] = {}
LISTED = 10_000


class Content:
    """A base of frozen dataclasses that are equal, and hash, by what they hold: arrays by dtype, shape and bytes."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]
    LATER: ClassVar[Mapping[str, object]] = {}
    """Fields that files of earlier versions lack, and what these mean by it: a value that has just that is written, and
    has the digest, as if the field were not there."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.startswith("trimtab.values."):
            known = _CLASSES.setdefault(cls.__name__, cls)
            assert known.__module__ == cls.__module__, f"files name values by class, and there are two {cls.__name__}"

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the canonical JSON and the arrays' bytes."""
        known = self.__dict__.get("_digest")
        if known is None:
            known = digest_of(self._content())
            object.__setattr__(self, "_digest", known)
        return known

    def _content(self) -> object:
        """What the digest covers."""
        return {"is": type(self).__name__, **_written(self)}

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and self.digest == other.digest)

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)

    def __repr__(self) -> str:
        parts = (f"{name}={_short(field)}" for name, field in _written(self).items())
        return f"{type(self).__name__}({', '.join(parts)})"

    def with_(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def encode(value: object, arrays: dict[str, np.ndarray]) -> object:
    """A value as JSON; its arrays are added to `arrays`, and their keys stand in their place."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value).__name__ in _WRITTEN:
        return {"is": type(value).__name__, "text": str(value)}
    if isinstance(value, np.ndarray):
        key = f"a{len(arrays)}"
        arrays[key] = value
        return {"is": "array", "key": key}
    if isinstance(value, (tuple, list)):
        return [encode(item, arrays) for item in value]
    if isinstance(value, Mapping):
        return {"is": "map", "items": {str(key): encode(item, arrays) for key, item in value.items()}}
    if isinstance(value, Content):
        fields = _written(value)
        return {"is": type(value).__name__, **{name: encode(field, arrays) for name, field in fields.items()}}
    raise TypeError(f"{type(value).__name__} is not a value that can be written")


def listed(value: Content) -> object:
    """A value as plain JSON to be read by others: arrays as lists, of those with over 10,000 numbers the shape."""
    arrays: dict[str, np.ndarray] = {}

    def plain(part: object) -> object:
        if isinstance(part, list):
            return [plain(item) for item in part]
        if not isinstance(part, dict):
            return part
        if part.get("is") == "array":
            array = arrays[str(part["key"])]
            return array.tolist() if array.size <= LISTED else {"shape": list(array.shape)}
        if part.get("is") in _WRITTEN:
            return part["text"]
        inner = part["items"] if part.get("is") == "map" else part
        return {key: plain(item) for key, item in inner.items()}

    return plain(encode(value, arrays))


def decode(value: object, arrays: Mapping[str, np.ndarray], expected: type[T]) -> T:
    """The value that `encode` wrote, its lists as tuples. FileError where that is not an `expected`."""
    try:
        made = _decode(value, arrays)
    except FileError:
        raise
    except (TrimtabError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise FileError(f"the contents of the file are damaged: {error}") from error
    if not isinstance(made, expected):
        raise FileError(f"the file should hold a {expected.__name__} and holds a {type(made).__name__}")
    return made


def _decode(value: object, arrays: Mapping[str, np.ndarray]) -> object:
    if isinstance(value, list):
        return tuple(_decode(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.get("is")
    if kind == "map":
        return {key: _decode(item, arrays) for key, item in value["items"].items()}
    if kind == "array":
        if value.get("key") not in arrays:
            raise FileError(f"the array {value.get('key')!r} is missing from the file")
        return arrays[value["key"]]
    if kind in _WRITTEN:
        return _WRITTEN[kind].parse(value["text"])
    if kind not in _CLASSES:
        raise FileError(f'the file holds a "{kind}", which this version of trimtab does not know')
    return _CLASSES[kind](**{key: _decode(item, arrays) for key, item in value.items() if key != "is"})


def digest_of(value: object) -> str:
    """SHA-256 of a value: of its canonical JSON, then of each array's dtype, shape and bytes."""
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(encode(value, arrays), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode())
    for key, array in arrays.items():
        digest.update(f"\n{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _written(value: Content) -> dict[str, object]:
    """The fields that are written: all but those of `LATER` that are as they were before there were any."""
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    later = value.LATER
    return {name: field for name, field in fields.items() if name not in later or not _same(field, later[name])}


def _same(field: object, other: object) -> bool:
    """Whether a field is as it was; an array is never what a field means that is not there."""
    return field is other or (not isinstance(field, np.ndarray) and field == other)


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(_short(item) for item in value[:5])}, … {len(value)} in all)"
    return repr(value)
