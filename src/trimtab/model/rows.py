"""A batch whose rows each have edits of their own.

Every request's edits are compiled against its own prompt, as if it were alone; a step at a site cuts each row out of
the batch, without the padding before it, and puts it back edited. So every operation, scope and condition means in a
mixed batch what it means alone. While tokens are generated, vectors that are added take a shorter way: one table with a
row for each row of the batch, one addition for all, and `torch.where` so that a row without an edit stays as it is, bit
for bit.

It knows nothing of caches, of sampling, or of who asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import EditError, SiteError
from trimtab.model.edit_target import ATTENTION
from trimtab.model.edits import Compiled
from trimtab.model.frame import Frame
from trimtab.model.hooks import Change, Step
from trimtab.model.memory import out_of_memory
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.steps import edit_steps, spelled_out
from trimtab.values.edit import Condition, Intervention, Ref
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

KEYED = (*ATTENTION, "rot_k")
"""Sites that hold something for every key so far: no one vector can be added to them at a new token."""


class RowEdits:
    """One request's edits, ready for its prompt (one row, no padding) and for what is generated after it.

    `said` is the list of its tokens, which grows. What an edit raises on the way is kept in `error`, and from then on
    the row is left alone: the rest of the batch goes on. A lack of memory is the whole pass's, and raised.

    Raises `EditError` and `SiteError` for edits that do not fit the model or the prompt.
    """

    def __init__(
        self,
        lm: LM,
        intervention: Intervention,
        prompts: Prompts,
        said: list[int],
        dictionaries: Mapping[str, Dictionary] | None = None,
    ) -> None:
        if intervention.patches:
            raise EditError(
                f"{intervention.patches[0]}: a weight patch changes the model for every request beside it; give edits, "
                "or write the patched model to a folder and serve that"
            )
        self.prompts, self.said = prompts, said
        self.anatomy = lm.anatomy
        self.compiled = lm.compile(spelled_out(intervention, lm.anatomy).edits, prompts, None, dictionaries)
        self.whole = any(edit.weight.condition is not None for edit in self.compiled)
        """Whether the prompt must be read in one pass: a condition is decided on all of it."""
        self.held: dict[Condition, Tensor] = {}
        """What conditions decided when the prompt was read first: it holds for the whole answer."""
        self.error: Exception | None = None
        self.vectors: dict[Site, list[Compiled]] = {}
        self.others: dict[Site, list[Change]] = {}
        self.reset()

    def begin(self) -> None:
        """Sort, once the prompt has been read, what goes on into the generated tokens."""
        live: dict[Site, list[Compiled]] = defaultdict(list)
        for edit in self.compiled:
            when = edit.weight.condition
            if self._goes_on(edit) and (when is None or bool(self.held[when].all())):
                live[edit.site.whole].append(edit)
        self.vectors, self.others = {}, {}
        for site, edits in live.items():
            if all(map(_is_vector, edits)):
                self.vectors[site] = edits
            else:
                self.others[site] = [edit.apply for edit in edits]

    def reset(self) -> None:
        """Ready for its prompt, and for what it has said since, to be read from the start."""
        self.error = None
        if len(self.said) == self.prompts.width:
            self.held = {}
        self.reading: dict[Site, list[Change]] = defaultdict(list)
        """What is done while it is read, by the whole site whose tensor is changed, in the order of the edits."""
        for step in edit_steps(self.compiled, self.anatomy, self.held):
            if self.anatomy.tap(step.site).side == "expert" and step.site.expert is None:
                raise SiteError(f"{step.site}: name one expert, L{step.site.layer}.expert[0], for each edit")
            assert step.change is not None
            self.reading[step.site].append(step.change)

    def follow(self, other: RowEdits) -> None:
        """Go on as another row that has the same edits and has read the same prompt."""
        self.held, self.error = dict(other.held), other.error

    def apply(self, changes: Sequence[Change], x: Tensor, start: int) -> Tensor:
        """The row (1 pos unit …) from its own column `start` on, changed; as it is after an error, which is kept.

        Raises only what says that memory ran out.
        """
        stop = start + x.shape[1]
        ids = torch.tensor([self.said[:stop]], device=self.prompts.ids.device)
        frame = Frame(self.prompts, 1, start, x.shape[1], ids=ids, held=self.held)
        try:
            for change in changes:
                x = change(x, frame)
        except Exception as error:  # whatever it is, it is this request's alone
            if out_of_memory(error):
                raise
            self.error = error
        return x

    def vector(self, site: Site, like: Tensor) -> Tensor:
        """What the vectors add at a whole site to each new token, (unit …): what they make of nothing."""
        nothing = like.new_zeros(1, 1, *like.shape[2:])
        return self.apply([edit.apply for edit in self.vectors[site]], nothing, self.prompts.width)[0, 0]

    def _goes_on(self, edit: Compiled) -> bool:
        if edit.site.name == "rot_k":
            return True  # the cache holds keys as they were before any edit: every pass edits them all
        width, where = self.prompts.width, edit.edit.where
        if edit.weight.prompt_only:
            return False
        return where.kind == "tokens" or bool(self.prompts.columns(where, width, width + 1).any())


def _is_vector(edit: Compiled) -> bool:
    """Whether an edit adds the same vector to every generated token."""
    plain = edit.edit.op == "add" and not isinstance(edit.edit.value, Ref)
    return plain and edit.edit.where.kind != "tokens" and edit.site.name not in KEYED and edit.edit.site.view is None


def reading_steps(rows: Sequence[RowEdits], pads: Sequence[int]) -> list[Step]:
    """Steps for passes over the prompts of these rows, which have `pads` columns of padding before them."""
    at: dict[Site, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        for site in row.reading:
            at[site].append(number)
    return [
        Step(
            site,
            change=_one_by_one(site, {number: (rows[number], rows[number].reading[site]) for number in numbers}, pads),
        )
        for site, numbers in at.items()
    ]


def generating_steps(rows: Sequence[RowEdits], pads: Sequence[int]) -> list[Step]:
    """Steps for passes over one new token of each of these rows."""
    added: dict[Site, dict[int, RowEdits]] = defaultdict(dict)
    others: dict[Site, dict[int, tuple[RowEdits, list[Change]]]] = defaultdict(dict)
    for number, row in enumerate(rows):
        for site in row.vectors:
            added[site][number] = row
        for site, changes in row.others.items():
            others[site][number] = row, changes
    steps = [Step(site, change=_addition(site, of, len(rows))) for site, of in added.items()]
    return steps + [Step(site, change=_one_by_one(site, of, pads)) for site, of in others.items()]


def _addition(site: Site, rows: Mapping[int, RowEdits], batch: int) -> Change:
    table: Tensor | None = None
    steered: Tensor | None = None

    def change(x: Tensor, frame: Frame) -> Tensor:
        nonlocal table, steered
        if table is None:  # the same for as long as the batch is
            made = x.new_zeros(batch, *x.shape[1:])
            for number, row in rows.items():
                made[number, 0] = row.vector(site, x)
            on = [number in rows and rows[number].error is None for number in range(batch)]
            steered = None if all(on) else torch.tensor(on, device=x.device).view(batch, *[1] * (x.ndim - 1))
            table = made  # last: a pass that was broken off before is made again
        y = x + table
        return y if steered is None else torch.where(steered, y, x)

    return change


def _one_by_one(site: Site, rows: Mapping[int, tuple[RowEdits, Sequence[Change]]], pads: Sequence[int]) -> Change:
    keyed = site.name in ATTENTION

    def change(x: Tensor, frame: Frame) -> Tensor:
        out = x
        for number, (row, changes) in rows.items():
            skipped = max(0, pads[number] - frame.start)
            if row.error is not None or skipped >= x.shape[1]:
                continue
            place = (slice(number, number + 1), slice(skipped, None), ..., slice(pads[number] if keyed else 0, None))
            part = x[place]
            new = row.apply(changes, part, frame.start + skipped - pads[number])
            if new is not part and row.error is None:
                out = x.clone() if out is x else out
                out[place] = new
        return out

    return change
