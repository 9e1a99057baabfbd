"""What was written is what was meant: the logits of the file against those of the intervention, and the folder that
appears only when they agree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trimtab.errors import FileError, ModelError
from trimtab.values.edit import Intervention

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far two orders of the same sums may lie apart, next to the largest logit: a few digits less than the type has, as
rounding errors add up over layers; in float64 about what float32 has, since models keep constants (Gemma's scale) in
that."""
ROWS, WIDTH = 4, 24


@dataclass(frozen=True)
class Written:
    """A folder that was written, loaded again and compared.

    `deviation` is the largest difference of any logit from the model with the intervention on it, `effect` the largest
    that the intervention makes, both next to the largest logit; `tolerance` is what rounding may do in this dtype.
    """

    path: Path
    files: tuple[str, ...]
    deviation: float
    effect: float
    tolerance: float
    dtype: str
    base: str
    intervention: str
    """Its digest."""
    changes: tuple[str, ...] = ()
    """Parameters that differ from the model's, and options of its configuration."""

    def __str__(self) -> str:
        return (
            f"wrote {self.path}: logits within {self.deviation:.2g} of the largest of those with the intervention "
            f"(which moves them by {self.effect:.2g}; {self.dtype})"
        )


@dataclass(frozen=True)
class Compared:
    """Deviation and effect, as in `Written`."""

    deviation: float
    effect: float
    tolerance: float


def compare(lm: LM, intervention: Intervention, other: LM, prompts: Prompts) -> Compared:
    """How far another model's logits lie from those of `lm` with an intervention, on real tokens.

    Raises ModelError where that is more than rounding, or half of what the intervention itself does or more.
    """
    base = lm.run(prompts).logits
    meant = lm.run(prompts, edit=intervention).logits
    found = other.run(prompts).logits
    assert base is not None
    assert meant is not None
    assert found is not None
    real = prompts.mask.bool()
    base, meant, found = base[real].double(), meant[real].double(), found[real].to(base.device).double()
    largest = max(float(meant.abs().max()), 1e-30)
    deviation, effect = float((found - meant).abs().max()) / largest, float((meant - base).abs().max()) / largest
    tolerance = ROUNDING.get(lm.dtype, ROUNDING[torch.bfloat16])
    dtype, near = str(lm.dtype).removeprefix("torch."), deviation < effect / 2
    if not deviation <= tolerance or (effect > tolerance and not near):  # also where it is NaN
        raise ModelError(
            f"what was written does not do what the intervention does: logits deviate by {deviation:.2g} of the "
            f"largest, where rounding in {dtype} explains {tolerance:.2g} and the intervention itself moves them by "
            f"{effect:.2g}. Nothing was kept"
        )
    if not near:
        raise ModelError(
            "what was written cannot be told from the model without the intervention: logits deviate by "
            f"{deviation:.2g} of the largest, and the intervention itself moves them by {effect:.2g}, where rounding "
            f"in {dtype} explains {tolerance:.2g}. Make it stronger, give prompts on which it does more, or load the "
            "model in float32. Nothing was kept"
        )
    return Compared(deviation, effect, tolerance)


def written(
    lm: LM,
    intervention: Intervention,
    path: str | PathLike[str],
    files: tuple[str, ...],
    found: Compared,
    changes: tuple[str, ...],
) -> Written:
    """What is reported of a folder that was compared."""
    dtype = str(lm.dtype).removeprefix("torch.")
    return Written(
        Path(path), files, found.deviation, found.effect, found.tolerance, dtype, lm.name, intervention.digest, changes
    )


def probes(lm: LM, prompts: Sequence[str] | None) -> Prompts:
    """The prompts that a file is checked on: those given, or rows of random tokens."""
    if prompts is not None:
        return lm.prompts(list(prompts))
    width = min(WIDTH, lm.positions or WIDTH)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.anatomy.vocab, (ROWS, width), generator=generator)
    return lm.prompts(ids, mask=torch.ones_like(ids))


@contextmanager
def appearing(path: str | PathLike[str]) -> Iterator[Path]:
    """A folder to write to, which takes the name `path` at the end; after an error, or a kill, there is no `path`.

    Raises FileError where there is something already, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileError(f"{path} is there already: name a new folder, or remove it first")
    _sweep(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            _to_disk(file)
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    except OSError as error:
        if isinstance(error, FileError | ModelError):
            raise
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what processes that are no longer there left of the same folder."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        pid = left.name.removesuffix(".partial").rpartition(".")[2]
        if pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # of an earlier process with our number: our own is made after this
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _to_disk(file: Path) -> None:
    """Wait until a file is on the disk: a rename must not survive a power cut that its content does not."""
    if file.is_file():
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
