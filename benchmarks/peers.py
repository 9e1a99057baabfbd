"""The sweep `resid_sweep_late` in other libraries, on the same weights in the same process, as their users write it.

A library that is not installed has no case, and one that cannot do the sweep has none either: stderr says why. How
trimtab sweeps is not known here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.measure import Case, paired, say
from trimtab.model.bundled import pull

if TYPE_CHECKING:
    from benchmarks.engine import Bench

Cell = tuple[int, int]
"""A layer and a position: the clean residual stream before that layer is put there into the corrupt run."""

Sweep = Callable[[Sequence[Cell]], torch.Tensor]
"""Cells -> their logit differences."""

SHARE = 10
"""One cell in so many is timed: each costs these libraries one pass, whatever its layer and position."""


@dataclass(frozen=True)
class Task:
    """What a library is given: the model's folder, token ids of both prompts (1 pos), and two tokens to compare."""

    folder: str
    clean: torch.Tensor
    corrupt: torch.Tensor
    answer: int
    other: int

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, self.answer] - logits[0, -1, self.other]


def peer_cases(bench: Bench) -> list[Case]:
    """How many times faster trimtab's sweep is than that of each library that is installed."""
    found = []
    for library, prepare in (("transformer_lens", transformer_lens), ("nnsight", nnsight)):
        if find_spec(library) is None:
            say(f"peer_{library} left out: {library} is not installed (see benchmarks/peers.txt)")
        else:
            found.append((library, prepare))
    if not found:
        return []

    ours = bench.patches(bench.late, "resid_pre", None).values.flatten()
    cases = []
    for library, prepare in found:
        say(f"peer_{library}")
        try:
            with redirect_stdout(sys.stderr), torch.no_grad():
                cases.append(compared(bench, ours, library, prepare))
        except Exception as reason:  # noqa: BLE001  # a column that cannot be had must not cost the others
            say(f"peer_{library} left out: {type(reason).__name__}: {reason}")
    return cases


def compared(bench: Bench, ours: torch.Tensor, library: str, prepare: Callable[[Task], Sweep]) -> Case:
    """One library against the engine, whose map is `ours`. Its clean run is not on its bill; the engine's is."""
    answer, other = (bench.lm.tokenizer.encode(word)[0] for word in (" Mary", " John"))
    sweep = prepare(Task(str(pull(bench.lm.name)), bench.clean.ids, bench.late.ids, answer, other))

    chosen = np.sort(np.random.default_rng(0).choice(len(ours), len(ours) // SHARE, replace=False))
    cells = [divmod(int(i), bench.late.width) for i in chosen]
    apart = float((ours[chosen] - sweep(cells)).abs().max())
    ratio = paired(
        lambda: sweep(cells),
        lambda: bench.patches(bench.late, "resid_pre", None),
        bench.n(5),
        times=len(ours) / len(cells),
        warm=0,
    )
    note = (
        f"{library} {version(library.replace('_', '-'))}; {len(cells)} random cells of {len(ours)} timed and scaled "
        f"up, its clean run left out; the maps are at most {apart:.1e} logits apart"
    )
    return Case(f"peer_{library}", ratio.value, "times faster", low=ratio.low, high=ratio.high, note=note)


def transformer_lens(task: Task) -> Sweep:
    """`generic_activation_patch`, of which `get_act_patch_resid_pre` is the case of all cells, on a bridge."""
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(task.folder, device="cpu", dtype=torch.float32)
    _, cache = model.run_with_cache(task.clean)

    def sweep(cells: Sequence[Cell]) -> torch.Tensor:
        index = pd.DataFrame(cells, columns=["layer", "pos"])
        with redirect_stderr(StringIO()):  # a progress bar for every call
            return patching.generic_activation_patch(
                model, task.corrupt, cache, task.metric, patching.layer_pos_patch_setter, "resid_pre", index_df=index
            )

    return sweep


def nnsight(task: Task) -> Sweep:
    """One trace for every cell."""
    import nnsight as library

    if hasattr(library, "TransformersModel"):
        model = library.TransformersModel(task.folder, task="text-generation", dispatch=True, dtype=torch.float32)
    else:
        model = library.LanguageModel(task.folder, dispatch=True, dtype=torch.float32)
    layers = model.model.layers
    with model.trace(task.clean):
        clean = library.save([layer.input for layer in layers])

    def sweep(cells: Sequence[Cell]) -> torch.Tensor:
        values = []
        for layer, position in cells:
            with model.trace(task.corrupt):
                layers[layer].input[:, position] = clean[layer][:, position]
                value = library.save(task.metric(model.lm_head.output))
            values.append(value)
        return torch.stack(values)

    return sweep
