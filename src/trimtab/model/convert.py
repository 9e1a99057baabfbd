"""GGUF -> a folder that `from_pretrained` reads, written tensor by tensor so that it can be killed and taken up again.

Weights are kept in float32: a Q4_1 weight is scale·q + minimum with both in float16, and the sum needs more than the
11 bits of float16 or the 8 of bfloat16. The file's layout is fixed before the first weight is computed, so each
weight goes to its final place and a journal says which are there; what it says is checked against the bytes before it
is believed. This file does not know which model it converts or where the model came from.

safetensors: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

from trimtab.errors import ModelFileError
from trimtab.model.gguf import Weight, byte_level_tokenizer, llama_config, llama_weights, read_gguf, tokenizer_config

FORMAT = 1
"""Version of what `convert` writes: a folder of another version is made again."""
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
_JOURNAL = "finished.jsonl"
_CHUNK = 1 << 22

Progress = Callable[[str, int, int], None]
"""Called with a stage ("fetch", "unpack", "convert", …), and the bytes done and to do in that stage."""


def convert(
    source: Path,
    folder: Path,
    *,
    source_sha256: str,
    expect: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Convert the Llama model in the GGUF file `source` to a Hugging Face folder at `folder`, which must not exist.

    Everything is written to `folder`.partial, which is renamed at the end; an earlier one from the same source is
    continued. The folder holds config.json, generation_config.json, tokenizer.json, tokenizer_config.json,
    model.safetensors and manifest.json (size and SHA-256 of each).

    Raises ModelFileError for a damaged source, a full disk, or weights whose SHA-256 is not the one to `expect`.
    """
    reader = read_gguf(source)
    weights, config = llama_weights(reader), llama_config(reader)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    head = _header(weights)
    identity = {"format": FORMAT, "source": source_sha256, "header": hashlib.sha256(head).hexdigest()}
    sizes = {WEIGHTS: len(head) + sum(weight.nbytes for weight in weights)}
    _need_space(partial, sizes[WEIGHTS])
    hashes = {WEIGHTS: _write_weights(partial, head, weights, identity, progress)}
    if expect not in (None, hashes[WEIGHTS]):
        shutil.rmtree(partial)
        raise ModelFileError(
            f'converting "{source.name}" gave weights with SHA-256 {hashes[WEIGHTS]} where {expect} is expected: '
            "please report this with your versions of numpy and gguf"
        )
    generation = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    small = {
        "config.json": _pretty(config),
        "generation_config.json": _pretty(generation),
        "tokenizer.json": byte_level_tokenizer(reader).to_str().encode(),
        "tokenizer_config.json": _pretty(tokenizer_config(reader)),
    }
    for name, content in small.items():
        _write(partial / name, content)
        sizes[name], hashes[name] = len(content), hashlib.sha256(content).hexdigest()
    files = {name: {"size": sizes[name], "sha256": hashes[name]} for name in sorted(sizes)}
    _write(partial / MANIFEST, _pretty({"format": FORMAT, "source": source_sha256, "files": files}))
    partial.replace(folder)
    (folder / _JOURNAL).unlink()


def sha256_of(path: Path, tick: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file in hexadecimal; `tick` is called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if tick is not None:
                tick(done)
    return digest.hexdigest()


def _write_weights(
    partial: Path, head: bytes, weights: list[Weight], identity: dict[str, object], progress: Progress | None
) -> str:
    """Bring model.safetensors to completion and return its SHA-256; weights that an earlier call finished are kept."""
    path, total = partial / WEIGHTS, sum(weight.nbytes for weight in weights)
    finished = _finished(partial / _JOURNAL, identity)
    if not finished or not path.is_file() or path.stat().st_size != len(head) + total:
        finished = {}
        _write(partial / _JOURNAL, json.dumps(identity).encode() + b"\n")
        with path.open("wb") as file:
            file.truncate(len(head) + total)
    digest, done = hashlib.sha256(head), 0
    with path.open("r+b") as file, (partial / _JOURNAL).open("a", encoding="utf-8") as journal:
        file.write(head)
        journal.write("\n")  # a line torn by a kill ends here
        for weight in weights:
            start = file.tell()
            raw = file.read(weight.nbytes) if weight.name in finished else b""
            if not raw or hashlib.sha256(raw).hexdigest() != finished[weight.name]:
                raw = weight.values().astype("<f4", copy=False).tobytes()
                file.seek(start)
                file.write(raw)
                file.flush()
                journal.write(json.dumps({"name": weight.name, "sha256": hashlib.sha256(raw).hexdigest()}) + "\n")
                journal.flush()
            digest.update(raw)
            done += weight.nbytes
            if progress is not None:
                progress("convert", done, total)
        _to_disk(file)
    return digest.hexdigest()


def _finished(journal: Path, identity: dict[str, object]) -> dict[str, str]:
    """Name and SHA-256 of each weight that the journal of this conversion calls finished; torn lines are skipped."""
    if not journal.is_file():
        return {}
    entries: list[object] = []
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    if not entries or entries[0] != identity:
        return {}
    dicts = [entry for entry in entries[1:] if isinstance(entry, dict)]
    return {entry["name"]: entry["sha256"] for entry in dicts if entry.keys() == {"name", "sha256"}}


def _header(weights: list[Weight]) -> bytes:
    """The head of a safetensors file: the length of a JSON table, and the table, padded to eight bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for weight in weights:
        table[weight.name] = {"dtype": "F32", "shape": weight.shape, "data_offsets": (offset, offset + weight.nbytes)}
        offset += weight.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _need_space(folder: Path, size: int) -> None:
    there = folder / WEIGHTS
    have = there.stat().st_blocks * 512 if there.is_file() and hasattr(there.stat(), "st_blocks") else 0
    free = shutil.disk_usage(folder).free
    if free + have < size:
        raise ModelFileError(
            f'not enough room for the converted model in "{folder.parent}": {size / 1e6:,.0f} MB are needed and '
            f"{free / 1e6:,.0f} MB free. Make room, or name another folder in the environment variable TRIMTAB_CACHE"
        )


def _pretty(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _to_disk(file)


def _to_disk(file: IO[bytes]) -> None:
    """Wait until the file is on the disk: a rename must not survive a power cut that its content does not."""
    file.flush()
    os.fsync(file.fileno())
