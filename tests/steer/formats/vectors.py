"""What the tests of formats share: interventions, and GGUF files put together byte by byte."""

from __future__ import annotations

import struct

import numpy as np

from trimtab.values.edit import Edit, Intervention
from trimtab.values.provenance import Provenance

WIDTH = 32
ANY = object()


def vectors(*layers, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    return {layer: rng.normal(size=width).astype(np.float32) for layer in layers}


def added(*layers, strength=1.0, **more):
    """An intervention that adds a random vector at the output of each block."""
    edits = [Edit(f"L{n}.resid_post", "add", v, strength=strength) for n, v in vectors(*layers).items()]
    return Intervention(tuple(edits), **more)


def made(model_hash="ab" * 32, **more):
    return Provenance.now("tiny", model_hash=model_hash, data_hash="cd" * 32, method="difference_of_means", **more)


def arrays(intervention):
    """Block -> vector, of edits as they are (strength apart)."""
    return {edit.site.layer: edit.value for edit in intervention.edits}


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def gguf(
    tensors=None,
    *,
    architecture="controlvector",
    keys=(),
    version=3,
    n_tensors=None,
    n_keys=None,
    infos=None,
    data=None,
    alignment=32,
    magic=b"GGUF",
):
    """The bytes of a GGUF file, every part of which can be made wrong. `infos`: (name, shape, type, offset)."""
    tensors = vectors(1) if tensors is None else tensors
    raw, rows = b"", []
    for layer, vector in tensors.items():
        rows.append((f"direction.{layer}", (len(vector),), 0, len(raw)))
        raw += vector.astype("<f4").tobytes()
        raw += b"\0" * (-len(raw) % alignment)
    rows = rows if infos is None else infos
    pairs = [entry("general.architecture", 8, text(architecture)), *keys] if architecture else list(keys)
    head = magic + struct.pack("<I", version)
    head += struct.pack("<QQ", len(rows) if n_tensors is None else n_tensors, len(pairs) if n_keys is None else n_keys)
    head += b"".join(pairs)
    for name, shape, kind, offset in rows:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    head += b"\0" * (-len(head) % alignment)
    return head + (raw if data is None else data)
