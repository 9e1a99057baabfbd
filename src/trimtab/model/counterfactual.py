"""The engine: many counterfactuals of one run, computed once and exactly.

A variant is a list of edits; a cell is a variant on one row of the prompts. Against the base run, whose residual
stream, keys and values are kept, a cell starts at the first layer where its edits change anything and at the first
column that they change: everything before is the base run's, because attention is causal. Cells with the same first
column share a pass over the layers, in which the rows that start at a layer join the batch there. Cells that change
nothing are not computed, and only the positions and tokens that the readout names are unembedded.

Every cell equals the naive loop of forward passes to rounding (float32); `exact="naive"` runs that loop. Where a
shortcut would not be exact (conditions, edits of the logits, attention that is not causal, a block called with
something that cannot be cut to a suffix, a model inside `lm.edited`) it is not taken, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trimtab.errors import EditError, ModelError, TrimtabError, nearest
from trimtab.model.base import BaseRun, base_run
from trimtab.model.edit_weight import Weight
from trimtab.model.memory import out_of_memory
from trimtab.model.plan import Plan
from trimtab.model.protocols import Dictionary, Readout, Source
from trimtab.model.provenance import Call, about
from trimtab.model.steps import Edits
from trimtab.model.wavefront import Wavefront
from trimtab.model.work import Variant, Work, cells_of, kept_sites, may_differ, naive_plan, plan_of, prepare
from trimtab.values.content import digest_of
from trimtab.values.edit import Edit
from trimtab.values.provenance import Provenance

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Text

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Counterfactuals:
    """What every variant gives on every row.

    `values` (variant row …) is the readout; `base` (row …) that of the unedited run, which cells that were not
    `computed` (variant row) equal. Unit: the readout's.
    """

    values: Tensor
    base: Tensor
    computed: Tensor
    plan: Plan
    name: str
    unit: str
    made: Call | None = field(default=None, repr=False)

    @property
    def provenance(self) -> Provenance | None:
        """Where this comes from, worked out when it is first asked for."""
        return None if self.made is None else self.made.provenance

    @property
    def effects(self) -> Tensor:
        """(variant row …) change from the base run."""
        return self.values - self.base


def counterfactuals(
    lm: LM,
    prompts: Text,
    variants: Iterable[Variant],
    readout: Readout,
    *,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    base: Edits = None,
    exact: Literal["fast", "naive"] = "fast",
    memory: float | None = None,
    progress: Progress | None = None,
) -> Counterfactuals:
    """What the model would have said, for each variant and row, had these things been different.

    `variants`: each one edit or several; values may come from `runs` by name, and from the base run itself as
    `Ref("base")` (freezing). `base`: edits of `embed` that are on in the base run and in every variant, before its own.
    `memory`: bytes that batches may take beyond the model (a share of what is free by default); when memory runs out,
    batches are halved and the sweep goes on. `progress(done, total)` is called with cells.

    Raises `EditError` for an edit that does not fit, `SiteError` for an address that does not exist.
    """
    if exact not in ("fast", "naive"):
        raise EditError(f'exact is "fast" or "naive", got {exact!r}{nearest(str(exact), ("fast", "naive"))}')
    work = prepare(lm, prompts, variants, readout, runs, dictionaries, base)
    listed, asked, corrupted = work.variants, work.readout, work.base  # and not `work`, which holds whole runs
    made = Call(lm, work.prompts, "counterfactuals", lambda: _options(listed, asked, exact, corrupted), runs=work.runs)
    try:
        done = _naive(lm, work, progress) if exact == "naive" else _fast(lm, work, memory, progress)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TrimtabError) or not out_of_memory(error):
            raise
        raise ModelError(
            f"memory ran out with {work.prompts.batch} rows of {work.prompts.width} columns, also one cell at a time: "
            f"give fewer rows or shorter prompts, or load the model in a smaller type ({error})"
        ) from error
    return replace(done, made=made)


def _options(
    variants: Sequence[tuple[Edit, ...]], readout: Readout, exact: str, base: Sequence[Edit]
) -> dict[str, object]:
    """What was asked for: of the variants their number and the digest of all their edits."""
    known = {"variants": len(variants), "digest": digest_of(list(variants)), "exact": exact}
    known |= {"base": [str(edit) for edit in base]} if base else {}
    return {"readout": about(readout), **known}


def _fast(lm: LM, work: Work, memory: float | None, progress: Progress | None) -> Counterfactuals:
    """The engine, or whole passes where it may not be used."""
    try:
        base = _base(lm, work)
    except ModelError as reason:
        done = _naive(lm, work, progress)
        return replace(done, plan=replace(done.plan, notes=(f"computed by whole forward passes: {reason}",)))
    front = Wavefront(lm, work, base, memory, progress)
    values, first, computed = front.run()
    for n, variant in enumerate(front.plan.naive, 1):
        values[variant] = _whole(lm, work, variant, base)
        computed[variant] = True
        if progress is not None:
            progress(len(front.cells) + n * work.prompts.batch, front.plan.computed)
    return Counterfactuals(values, first, computed, front.plan, work.readout.name, work.readout.unit)


def plan(
    lm: LM,
    prompts: Text,
    variants: Iterable[Variant],
    readout: Readout,
    *,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    memory: float | None = None,
) -> Plan:
    """The cost of `counterfactuals` with these arguments, from shapes and scopes alone: nothing is run.

    Returns a `Plan`, which prints cells, forward passes and memory; raises as `counterfactuals` does.
    """
    work = prepare(lm, prompts, variants, readout, runs, dictionaries)
    reason = no_shortcut(lm)
    if reason is not None:
        return naive_plan(lm, work, (f"computed by whole forward passes: {reason}",))
    moved: list[Tensor | None] = []
    for edit in work.unique:
        weight = Weight.of(edit, work.prompts, lm.device)
        moved.append(None if weight is None else weight.table.bool().cpu() & may_differ(lm, edit, work))
    cells, naive = cells_of(lm.anatomy, work, moved)
    return plan_of(lm, work, cells, naive, memory, ("an upper bound: cells found equal to the base run are left out",))


def _base(lm: LM, work: Work) -> BaseRun:
    """The base run; `ModelError` says why no shortcut may be taken."""
    reason = no_shortcut(lm)
    if reason is not None:
        raise ModelError(reason)
    return base_run(lm, work.prompts, kept_sites(lm.anatomy, work), work.base, work.runs, work.dictionaries)


def no_shortcut(lm: LM) -> str | None:
    """Why nothing may be computed on a suffix of the columns, from a base run, in this model as it is now; None where
    it may."""
    if any(block.edits for block in lm.active):
        return "the model is inside lm.edited"
    if lm.attention not in ("sdpa", "eager"):
        return f'masks of {lm.attention} attention cannot be cut to a suffix; load with attn_implementation="sdpa"'
    for i, block in enumerate(lm.anatomy.blocks):
        if getattr(block.attn, "is_causal", True) is False:
            return f"attention of layer {i} is not causal"
    return None


def _naive(lm: LM, work: Work, progress: Progress | None) -> Counterfactuals:
    """One whole forward pass over all rows for each variant, and one for the base."""
    kept = kept_sites(lm.anatomy, work) if work.uses_base() else ()
    base = lm.run(work.prompts, kept, work.base, runs=work.runs, dictionaries=work.dictionaries)
    assert base.logits is not None
    variants, n = work.shape
    values = []
    for variant in range(variants):
        values.append(_whole(lm, work, variant, base))
        if progress is not None:
            progress((variant + 1) * n, variants * n)
    first = work.read(base.logits, torch.arange(n, device=lm.device))
    computed = torch.ones(variants, n, dtype=torch.bool)
    return Counterfactuals(
        torch.stack(values), first, computed, naive_plan(lm, work), work.readout.name, work.readout.unit
    )


def _whole(lm: LM, work: Work, variant: int, base: Source) -> Tensor:
    """A variant's readout (row …) from a whole forward pass."""
    runs = {"base": base} | work.runs
    edits = (*work.base, *work.variants[variant])
    run = lm.run(work.prompts, edit=edits, runs=runs, dictionaries=work.dictionaries)
    assert run.logits is not None
    return work.read(run.logits, torch.arange(work.prompts.batch, device=lm.device))
