"""Provenance: what a result was made from, so that it can be judged and made again.

It records what it is told; hashes, kernels and policies are found out by the rooms that know them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from trimtab.errors import EditError, FileError, TrimtabError
from trimtab.values.content import Content
from trimtab.values.scope import Scope
from trimtab.values.site import Edge, Selection, Site

PACKAGES = ("trimtab", "torch", "transformers", "numpy")


@dataclass(frozen=True, eq=False)
class Provenance(Content):
    """Where a result comes from.

    `model` is the name it was loaded by and `model_hash` that of its weights; `data_hash` that of the prompts;
    `options` the method's keyword arguments; `attention` the kernel; `bos` and `chat` what was done to the prompts;
    `created` an ISO time in UTC. `Provenance.now(...)` fills in `versions` and `created`.
    """

    model: str
    model_hash: str = ""
    data_hash: str | None = None
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    dtype: str = ""
    attention: str = ""
    bos: str = ""
    chat: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", plain(self.options))
        object.__setattr__(self, "versions", {str(name): str(version) for name, version in self.versions.items()})

    @classmethod
    def now(cls, model: str, **known: object) -> Provenance:
        """A provenance of this moment, with the versions of the installed packages that matter."""
        return cls(
            model, **{"versions": installed(), "created": datetime.now(UTC).isoformat(timespec="seconds"), **known}
        )

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read what `to_json` wrote; FileError for anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FileError(f"this is not the JSON of a provenance ({error})") from error


def joined(parts: Sequence[tuple[str, Provenance | None]]) -> Provenance | None:
    """The provenance of what is put together from named parts: what they have in common, the method "sum", and each
    part's name, method, data and options under "parts" of its options. That of one part is its own.

    Raises EditError for parts that say they were made on different weights.
    """
    known = [(name, made) for name, made in parts if made is not None]
    if not known or len(parts) == 1:
        return known[0][1] if known else None
    on: dict[str, tuple[str, Provenance]] = {}
    for name, made in known:
        if made.model_hash:
            on.setdefault(made.model_hash, (name, made))
    if len(on) > 1:
        told = " and ".join(
            f'"{name or "unnamed"}" on "{made.model}" (weights {made.model_hash[:12]}, {made.dtype or "unknown dtype"})'
            for name, made in on.values()
        )
        raise EditError(
            f"these were made on different weights: {told}. What is made on one model means nothing in another: make "
            "all of them on one; if they are the same model (in another dtype, say), take the provenance off all but "
            "one, with_(provenance=None)"
        )
    first, every = known[0][1], [made for _, made in known]
    names = [each.name for each in fields(Provenance)]
    same = {n: getattr(first, n) for n in names if all(getattr(made, n) == getattr(first, n) for made in every)}
    _, weights = next(iter(on.values()), known[0])
    same |= {"model": weights.model, "model_hash": weights.model_hash, "created": max(made.created for made in every)}
    told = [each for part in parts for each in _told(*part)]
    return Provenance(**same | {"method": "sum", "options": {"parts": told}})


def _told(name: str, made: Provenance | None) -> list[dict[str, Any]]:
    """A part of a sum in plain values; a sum's own parts."""
    if made is None:
        return [{"name": name}]
    if made.method == "sum" and made.options.keys() == {"parts"}:
        return made.options["parts"]
    return [{"name": name, "method": made.method, "data_hash": made.data_hash, "options": made.options}]


def plain(options: Mapping[str, object]) -> dict[str, object]:
    """Options as JSON holds them: numbers, text and lists of them; sites, edges and numpy scalars become these."""
    try:
        return json.loads(json.dumps(dict(options), default=_plain))
    except (TypeError, ValueError) as error:
        raise TrimtabError(
            f"options must be plain values (numbers, text, lists of them), got {options!r} ({error})"
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, (Site, Edge, Scope, Selection)):
        return str(value)
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"{type(value).__name__} is no plain value")
    return item()


def installed() -> dict[str, str]:
    """The versions of the installed packages that a result depends on."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
