"""The bytes of a GGUF control vector, read without believing what they declare.

The `gguf` package maps a file and takes the sizes in it for true. Here every length is held against the bytes that are
there before it is used, so nothing is allocated that the file does not hold, and every loop ends with the file. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from trimtab.errors import FileError
from trimtab.steer.formats.directions import Directions

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

ARCHITECTURE = "controlvector"
HINT, EASYSTEER = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.easysteer"
VERSIONS = (2, 3)
TENSORS, KEYS = 4096, 4096
"""How many of each a control vector may have: more than any model has blocks."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})", re.ASCII)


@dataclass(frozen=True)
class ControlVector:
    """What a GGUF file of a control vector says: metadata that is text or a number, and the vectors."""

    metadata: dict[str, str | int | float | bool]
    directions: Directions

    def text(self, key: str) -> str:
        """A piece of text in the metadata, or nothing."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


def read(data: bytes, path: str = "the file") -> ControlVector:
    """The control vector in the bytes of a GGUF file. FileError, naming `path`, for anything else."""
    try:
        return _read(_Bytes(data))
    except _Broken as error:
        raise FileError(f"{path} cannot be read as a control vector: {error}") from None


class _Broken(Exception):
    """What is wrong with a file."""


class _Bytes:
    """Bytes read from front to back, never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.order = memoryview(data), 0, "<"

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise _Broken(f"it is truncated or damaged: {what} needs {size:,} bytes, and {self.left:,} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> int:
        return struct.unpack(f"{self.order}{code}", self.take(struct.calcsize(code), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("Q", what), what)
        try:
            return bytes(raw).decode()
        except UnicodeDecodeError:
            raise _Broken(f"{what} is not UTF-8") from None

    def count(self, most: int, least: int, what: str) -> int:
        """How many of something follow, each of which takes at least so many bytes."""
        many = self.number("Q", what)
        if many > most or many * least > self.left:
            raise _Broken(f"it declares {many:,} {what}, where at most {min(most, self.left // least):,} can be")
        return many


def _read(file: _Bytes) -> ControlVector:
    magic = bytes(file.take(min(4, file.left), "the magic number"))
    if magic != b"GGUF":
        raise _Broken(f'it starts with {magic!r}, and a GGUF file with b"GGUF"')
    version = file.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
        big = " (its bytes are in big-endian order: write it again on a little-endian machine)"
        raise _Broken(f"it is GGUF version {version}, and {VERSIONS} can be read{big if swapped in VERSIONS else ''}")
    tensors = file.count(TENSORS, 24, "tensors")
    metadata: dict[str, str | int | float | bool] = {}
    seen: set[str] = set()
    for _ in range(file.count(KEYS, 13, "metadata keys")):
        key = file.string("a metadata key")
        if key in seen:
            raise _Broken(f'the metadata key "{key[:100]}" is there twice')
        seen.add(key)
        value = _value(file, file.number("I", "a type"), key)
        if value is not None:
            metadata[key] = value
    if (architecture := metadata.get("general.architecture")) != ARCHITECTURE:
        raise _Broken(
            f'its architecture is {str(architecture)[:60]!r}, and that of a control vector is "{ARCHITECTURE}". '
            "A model is read by trimtab.load"
        )
    _check_kind(metadata)
    infos = [_info(file) for _ in range(tensors)]
    return ControlVector(metadata, _directions(file, infos, _alignment(metadata)))


def _value(file: _Bytes, kind: int, key: str) -> str | int | float | bool | None:
    """A value of the metadata; that of an array is passed over."""
    what = f'the value of "{key[:100]}"'
    if kind == _STRING:
        return file.string(what)
    if kind in _NUMBERS:
        return file.number(_NUMBERS[kind], what)
    if kind != _ARRAY:
        raise _Broken(f"{what} has the type {kind}, which GGUF does not know")
    of = file.number("I", what)
    if of == _STRING:
        for _ in range(file.count(1 << 24, 8, f'strings in "{key[:100]}"')):
            file.take(file.number("Q", what), what)
    elif of in _NUMBERS:
        size = struct.calcsize(_NUMBERS[of])
        file.take(size * file.count(1 << 28, size, f'numbers in "{key[:100]}"'), what)
    else:
        raise _Broken(f"{what} is an array of the type {of}, which GGUF does not know")
    return None


def _alignment(metadata: dict[str, str | int | float | bool]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
        raise _Broken(f"general.alignment is a power of two up to 65,536, and the file has {str(alignment)[:40]!r}")
    return alignment


def _check_kind(metadata: dict[str, str | int | float | bool]) -> None:
    """EasySteer writes directions of attention heads and routers under the same names, and says so in one key."""
    native = metadata.get(EASYSTEER)
    found = re.search(r'"component"\s*:\s*"(\w{1,40})"', native) if isinstance(native, str) else None
    if found is not None and found[1] != "hidden_states":
        raise _Broken(f'EasySteer wrote it for "{found[1]}", and only directions of "hidden_states" can be added')


@dataclass(frozen=True)
class _Info:
    """A tensor as the header declares it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _info(file: _Bytes) -> _Info:
    name = file.string("a tensor's name")
    dims = file.number("I", "a number of dimensions")
    if not 1 <= dims <= 4:
        raise _Broken(f'the tensor "{name[:60]}" has {dims} dimensions, and GGUF allows 1 to 4')
    shape = tuple(file.number("Q", "a shape") for _ in range(dims))
    return _Info(name, shape, file.number("I", "a tensor's type"), file.number("Q", "a tensor's offset"))


def _directions(file: _Bytes, infos: list[_Info], alignment: int) -> Directions:
    start = -(-file.at // alignment) * alignment
    found: Directions = {}
    for info in infos:
        layer = _layer(info.name)
        if layer in found:
            raise _Broken(f'the tensor "{info.name}" is there twice')
        found[layer] = _vector(file, info, start, alignment)
    if not found:
        raise _Broken("it holds no tensor direction.N: there is nothing to steer with")
    widths = {len(vector) for vector in found.values()}
    if len(widths) > 1:
        raise _Broken(f"its vectors differ in width: {sorted(widths)}")
    return found


def _layer(name: str) -> int:
    match = _NAME.fullmatch(name)
    if match is None:
        raise _Broken(f'it holds a tensor "{name[:60]}", and a control vector only direction.1, direction.2, …')
    layer = int(match[1])
    if layer == 0:
        raise _Broken(
            "it holds direction.0, which llama.cpp refuses: it never steers block 0, and who wrote the file may have "
            "counted hidden states, whose number 1 is block 0. Write the file again with the numbers of the blocks"
        )
    return layer


def _vector(file: _Bytes, info: _Info, start: int, alignment: int) -> Float32[np.ndarray, "d_model"]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    width = info.shape[0]
    if width < 1 or prod(info.shape[1:]) != 1:
        raise _Broken(f"{info.name} has the shape {info.shape}, and a direction is one vector (d_model)")
    try:
        kind = GGMLQuantizationType(info.kind)
        block, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise _Broken(f"{info.name} has the type {info.kind}, which gguf does not know") from None
    if width % block:
        raise _Broken(f"{info.name} has {width:,} numbers of type {kind.name}, which come in blocks of {block}")
    begin, size = start + info.offset, width // block * size
    if info.offset % alignment:
        raise _Broken(f"{info.name} starts at {info.offset:,}, which is no multiple of the alignment {alignment}")
    if begin + size > len(file.data):
        raise _Broken(
            f"it is truncated, or its sizes are wrong: {info.name} should reach byte {begin + size:,}, "
            f"and the file has {len(file.data):,}"
        )
    vector = _numbers(file.data[begin : begin + size], kind, info.name)
    if not np.isfinite(vector).all():
        raise _Broken(f"{info.name} holds NaN or infinity")
    return vector


def _numbers(raw: memoryview, kind: GGMLQuantizationType, name: str) -> Float32[np.ndarray, "d_model"]:
    from gguf import GGMLQuantizationType, dequantize

    if kind == GGMLQuantizationType.F32:
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    try:
        with np.errstate(all="ignore"):  # scales out of a damaged file may overflow
            values = dequantize(np.frombuffer(raw, dtype=np.uint8).reshape(1, -1), kind)
    except (NotImplementedError, ValueError, IndexError) as error:
        raise _Broken(f"{name} is of type {kind.name}, which gguf cannot dequantise ({error}): use F32") from None
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
