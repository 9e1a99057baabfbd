"""The engine: many counterfactuals of one run, computed once and exactly.

A variant is a list of edits; a cell is a variant on one row of the prompts. Against the base run, whose residual stream,
keys and values are kept, a cell starts at the first layer where its edits change anything and at the first column that they
change: everything before is the base run's, because attention is causal. Cells with the same first column share a pass over
the layers, in which the rows that start at a layer join the batch there. Cells that change nothing are not computed, and
only the positions and tokens that the readout names are unembedded.

Every cell equals the naive loop of forward passes to rounding (float32); `exact="naive"` runs that loop. Where a shortcut
would not be exact (conditions, edits of the logits, a block that the anatomy could not finish from inside, an attention that
is not causal) it is not taken, and the plan says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trimtab.errors import EditError, ModelError
from trimtab.model.base import BaseRun, base_run
from trimtab.model.edits import Compiled, Source
from trimtab.model.frame import Frame
from trimtab.model.halves import NEEDS, NEEDS_PARALLEL, entry_of, finish
from trimtab.model.hooks import Hooks, Step
from trimtab.model.memory import budget, out_of_memory, row_bytes
from trimtab.model.plan import Cell, Plan, first_columns, merge_columns
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Readout
from trimtab.model.run import Run
from trimtab.values.edit import Edit, Intervention
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Text

Variant = str | Edit | Intervention | Sequence[str | Edit]
Progress = Callable[[int, int], None]
IDLE_TOKENS = 32.0
"""What loading a layer's weights costs, in tokens: measured on a CPU, where it decides which suffix groups to merge."""


@dataclass(frozen=True)
class Counterfactuals:
    """What every variant gives on every row.

    `values` (variant row …) is the readout; `base` (row …) that of the unedited run, which cells that were not `computed`
    (variant row) equal. Unit: the readout's.
    """

    values: Tensor
    base: Tensor
    computed: Tensor
    plan: Plan
    name: str
    unit: str

    @property
    def effects(self) -> Tensor:
        """(variant row …) change from the base run."""
        return self.values - self.base


@dataclass
class _Work:
    """A list of variants made ready: compiled edits by number, and the numbers of each variant."""

    prompts: Prompts
    variants: list[tuple[Edit, ...]]
    unique: list[Edit]
    members: list[tuple[int, ...]]
    runs: dict[str, Source]
    dictionaries: Mapping[str, Dictionary]
    readout: Readout
    columns: Tensor
    compiled: list[Compiled | None] = field(default_factory=list)


def counterfactuals(
    lm: LM,
    prompts: Text,
    variants: Iterable[Variant],
    readout: Readout,
    *,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    exact: Literal["fast", "naive"] = "fast",
    memory: float | None = None,
    progress: Progress | None = None,
) -> Counterfactuals:
    """What the model would have said, for each variant and row, had these things been different.

    `variants`: each one edit or several; values may come from `runs` by name, and from the base run itself as
    `Ref("base")` (freezing). `memory`: bytes that batches may take beyond the model (a share of what is free by default);
    when memory runs out, batches are halved and the sweep goes on. `progress(done, total)` is called with cells.

    Raises `EditError` for an edit that does not fit, `SiteError` for an address that does not exist.
    """
    work = prepare(lm, prompts, variants, readout, runs, dictionaries)
    if exact == "naive":
        return _naive(lm, work, progress)
    reason = _no_shortcut(lm)
    if reason is None:
        try:
            base = base_run(lm, work.prompts, _kept(lm, work))
        except ModelError as error:
            reason = str(error)
        else:
            return _Engine(lm, work, base, memory, progress).run()
    done = _naive(lm, work, progress)
    return replace(done, plan=replace(done.plan, notes=(f"computed by whole forward passes: {reason}",)))


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
    """The cost of `counterfactuals` with these arguments, from shapes and scopes alone: nothing is run."""
    work = prepare(lm, prompts, variants, readout, runs, dictionaries)
    reason = _no_shortcut(lm)
    if reason is not None:
        return _naive_plan(lm, work, (f"computed by whole forward passes: {reason}",))
    compiler_runs = {"base": _Unknown(work.prompts)} | work.runs
    moved: list[Tensor | None] = []
    for edit in work.unique:
        weight = lm.compiler(work.prompts, compiler_runs, work.dictionaries).weigh(edit)
        covered = None if weight is None else weight.table.bool().cpu()
        moved.append(covered if covered is None else covered & _may_differ(lm, edit, work))
    cells, naive = _cells(lm, work, moved)
    return _plan(lm, work, cells, naive, memory, ("an upper bound: cells found equal to the base run will be left out",))


# Preparing ---------------------------------------------------------------------------------------------------------------


def prepare(
    lm: LM,
    prompts: Text,
    variants: Iterable[Variant],
    readout: Readout,
    runs: Mapping[str, Source] | None,
    dictionaries: Mapping[str, Dictionary] | None,
) -> _Work:
    prompts = lm.prompts(prompts)
    numbers: dict[int, int] = {}
    unique: list[Edit] = []
    listed: list[tuple[Edit, ...]] = []
    members: list[tuple[int, ...]] = []
    for variant in variants:
        edits = (variant,) if isinstance(variant, Edit) else _edits(variant)
        for edit in edits:
            if id(edit) not in numbers:
                numbers[id(edit)] = len(unique)
                unique.append(edit)
        listed.append(edits)
        members.append(tuple(numbers[id(edit)] for edit in edits))
    if not listed:
        raise EditError("no variants were given: give at least one edit, or a list of edits for each variant")
    columns = readout.columns(prompts)
    return _Work(prompts, listed, unique, members, dict(runs or {}), dictionaries or {}, readout, columns)


def _edits(variant: Variant) -> tuple[Edit, ...]:
    intervention = Intervention.of(variant)
    if intervention.patches:
        raise EditError("a variant with weight patches has no shared base run: put it on with lm.edited and run it alone")
    return intervention.edits


def _no_shortcut(lm: LM) -> str | None:
    """Why no cell may start later than a whole forward pass, or None."""
    if any(intervention.edits for intervention in lm.active):
        return "the model is inside lm.edited"
    for i, block in enumerate(lm.anatomy.blocks):
        if getattr(block.attn, "is_causal", True) is False:
            return f"attention of layer {i} is not causal"
    return None


def _kept(lm: LM, work: _Work) -> set[Site]:
    """Sites of the base run that are needed: edited ones, those that rows start from, and the last residual stream."""
    a = lm.anatomy
    needs = NEEDS_PARALLEL if a.family.parallel else NEEDS
    kept = {Site("resid_post", a.n_layers - 1)}
    for edit in work.unique:
        site = a.resolve(edit.site.base)
        kept.add(site.whole)
        if isinstance(getattr(edit.value, "run", None), str) and edit.value.run == "base":  # pyright: ignore
            kept.add(a.resolve((edit.value.site or edit.site).base).whole)  # pyright: ignore
        if site.layer is None and site.name != "embed":
            continue
        layer = site.layer or 0
        for name in needs[entry_of(site.kind.order, a.blocks[layer].experts is not None)]:
            kept.add(Site(name, layer))
    return {site for site in kept if site.layer is not None or site.name == "embed"}


class _Unknown:
    """Stands for the base run while planning."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    def whole(self, site: Site) -> Tensor:
        raise EditError("the base run is not known while planning")


def _may_differ(lm: LM, edit: Edit, work: _Work) -> Tensor:
    """(row column) where a patch can change anything: from the first token on that differs between the runs."""
    rows, width = work.prompts.batch, work.prompts.width
    everywhere = torch.ones(rows, width, dtype=torch.bool)
    name = getattr(edit.value, "run", None)
    source = work.runs.get(name) if isinstance(name, str) else None
    if name == "base" and edit.value.site is None and edit.value.at is None:  # pyright: ignore
        return ~everywhere
    same_place = getattr(edit.value, "site", None) is None and getattr(edit.value, "at", None) is None
    if not isinstance(source, Run) or source.edited or not same_place or source.prompts.ids.shape != work.prompts.ids.shape:
        return everywhere
    differ = (source.prompts.ids != work.prompts.ids).cpu()
    return differ.int().cumsum(1) > 0


def _cells(lm: LM, work: _Work, moved: Sequence[Tensor | None]) -> tuple[list[Cell], list[int]]:
    """The cells to compute and the variants to run naively, from where each edit changes anything (row column)."""
    a = lm.anatomy
    rows = range(work.prompts.batch)
    starts: list[list[int | None]] = [first_columns(m) if m is not None else [None for _ in rows] for m in moved]
    depths = [a.resolve(edit.site.base).depth for edit in work.unique]
    whole = [edit.when is not None or edit.site.name in ("final", "logits") for edit in work.unique]
    last_read = work.columns.max(1).values.tolist()
    cells: list[Cell] = []
    naive: list[int] = []
    for variant, members in enumerate(work.members):
        if any(whole[m] for m in members):
            naive.append(variant)
            continue
        for row in rows:
            active = [m for m in members if starts[m][row] is not None]
            if not active:
                continue
            column = min(starts[m][row] or 0 for m in active)
            if column > last_read[row]:
                continue
            layer, order = min(depths[m] for m in active)
            layer = max(layer, 0)
            cells.append(Cell(variant, row, layer, entry_of(order, a.blocks[layer].experts is not None), column))
    return cells, naive


def _plan(lm: LM, work: _Work, cells: list[Cell], naive: list[int], memory: float | None, notes: tuple[str, ...]) -> Plan:
    a, width = lm.anatomy, work.prompts.width
    widest = width - min((c.column for c in cells), default=width - 1)
    each = row_bytes(lm, widest, width)
    chunk = max(1, int(budget(lm, memory) // each))
    kept = _kept(lm, work)
    itemsize = lm.dtype.itemsize
    tokens = work.prompts.batch * width
    base_bytes = tokens * itemsize * (
        sum(torch.Size(lm.shape(s)).numel() * (width if s.name in ("scores", "pattern") else 1) for s in kept)
        + 2 * a.n_layers * a.n_kv * a.d_head
    )
    if naive:
        notes = (*notes, f"{len(naive)} variants run as whole forward passes: they have a condition or edit the logits")
    largest = max((len(list(g)) for _, g in groupby(sorted(c.column for c in cells))), default=1)
    return Plan(
        len(work.variants), work.prompts.batch, a.n_layers, width, tuple(cells), min(chunk, largest), each, base_bytes, "fast",
        notes, tuple(naive),
    )  # fmt: skip


def _naive_plan(lm: LM, work: _Work, notes: tuple[str, ...] = ()) -> Plan:
    n = len(work.variants)
    width, rows = work.prompts.width, work.prompts.batch
    each = row_bytes(lm, width, width)
    return Plan(n, rows, lm.anatomy.n_layers, width, (), rows, each, 0, "naive", notes, tuple(range(n)))


# The naive loop ----------------------------------------------------------------------------------------------------------


def _naive(lm: LM, work: _Work, progress: Progress | None) -> Counterfactuals:
    """One whole forward pass for each variant, and one for the base."""
    sites = [s for s in _kept(lm, work)] if _uses_base(work) else []
    base = lm.run(work.prompts, sites)
    runs = work.runs | {"base": base}
    rows = torch.arange(work.prompts.batch, device=lm.device)
    values = []
    for i, edits in enumerate(work.variants):
        run = lm.run(work.prompts, edit=edits, runs=runs, dictionaries=work.dictionaries)
        values.append(_read(work, run.logits, rows))
        if progress is not None:
            progress((i + 1) * len(rows), len(work.variants) * len(rows))
    computed = torch.ones(len(work.variants), len(rows), dtype=torch.bool)
    first = _read(work, base.logits, rows)
    return Counterfactuals(torch.stack(values), first, computed, _naive_plan(lm, work), work.readout.name, work.readout.unit)


def _uses_base(work: _Work) -> bool:
    return any(getattr(edit.value, "run", None) == "base" for edit in work.unique)


def _read(work: _Work, logits: Tensor | None, rows: Tensor) -> Tensor:
    """The readout of whole logits (row pos vocab)."""
    assert logits is not None
    columns = work.columns.to(logits.device)[rows]
    at = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
    tokens = work.readout.tokens
    if tokens is not None:
        tokens = tokens.to(logits.device)
        at = at[..., tokens] if tokens.ndim == 1 else at.gather(-1, tokens[rows][:, None].expand(-1, at.shape[1], -1))
    return work.readout.function(at, rows)


# The fast way ------------------------------------------------------------------------------------------------------------


class _Engine:
    """One sweep: the cells of a plan over one base run."""

    def __init__(self, lm: LM, work: _Work, base: BaseRun, memory: float | None, progress: Progress | None) -> None:
        self.lm, self.work, self.base, self.progress = lm, work, base, progress
        self.memory = budget(lm, memory)
        compiler = lm.compiler(work.prompts, {"base": base} | work.runs, work.dictionaries)
        work.compiled = [compiler(edit) for edit in work.unique]
        frame = Frame.whole(work.prompts)
        moved = [self._moved(c, frame) for c in work.compiled]
        self.cells, self.naive = _cells(lm, work, moved)
        self.plan = _plan(lm, work, self.cells, self.naive, memory, ())
        self.done = 0

    def _moved(self, compiled: Compiled | None, frame: Frame) -> Tensor | None:
        if compiled is None or compiled.weight.condition is not None or compiled.site.name in ("final", "logits"):
            return None
        return compiled.moved(self.base.whole(compiled.site.whole), frame).cpu()

    def run(self) -> Counterfactuals:
        work, n = self.work, self.work.prompts.batch
        rows = torch.arange(n, device=self.lm.device)
        last = self.base.activations[Site("resid_post", self.lm.anatomy.n_layers - 1)]
        with torch.no_grad():
            first = self._read_out(last, rows, 0)
            values = first.expand(len(work.variants), *first.shape).clone()
            computed = torch.zeros(len(work.variants), n, dtype=torch.bool)
            for start, group in self._groups():
                for cells, out in self._chunks(start, group):
                    variants = [c.variant for c in cells]
                    at = [c.row for c in cells]
                    values[variants, at] = out
                    computed[variants, at] = True
                    self.done += len(cells)
                    if self.progress is not None:
                        self.progress(self.done, self.plan.computed)
            for variant in self.naive:
                runs = work.runs | {"base": self.base}
                run = self.lm.run(work.prompts, edit=work.variants[variant], runs=runs, dictionaries=work.dictionaries)
                values[variant] = _read(work, run.logits, rows)
                computed[variant] = True
        return Counterfactuals(values, first, computed, self.plan, work.readout.name, work.readout.unit)

    def _groups(self) -> Iterator[tuple[int, list[Cell]]]:
        """Cells that share a pass, with the pass's first column; merged where that is cheaper."""
        by_column: dict[int, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            by_column[cell.column].append(cell)
        columns = sorted(by_column)
        n = self.lm.anatomy.n_layers
        work = [[sum(c.layer <= layer for c in by_column[column]) for layer in range(n)] for column in columns]
        merged = merge_columns(columns, work, self.base.prompts.width, IDLE_TOKENS)
        joined: dict[int, list[Cell]] = defaultdict(list)
        for column in columns:
            joined[merged[column]].extend(by_column[column])
        order = {"resid_pre": 0, "head": 1, "mlp_in": 2, "neuron": 3, "resid_post": 4}
        for start, cells in joined.items():
            yield start, sorted(cells, key=lambda c: (c.layer, order[c.entry]))

    def _chunks(self, start: int, cells: list[Cell]) -> Iterator[tuple[list[Cell], Tensor]]:
        """Passes over parts of a group that fit in memory; halved when they turn out not to."""
        width = self.base.prompts.width
        size = max(1, int(self.memory // row_bytes(self.lm, width - start, width)))
        at = 0
        while at < len(cells):
            part = cells[at : at + size]
            try:
                out = self._pass(start, part)
            except RuntimeError as error:
                if not out_of_memory(error) or len(part) == 1:
                    raise
                size = (len(part) + 1) // 2
                continue
            yield part, out
            at += len(part)

    def _pass(self, start: int, cells: list[Cell]) -> Tensor:
        """The readout of cells that share their first column: one pass over the layers, rows joining where they start."""
        lm, a, base = self.lm, self.lm.anatomy, self.base
        rows = torch.tensor([c.row for c in cells], device=lm.device)
        variants = torch.tensor([c.variant for c in cells], device=lm.device)
        length = base.prompts.width - start
        needs = NEEDS_PARALLEL if a.family.parallel else NEEDS
        sweeps = self._sweeps({c.variant for c in cells})
        frame = Frame(base.prompts, 0, start, length)

        def cover(first: int, stop: int) -> Frame:
            nonlocal frame
            frame = Frame(base.prompts, stop - first, start, length, rows[first:stop], variants[first:stop])
            return frame

        with Hooks(a, [Step(site, change=sweep.change) for site, sweep in sweeps.items()], lambda: frame):
            hidden: Tensor | None = None
            count = 0
            for layer in range(cells[0].layer, a.n_layers):
                joining = [c for c in cells[count:] if c.layer == layer] if count < len(cells) else []
                outputs: list[Tensor] = []
                whole = sum(c.entry == "resid_pre" for c in joining)
                stop = count + whole
                if whole:
                    new = base.suffix("resid_pre", layer, rows[count:stop], start)
                    hidden = new if hidden is None else torch.cat([hidden, new])
                if hidden is not None:
                    cover(0, stop)
                    outputs.append(base.block(layer, hidden, rows[:stop], start))
                for entry, group in groupby(joining[whole:], key=lambda c: c.entry):
                    first, stop = stop, stop + len(list(group))
                    cover(first, stop)
                    given = {name: base.suffix(name, layer, rows[first:stop], start) for name in needs[entry]}
                    out = finish(a.blocks[layer], a.family, entry, given)
                    sweep = sweeps.get(Site("resid_post", layer))  # the hook on the block's output does not fire here
                    outputs.append(out if sweep is None else sweep.change(out, frame))
                if outputs:
                    hidden = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
                count = stop
        assert hidden is not None
        return self._read_out(hidden, rows, start)

    def _sweeps(self, variants: set[int]) -> dict[Site, _Sweep]:
        """For each site, which compiled edits each of these variants has there."""
        sweeps: dict[Site, _Sweep] = {}
        for variant in variants:
            for number in self.work.members[variant]:
                compiled = self.work.compiled[number]
                if compiled is not None:
                    sweep = sweeps.setdefault(compiled.site.whole, _Sweep())
                    sweep.edits.setdefault(variant, []).append(compiled)
        return sweeps

    def _read_out(self, resid: Tensor, rows: Tensor, start: int) -> Tensor:
        """The readout of the last residual stream (row pos d_model), whose columns begin at `start`."""
        columns = self.work.columns.to(resid.device)[rows]
        early = columns < start  # these positions are the base run's
        at = resid.gather(1, (columns - start).clamp(min=0)[..., None].expand(-1, -1, resid.shape[-1]))
        if bool(early.any()):
            last = self.base.activations[Site("resid_post", self.lm.anatomy.n_layers - 1)][rows]
            at = torch.where(early[..., None], last.gather(1, columns[..., None].expand_as(at)), at)
        tokens = self.work.readout.tokens
        if tokens is not None and tokens.ndim == 2:
            tokens = tokens.to(resid.device)[rows]
        return self.work.readout.function(self.lm.unembed(self.lm.final(at), tokens), rows)


@dataclass
class _Sweep:
    """The edits of many variants at one site, applied to the rows of a frame that are theirs."""

    edits: dict[int, list[Compiled]] = field(default_factory=dict)

    def change(self, x: Tensor, frame: Frame) -> Tensor:
        assert frame.variants is not None
        jobs: dict[tuple[int, int], tuple[Compiled, list[int]]] = {}
        for row, variant in enumerate(frame.variants.tolist()):
            for rank, compiled in enumerate(self.edits.get(variant, ())):
                jobs.setdefault((rank, id(compiled)), (compiled, []))[1].append(row)
        if not jobs:
            return x
        y = x.clone()
        for _, (compiled, rows) in sorted(jobs.items(), key=lambda job: job[0][0]):
            if len(rows) == len(x):
                y = compiled.apply(y, frame)
                continue
            at = torch.tensor(rows, device=x.device)
            y[at] = compiled.apply(y[at], frame.pick(at))
        return y
