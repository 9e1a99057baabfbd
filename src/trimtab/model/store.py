"""Activations of a data set on disk: written batch by batch, read back by memory map, larger than main memory.

A folder holds `run.json` (sites, shapes, rows, policies, the model and data hashes), `tokens.safetensors` (ids and row
offsets) and one safetensors file for each site with the real tokens of all rows in order, (token unit …), in a chosen
type. Pads are not stored. `run.json` comes last: a folder without it is unfinished, and harvesting the same data into
it goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimtab.errors import FileError, SiteError, nearest
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Source
from trimtab.model.steps import spelled_out
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Edits, Reads, Text

VERSION = 1
TYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A harvest, memory-mapped: nothing is in memory until it is indexed.

    `run["L5.resid_post"]` is a lazy (token unit …) array: slice it to get a tensor. `run.row(i, site)` gives the
    tokens of one row, `run.ids` all token ids, `run.offsets[i]:run.offsets[i+1]` the tokens of row i.
    """

    folder: Path
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> StoredRun:
        """Open a finished harvest. Raises `FileError` for a folder that is none, unfinished or damaged."""
        folder = Path(folder)
        path = folder / "run.json"
        if not path.is_file():
            hint = (
                "it is unfinished: harvest the same data into it again"
                if (folder / "progress.json").is_file()
                else "no run.json"
            )
            raise FileError(f"{folder} is not a stored run ({hint})")
        try:
            meta = json.loads(path.read_text())
            version = meta.get("version")
            sites = {name: tuple(int(n) for n in shape) for name, shape in meta["sites"].items()}
            complete = meta["dtype"] in TYPES and all(type(meta[key]) is int for key in ("tokens", "rows"))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FileError(f"{path} is damaged ({error}): harvest again") from error
        if version != VERSION:
            raise FileError(f"{path} has version {version}; this release reads version {VERSION}")
        if not complete:
            raise FileError(f"{path} is damaged (entries are missing): harvest again")
        for name, shape in sites.items():
            file = folder / _file(name)
            size = _header(meta["dtype"], (meta["tokens"], *shape))[1]
            if not file.is_file() or file.stat().st_size != size:
                raise FileError(f"{file} is missing or truncated (expected {size} bytes): harvest again")
        return cls(folder, meta)

    @property
    def sites(self) -> list[Site]:
        """The sites that are stored."""
        return [Site.parse(name) for name in self.meta["sites"]]

    @cached_property
    def ids(self) -> Tensor:
        """(token) ids of all real tokens."""
        return self._tokens("ids")

    @cached_property
    def offsets(self) -> Tensor:
        """(row + 1) where each row's tokens begin; the last entry is the number of tokens."""
        return self._tokens("offsets")

    def _tokens(self, name: str) -> Tensor:
        path = self.folder / "tokens.safetensors"
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} is missing or damaged ({error}): harvest again") from error

    def __len__(self) -> int:
        return int(self.meta["tokens"])

    def __getitem__(self, site: str | Site) -> Tensor:
        """(token unit …), mapped from the file: indexing reads only what it needs."""
        site = Site.parse(site)
        if site.at is not None:
            raise SiteError(f"{site}: a stored run is a list of tokens; use row(i, site) for the positions of one row")
        have = list(self.meta["sites"])
        name = str(site) if str(site) in have else str(site.with_(index=None))
        if name not in have:
            raise SiteError(f'"{site}" is not in this stored run{nearest(str(site), have)}; stored: {", ".join(have)}')
        shape = (len(self), *self.meta["sites"][name])
        start, size = _header(self.meta["dtype"], shape)
        values = torch.frombuffer(
            _mapped(self.folder / _file(name), size),
            dtype=TYPES[self.meta["dtype"]][1],
            count=math.prod(shape),
            offset=start,
        ).view(shape)
        if site.index is None or name == str(site):
            return values
        if max(site.index) >= shape[1]:
            raise SiteError(f"{site}: {site.unit} {max(site.index)} is out of range; stored are 0 to {shape[1] - 1}")
        return values[:, torch.tensor(site.index)]

    def row(self, row: int, site: str | Site) -> Tensor:
        """(pos unit …): the tokens of one row."""
        rows = int(self.meta["rows"])
        if not -rows <= row < rows:
            raise IndexError(f"row {row} is out of range; stored are rows 0 to {rows - 1}")
        row %= rows
        return self[site][int(self.offsets[row]) : int(self.offsets[row + 1])]

    def batches(self, site: str | Site, size: int) -> Iterator[Tensor]:
        """(token unit …) in order, `size` tokens at a time."""
        values = self[site]
        for start in range(0, len(values), size):
            yield values[start : start + size]


def harvest(
    lm: LM,
    texts: Text,
    sites: Reads,
    folder: str | Path,
    *,
    dtype: str = "float16",
    batch_size: int = 8,
    edit: Edits = None,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoredRun:
    """Activations of a data set at sites, streamed to `folder` and opened again by memory map.

    `texts`: texts, rows of ids or `Prompts`. `dtype`: "float32", "float16" or "bfloat16"; values beyond float16's
    range raise rather than become infinite. The pass stops after the last site that is read. A harvest that was
    interrupted goes on where it stopped. `progress(done, total)` is called with rows.

    Raises `FileError` when the folder holds a harvest of something else, or a value does not fit the type.
    """
    if dtype not in TYPES:
        raise FileError(f'dtype "{dtype}" is not one of {", ".join(TYPES)}{nearest(dtype, TYPES)}')
    prompts, wanted = lm.prompts(texts), lm.sites(sites)
    for site in wanted:
        if site.at is not None or site.name in ("scores", "pattern", "logits"):
            raise SiteError(
                f"{site} has no fixed shape for each token; harvest whole sites other than scores, pattern and logits"
            )
    out = Path(folder)
    lengths = prompts.lengths.cpu()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    meta = _meta(lm, prompts, wanted, dtype, int(offsets[-1]), edit)
    outside = bool(runs or dictionaries) or any(block.runs or block.dictionaries for block in lm.active)
    if (out / "run.json").is_file():
        done = StoredRun.open(out)
        if done.meta == meta and not outside:
            return done
        if outside:
            raise FileError(
                f"{out} holds a harvest, and this one uses runs or dictionaries, which cannot be told from the "
                "other ones; choose another folder or remove it"
            )
        raise FileError(f"{out} holds a harvest of other data, sites or model; choose another folder or remove it")
    writer = _Writer(out, meta, prompts, offsets, outside)
    for start in range(writer.rows_done, prompts.batch, batch_size):
        stop = min(start + batch_size, prompts.batch)
        part = prompts.rows(slice(start, stop), trim=True)
        run = lm.run(part, wanted, edit, logits=False, runs=runs, dictionaries=dictionaries)
        for site in wanted:
            writer.write(site, int(offsets[start]), run.whole(site)[part.mask.bool()])
        writer.advance(stop)
        if progress is not None:
            progress(stop, prompts.batch)
    return writer.finish()


class _Writer:
    """Preallocated safetensors files, filled at offsets; progress is recorded after each batch is on disk."""

    def __init__(self, folder: Path, meta: dict[str, Any], prompts: Prompts, offsets: Tensor, fresh: bool) -> None:
        self.folder, self.meta = folder, meta
        folder.mkdir(parents=True, exist_ok=True)
        self.dtype = TYPES[meta["dtype"]][1]
        self.rows_done = 0 if fresh else self._rows_on_disk()
        if self.rows_done == 0:
            from safetensors.torch import save_file

            save_file(
                {"ids": prompts.ids[prompts.mask.bool()].cpu(), "offsets": offsets}, folder / "tokens.safetensors"
            )
            for name, shape in meta["sites"].items():
                header = _header_bytes(meta["dtype"], (meta["tokens"], *shape))
                with (folder / _file(name)).open("wb") as file:
                    file.write(header)
                    file.truncate(_header(meta["dtype"], (meta["tokens"], *shape))[1])
            self.advance(0)

    def _rows_on_disk(self) -> int:
        """Rows of this very harvest that an interrupted attempt has left whole, or 0."""
        try:
            state = json.loads((self.folder / "progress.json").read_text())
            same = state["meta"] == self.meta
            rows = int(state["rows"])
            sizes = [(self.folder / _file(name)).stat().st_size for name in self.meta["sites"]]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        wanted = [_header(self.meta["dtype"], (self.meta["tokens"], *s))[1] for s in self.meta["sites"].values()]
        return rows if same and sizes == wanted and (self.folder / "tokens.safetensors").is_file() else 0

    def write(self, site: Site, token: int, values: Tensor) -> None:
        cast = values.to(self.dtype).contiguous().cpu()
        if not bool(torch.isfinite(cast).all()) and bool(torch.isfinite(values).all()):
            largest = float(values.abs().max())
            raise FileError(
                f"{site} reaches {largest:.3g}, beyond {self.meta['dtype']}; harvest it in bfloat16 or float32"
            )
        name = str(site)
        shape = tuple(self.meta["sites"][name])
        start, _ = _header(self.meta["dtype"], (self.meta["tokens"], *shape))
        with (self.folder / _file(name)).open("r+b") as file:
            file.seek(start + token * math.prod(shape) * self.dtype.itemsize)
            file.write(cast.view(torch.uint8).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())

    def advance(self, rows: int) -> None:
        """Record that rows up to this one are on disk."""
        _write_json(self.folder / "progress.json", {"rows": rows, "meta": self.meta})

    def finish(self) -> StoredRun:
        _write_json(self.folder / "run.json", self.meta)
        (self.folder / "progress.json").unlink(missing_ok=True)
        return StoredRun.open(self.folder)


def _meta(lm: LM, prompts: Prompts, sites: Sequence[Site], dtype: str, tokens: int, edit: Edits) -> dict[str, Any]:
    on = [block.intervention for block in lm.active] + [spelled_out(edit, lm.anatomy)]
    return {
        "version": VERSION,
        "kind": "run",
        "model": lm.name,
        "model_hash": lm.hash,
        "data_hash": prompts.digest,
        "edits": [intervention.digest for intervention in on if intervention],
        "bos": prompts.bos,
        "chat": prompts.chat,
        "dtype": dtype,
        "rows": prompts.batch,
        "tokens": tokens,
        "sites": {str(site): list(_unit_shape(lm, site)) for site in sites},
    }


def _unit_shape(lm: LM, site: Site) -> tuple[int, ...]:
    if site.view == "feature":
        raise SiteError(f"{site}: features are harvested by the dictionary tools; harvest {site.base}")
    shape = lm.shape(site)
    return shape if site.index is None else (len(site.index), *shape[1:])


def _header_bytes(dtype: str, shape: Iterable[int]) -> bytes:
    """The head of a safetensors file with the one tensor `values`, padded so that data is aligned."""
    code, kind = TYPES[dtype]
    shape = list(shape)
    size = math.prod(shape) * kind.itemsize
    text = json.dumps({"values": {"dtype": code, "shape": shape, "data_offsets": [0, size]}}).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _header(dtype: str, shape: Iterable[int]) -> tuple[int, int]:
    """Where data starts and the whole file's size."""
    shape = list(shape)
    start = len(_header_bytes(dtype, shape))
    return start, start + math.prod(shape) * TYPES[dtype][1].itemsize


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A file as memory that is read when it is looked at; writing to it reaches a private copy, never the file."""
    with path.open("rb") as file:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        no_reserve = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE: the copy need not fit in memory
        flags = mmap.MAP_PRIVATE | no_reserve
        return mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _file(name: str) -> str:
    return name.replace("*", "_").replace("/", "_") + ".safetensors"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
