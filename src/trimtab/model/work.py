"""A list of counterfactuals made ready for the engine.

Edits are told apart and numbered, the sites that the base run must keep are listed, and the cells that are to be
computed are found. Nothing here runs a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import EditError, PromptError
from trimtab.model.anatomy import Anatomy
from trimtab.model.edit_target import tensor_of
from trimtab.model.edits import Compiled
from trimtab.model.halves import entry_of, needs
from trimtab.model.memory import budget, row_bytes
from trimtab.model.plan import Cell, Plan, first_columns
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Readout, Source
from trimtab.model.run import Run
from trimtab.model.steps import Edits, spelled_out
from trimtab.values.edit import Edit, Intervention, Ref
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Text

Variant = str | Edit | Intervention | Sequence[str | Edit]


@dataclass
class Work:
    """Prompts, variants and a readout.

    `unique` are the different edits; `members` the numbers of each variant's edits in it, `compiled` those edits
    compiled. `columns` (row pos) are the absolute columns that the readout reads.
    """

    prompts: Prompts
    variants: list[tuple[Edit, ...]]
    unique: list[Edit]
    members: list[tuple[int, ...]]
    runs: dict[str, Source]
    dictionaries: Mapping[str, Dictionary]
    readout: Readout
    columns: Tensor
    base: tuple[Edit, ...] = ()
    """Edits of `embed` that are on in the base run and in every variant."""
    compiled: list[Compiled | None] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Variants and rows."""
        return len(self.variants), self.prompts.batch

    def uses_base(self) -> bool:
        """Whether an edit takes its value from the base run."""
        return any(isinstance(edit.value, Ref) and edit.value.run == "base" for edit in self.unique)

    def read(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The readout of whole logits (row pos vocab)."""
        columns = self.columns.to(logits.device)[rows]
        at = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
        return self.readout.of(at, rows)


def prepare(
    lm: LM,
    prompts: Text,
    variants: Iterable[Variant],
    readout: Readout,
    runs: Mapping[str, Source] | None,
    dictionaries: Mapping[str, Dictionary] | None,
    base: Edits = None,
) -> Work:
    """Variants as lists of numbered edits; the same edit object in several variants is one edit."""
    prompts = lm.prompts(prompts)
    if runs and "base" in runs:
        raise EditError('"base" is the engine\'s own run: give yours another name')
    if isinstance(variants, str | Edit | Intervention):
        raise EditError(f"variants are a list, with one edit or several for each; put [ ] around {variants!s}")
    numbers: dict[int, int] = {}
    unique: list[Edit] = []
    listed: list[tuple[Edit, ...]] = []
    members: list[tuple[int, ...]] = []
    for variant in variants:
        edits = (variant,) if isinstance(variant, Edit) else _edits(spelled_out(variant, lm.anatomy))
        for edit in edits:
            if id(edit) not in numbers:
                numbers[id(edit)] = len(unique)
                unique.append(edit)
        listed.append(edits)
        members.append(tuple(numbers[id(edit)] for edit in edits))
    tokens, last = readout.tokens, lm.anatomy.vocab - 1
    if tokens is not None and int(tokens.max()) > last:
        raise PromptError(f"{readout.name} reads token {int(tokens.max())}; this model has tokens 0 to {last}")
    if not listed:
        raise EditError("no variants were given: give at least one edit, or a list of edits for each variant")
    return Work(
        prompts,
        listed,
        unique,
        members,
        dict(runs or {}),
        dictionaries or {},
        readout,
        readout.columns(prompts),
        _of_embeddings(_edits(spelled_out(base, lm.anatomy))),
    )


def _of_embeddings(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Edits that may be on in a base run: rows start above them, from what they made of it."""
    if wrong := [edit for edit in edits if edit.site.base.name != "embed" or edit.when is not None]:
        raise EditError(
            f"{wrong[0]}: what is on in the base run and in every variant changes embed, without a condition; put "
            "other edits into each variant"
        )
    return edits


def _edits(intervention: Intervention) -> tuple[Edit, ...]:
    if intervention.patches:
        raise EditError(
            "a variant with weight patches has no shared base run: put it on with lm.edited and run it alone"
        )
    return intervention.edits


def kept_sites(a: Anatomy, work: Work) -> set[Site]:
    """Sites of the base run that are needed: edited ones, those that rows start from, and the last residual stream."""
    kept = {Site("resid_post", a.n_layers - 1)}
    resolve = resolver(a)
    edited: set[Site] = set()
    for edit in work.unique:
        site = resolve(edit.site)
        if isinstance(edit.value, Ref) and edit.value.run == "base" and site.name not in ("final", "logits"):
            kept.add(resolve(edit.value.site or edit.site).whole)
        edited.add(site)
    for site in edited:
        if site.name in ("final", "logits"):
            continue
        kept.add(tensor_of(site))
        layer = site.layer or 0
        entry = entry_of(site.kind.order, a.blocks[layer].experts is not None)
        kept |= {Site(name, layer) for name in needs(a.family, entry)}
    return kept


def may_differ(lm: LM, edit: Edit, work: Work) -> Tensor:
    """(row column) where an edit can change anything, as far as is known without running.

    A patch from an unedited run of aligned prompts changes nothing before the first token that differs, or that an
    edit of the base run covers.
    """
    everywhere = torch.ones(work.prompts.batch, work.prompts.width, dtype=torch.bool)
    ref = edit.value
    if not isinstance(ref, Ref) or edit.op != "set" or ref.site is not None or ref.at is not None:
        return everywhere
    if ref.run == "base":
        return ~everywhere
    source = work.runs.get(ref.run)
    if not isinstance(source, Run) or source.edited or source.origin is not lm or lm.active:
        return everywhere
    mine, theirs = work.prompts, source.prompts
    if mine.ids.shape != theirs.ids.shape or not torch.equal(mine.mask.cpu(), theirs.mask.cpu()):
        return everywhere
    if mine.positions(edit.where) != theirs.positions(edit.where):
        return everywhere
    differ = (source.prompts.ids != work.prompts.ids).cpu()
    for corrupting in work.base:
        differ |= mine.columns(corrupting.where).cpu()
    return differ.int().cumsum(1) > 0


def cells_of(a: Anatomy, work: Work, moved: Sequence[Tensor | None]) -> tuple[list[Cell], list[int]]:
    """The cells to compute and the variants to run whole, from where each edit changes anything (row column)."""
    rows = range(work.prompts.batch)
    starts = _first_columns(moved, len(rows))
    resolve = resolver(a)
    depths = [resolve(edit.site).depth for edit in work.unique]
    whole = [edit.when is not None or edit.site.name in ("final", "logits") for edit in work.unique]
    last_read = work.columns.max(1).values.tolist()
    cells: list[Cell] = []
    naive: list[int] = []
    for variant, members in enumerate(work.members):
        if any(whole[m] for m in members):
            naive.append(variant)
            continue
        for row in rows:
            active = [(m, start) for m in members if (start := starts[m][row]) is not None]
            column = min((start for _, start in active), default=None)
            if column is None or column > last_read[row]:
                continue
            layer, order = min(depths[m] for m, _ in active)
            layer = max(layer, 0)  # the embedding is what block 0 reads
            cells.append(Cell(variant, row, layer, entry_of(order, a.blocks[layer].experts is not None), column))
    return cells, naive


def resolver(a: Anatomy) -> Callable[[Site], Site]:
    """`a.resolve` of whole base sites, which looks at each tensor once however many units of it are named."""
    known: dict[tuple[str, int | None, int | None], tuple[Site, int]] = {}

    def resolve(site: Site) -> Site:
        if site.input is not None or site.view is not None or site.alias is not None:
            return a.resolve(site.base)
        key = site.name, site.layer, site.expert
        if key not in known:
            whole = a.resolve(site.whole)
            known[key] = whole, a.units(whole)
        whole, units = known[key]
        return whole if site.index is None or max(site.index) < units else a.resolve(site)  # which raises

    return resolve


def _first_columns(moved: Sequence[Tensor | None], rows: int) -> list[list[int | None]]:
    """For each edit the first column that it changes in each row, None where it changes nothing."""
    there = [m for m in moved if m is not None]
    found = iter(first_columns(torch.stack(there).flatten(0, 1)) if there else ())
    return [[None] * rows if m is None else [next(found) for _ in range(rows)] for m in moved]


def plan_of(
    lm: LM, work: Work, cells: list[Cell], naive: list[int], memory: float | None, notes: Sequence[str]
) -> Plan:
    """The plan of these cells: batches within the memory that may be taken."""
    a, width = lm.anatomy, work.prompts.width
    each = row_bytes(lm, width - min((c.column for c in cells), default=width - 1), width)
    largest = max(Counter(c.column for c in cells).values(), default=1)
    entries = sum(
        torch.Size(lm.shape(site)).numel() * (width if site.name in ("scores", "pattern") else 1)
        for site in kept_sites(a, work)
    )
    base = work.prompts.batch * width * lm.dtype.itemsize * (entries + 2 * a.n_layers * a.n_kv * a.d_head)
    if naive:
        notes = (*notes, f"{len(naive)} variants run as whole forward passes: they have a condition or edit the logits")
    chunk = max(1, int(budget(lm, memory) // each))
    return Plan(
        *work.shape,
        n_layers=a.n_layers,
        width=width,
        cells=tuple(cells),
        naive=tuple(naive),
        chunk=min(chunk, largest),
        bytes_each=each,
        base_bytes=base,
        exact="fast",
        notes=tuple(notes),
    )


def naive_plan(lm: LM, work: Work, notes: Sequence[str] = ()) -> Plan:
    """The plan of the naive loop: every variant is a whole forward pass over all rows."""
    width = work.prompts.width
    return Plan(
        *work.shape,
        n_layers=lm.anatomy.n_layers,
        width=width,
        cells=(),
        naive=tuple(range(len(work.variants))),
        chunk=work.prompts.batch,
        bytes_each=row_bytes(lm, width, width),
        base_bytes=0,
        exact="naive",
        notes=tuple(notes),
    )
