"""Paths from head to head in one prompt: what reaches a receiver when one sender changes and every other head does not.

For a sender, the stream is carried on with all other heads at the base run's own outputs (and all MLPs too, where they
are frozen): nothing moves between positions, so only the columns that the sender changes are computed. At a receiver's
layer this gives its query, key or value; attention over the base run's stream with that one input changed gives the
receiver's output, for all heads of the layer at once, because a head's output hangs on its own query, key and value.
That output is put into the base run, which goes on from there as it is.

It knows prompts, heads and readouts; what a path means, and for which task, is `locate.path_patching`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import ModelError
from trimtab.model.base import base_run
from trimtab.model.counterfactual import no_shortcut
from trimtab.model.frame import Frame
from trimtab.model.halves import finish, needs
from trimtab.model.hooks import Hooks, Step
from trimtab.model.memory import budget, row_bytes
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.model.run import Run, Stop
from trimtab.model.taps import Tap
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

AT_ONCE = 4096
"""Tokens that go on together on a CPU: enough to share the loading of weights, few enough to stay in the caches."""


@dataclass(frozen=True)
class Sent:
    """A sender (by number) with its layer, its first changed column and its layer's heads (pos head d_head)."""

    number: int
    layer: int
    start: int
    heads: Tensor


@dataclass
class Paths:
    """The base run of one prompt, and the run that senders take their outputs from.

    `prompts` has one row; `other` was read at every `head` and its prompt corresponds token by token. With `freeze`,
    MLPs keep the base run's outputs on the way from sender to receiver. Raises `ModelError`, as the engine does, where
    rows may not start from a base run.
    """

    lm: LM
    prompts: Prompts
    other: Run
    readout: Readout
    freeze: bool = False
    memory: float | None = None

    def __post_init__(self) -> None:
        lm, a = self.lm, self.lm.anatomy
        if reason := no_shortcut(lm):
            raise ModelError(reason)
        names = {"head", "resid_pre", *needs(a.family, "head"), *(["mlp_out"] if self.freeze else [])}
        self.last = Site("resid_post", a.n_layers - 1)
        self.base = base_run(lm, self.prompts, {Site(n, i) for n in names for i in range(a.n_layers)} | {self.last})
        self.columns = self.readout.columns(self.prompts).to(lm.device)
        with torch.no_grad():
            self.before = self._read_out(self.base.whole(self.last), 0)[0]
        self.differ = (self.prompts.ids != self.other.prompts.ids).int().cumsum(1)[0] > 0

    def effects(
        self, senders: Sequence[Site], receivers: Sequence[Site], progress: Callable[[int], None] | None = None
    ) -> Float[Tensor, "sender receiver"]:
        """Change of the readout for each path; NaN where the receiver does not come after the sender.

        `senders` are heads with or without positions; `receivers` inputs q, k or v of heads, which are changed
        together where several are named, or `logits`. `progress` is called with the number of paths done.
        """
        out = self.before.new_full((len(senders), len(receivers)), torch.nan)
        later = torch.tensor(
            [[r.layer is None or r.layer > (s.layer or 0) for r in receivers] for s in senders], dtype=torch.bool
        )
        out[later.to(out.device)] = 0.0
        sent = [Sent(number, s.layer or 0, *self._change(s)) for number, s in enumerate(senders)]
        last = int(self.columns.max())
        sent = sorted((s for s in sent if 0 <= s.start <= last), key=lambda s: (s.start, s.layer))
        with torch.no_grad(), self.lm.lock:
            for start, group in groupby(sent, key=lambda s: s.start):
                together = list(group)
                size = self._at_once(start, share=0.5)
                for first in range(0, len(together), size):
                    part = together[first : first + size]
                    for stop, columns, values in self._from(start, part, receivers):
                        rows = torch.tensor([s.number for s in part[:stop]])
                        out[rows[:, None], torch.tensor(columns)] = values - self.before
                        if progress is not None:
                            progress(values.numel())
        return out

    # From sender to receiver
    # -------------------------------------------------------------------------------------------------------------

    def _change(self, sender: Site) -> tuple[int, Tensor]:
        """The first column in which a sender's output is another than in the base run (−1: none), and its layer's heads
        (pos head d_head) with that output."""
        edit = Edit(sender, "set", Ref("other"))
        (compiled,) = self.lm.compile([edit], self.prompts, {"other": self.other})
        before = self.base.whole(Site("head", sender.layer))
        after = compiled.apply(before, Frame.whole(self.prompts))
        moved = (after != before).flatten(2).any(-1)[0]
        if self.prompts.positions(edit.where) == self.other.prompts.positions(edit.where):
            moved &= self.differ.to(moved.device)  # before the first token that differs there is nothing but rounding
        start = int(moved.int().argmax()) if bool(moved.any()) else -1
        return start, torch.where(moved[:, None, None], after, before)[0]

    def _from(
        self, start: int, senders: Sequence[Sent], receivers: Sequence[Site]
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """How many senders (the first), which receivers, and the readout (sender receiver) of the paths between."""
        a = self.lm.anatomy
        wanted: dict[int | None, list[int]] = {}
        for number, receiver in enumerate(receivers):
            wanted.setdefault(receiver.layer, []).append(number)
        stop, hidden = 0, torch.empty(0)
        far = a.n_layers if None in wanted else max((r.layer or 0 for r in receivers), default=0) + 1
        for layer in range(senders[0].layer, far):
            outputs = []
            if stop:
                here = [receivers[n] for n in wanted.get(layer, [])]
                hidden, inputs = self._frozen(layer, hidden, start, {r.input or "" for r in here})
                outputs.append(hidden)
                if here:
                    yield stop, wanted[layer], self._received(layer, inputs, start, here)
            joining = [s for s in senders if s.layer == layer]
            if joining:
                outputs.append(self._sent(layer, joining, start))
                stop += len(joining)
            if outputs:
                hidden = torch.cat(outputs)
        if None in wanted and stop:
            values = self._read_out(hidden, start)[:, None]
            yield stop, wanted[None], values.expand(-1, len(wanted[None]))

    def _sent(self, layer: int, senders: Sequence[Sent], start: int) -> Tensor:
        """(sender pos d_model) the block's output where each of these heads takes the other run's value."""
        given = self._given(layer, len(senders), start)
        given["head"] = torch.stack([s.heads[start:] for s in senders]).flatten(2)
        block, steps = self.lm.anatomy.blocks[layer], self._keep_mlp(layer, len(senders), start)
        with self._hooks(steps, len(senders), start):
            return finish(block, self.lm.anatomy.family, "head", given)

    def _frozen(self, layer: int, hidden: Tensor, start: int, inputs: set[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The block's output for `hidden` with every head at the base run's output, and its queries, keys or values."""
        n, family = len(hidden), self.lm.anatomy.family
        seen: dict[str, Tensor] = {}
        kept = self._suffix("head", layer, n, start)
        if not inputs and not family.parallel:  # nobody looks at this layer's attention, so it need not run
            with self._hooks(self._keep_mlp(layer, n, start), n, start):
                return finish(self.lm.anatomy.blocks[layer], family, "head", {"head": kept, "resid_pre": hidden}), seen
        steps = [Step(Site("head", layer), change=lambda x, frame: kept.view_as(x).clone())]
        steps += [Step(Site(name, layer), look=_noting(seen, name)) for name in inputs]
        with self._hooks([*steps, *self._keep_mlp(layer, n, start)], n, start):
            return self.base.block(layer, hidden, self._rows(n), start), seen

    def _received(
        self, layer: int, inputs: Mapping[str, Tensor], start: int, receivers: Sequence[Site]
    ) -> Float[Tensor, "sender receiver"]:
        """The readout where each receiver (one of a layer's heads, or several) has its input changed as it was."""
        senders = len(next(iter(inputs.values())))
        changed = {name: self._attended(layer, name, values, start) for name, values in inputs.items()}
        order = sorted(changed)
        heads = torch.stack([changed[name] for name in order])  # (input sender pos head d_head)
        which = torch.tensor([order.index(r.input or "") for r in receivers], device=heads.device)
        chosen = torch.zeros(len(receivers), heads.shape[3], dtype=torch.bool, device=heads.device)
        for row, receiver in enumerate(receivers):
            chosen[row, list(receiver.index or range(heads.shape[3]))] = True
        pairs = torch.cartesian_prod(torch.arange(senders), torch.arange(len(receivers))).to(heads.device)
        pairs = pairs.view(-1, 2)
        parts = []
        for part in pairs.split(self._at_once(start)):
            given = self._given(layer, len(part), start)
            own = given["head"].view(len(part), -1, *heads.shape[3:])
            new = heads[which[part[:, 1]], part[:, 0]]
            given["head"] = torch.where(chosen[part[:, 1]][:, None, :, None], new, own).flatten(2)
            out = finish(self.lm.anatomy.blocks[layer], self.lm.anatomy.family, "head", given)
            for later in range(layer + 1, self.lm.anatomy.n_layers):
                out = self.base.block(later, out, self._rows(len(part)), start)
            parts.append(self._read_out(out, start))
        return torch.cat(parts).view(senders, len(receivers))

    def _attended(self, layer: int, name: str, values: Tensor, start: int) -> Tensor:
        """(sender pos head d_head) every head's output with its query, key or value changed and all else the base's."""
        n = len(values)
        seen: dict[str, Tensor] = {}

        def look(raw: Tensor, tap: Tap, frame: Frame) -> None:
            _noting(seen, "head")(raw, tap, frame)
            raise Stop

        steps = [Step(Site(name, layer), change=lambda x, frame: values.clone()), Step(Site("head", layer), look=look)]
        try:
            with self._hooks(steps, n, start):
                self.base.block(layer, self._suffix("resid_pre", layer, n, start), self._rows(n), start)
        except Stop:
            pass
        return seen["head"]

    # Rows that start from the base run
    # ---------------------------------------------------------------------------------------------------------------

    def _keep_mlp(self, layer: int, n: int, start: int) -> list[Step]:
        if not self.freeze:
            return []
        kept = self._suffix("mlp_out", layer, n, start)
        return [Step(Site("mlp_out", layer), change=lambda x, frame: kept.view_as(x).clone())]

    def _hooks(self, steps: Sequence[Step], n: int, start: int) -> Hooks:
        frame = Frame(self.prompts, n, start, self.prompts.width - start, self._rows(n))
        return Hooks(self.lm.anatomy, list(steps), lambda: frame)

    def _rows(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.long, device=self.lm.device)

    def _suffix(self, name: str, layer: int, n: int, start: int) -> Tensor:
        return self.base.suffix(name, layer, self._rows(n), start)

    def _given(self, layer: int, n: int, start: int) -> dict[str, Tensor]:
        """What rows start from that enter a block behind attention."""
        return {name: self._suffix(name, layer, n, start) for name in needs(self.lm.anatomy.family, "head")}

    def _at_once(self, start: int, share: float = 1.0) -> int:
        """Rows in one batch."""
        width = self.prompts.width
        most = share * budget(self.lm, self.memory) // row_bytes(self.lm, width - start, width)
        if self.lm.device.type == "cpu" and share == 1.0:
            most = min(most, AT_ONCE // (width - start))
        return max(1, int(most))

    def _read_out(self, resid: Tensor, start: int) -> Tensor:
        """The readout of the last stream (row pos d_model), whose columns begin at `start`; earlier ones are the
        base's."""
        n = len(resid)
        columns = self.columns.expand(n, -1).to(resid.device)
        at = resid.gather(1, (columns - start).clamp(min=0)[..., None].expand(-1, -1, resid.shape[-1]))
        if bool((columns < start).any()):
            before = self.base.whole(self.last).expand(n, -1, -1).gather(1, columns[..., None].expand_as(at))
            at = torch.where((columns < start)[..., None], before, at)
        tokens = self.readout.tokens
        if tokens is not None and tokens.ndim == 2:
            tokens = tokens.to(resid.device).expand(n, -1)
        return self.readout.value(self.lm.unembed(self.lm.final(at), tokens), self._rows(n))


def _noting(seen: dict[str, Tensor], name: str) -> Callable[[Tensor, Tap, Frame], None]:
    """A look that keeps a copy of the tensor (row pos unit …)."""

    def look(raw: Tensor, tap: Tap, frame: Frame) -> None:
        seen[name] = tap.layout.read(raw, frame.batch, frame.length).clone()

    return look
