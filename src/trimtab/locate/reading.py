"""What a neuron reads: the directions of the stream that activate it, token by token.

An MLP neuron reads the stream of its own token through a row of the gate or the up projection; an attention neuron
reads that of every token which its head attends to, through a row of the value projection. The norm in front and the
attention pattern are frozen at what they were. Nothing here knows of tasks or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.locate.frozen import FrozenNorm
from trimtab.locate.written import norm_before, stream_before
from trimtab.model.gradient import frozen
from trimtab.model.run import Run
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Key = Literal["gate_pre", "up"]


@dataclass(frozen=True, eq=False)
class Reading:
    """The directions that a neuron reads at the last position of each prompt of a run.

    `directions` (token d_model) are those of the stream at the tokens that `rows` and `columns` (token) name, in double
    precision on the CPU. Their inner products with the stream, summed over the tokens of a row, are the activation
    (of an MLP neuron the pre-activation) but for biases.
    """

    rows: Int[Tensor, "token"]
    columns: Int[Tensor, "token"]
    directions: Float[Tensor, "token d_model"]


class Reader:
    """What one neuron, `L20.neuron[7]` or `L20.attn_neuron[7]`, reads in a run that has its `reads`."""

    def __init__(self, lm: LM, neuron: Site, key: Key) -> None:
        assert neuron.index is not None
        self.lm, self.layer, self.unit = lm, neuron.layer or 0, neuron.index[0]
        self.attends = neuron.name == "attn_neuron"
        self.stream = stream_before(lm, self.layer, neuron.name)
        self.read = f"L{self.layer}.{'attn_in' if self.attends else 'mlp_in'}"
        self.projection = lm.anatomy.check(Site("v" if self.attends else key, self.layer))

    @property
    def head(self) -> int:
        """The head that an attention neuron is a channel of."""
        return self.unit // self.lm.anatomy.d_head

    @property
    def pattern(self) -> str:
        """That head's attention from the last position."""
        return f"L{self.layer}.pattern[{self.head}]@last"

    def placed(self, site: str) -> str:
        """A site at the tokens that the neuron reads: the last one, or all."""
        return site if self.attends else f"{site}@last"

    @property
    def reads(self) -> list[str]:
        """The sites that `of` needs of a run."""
        return [self.placed(self.stream), self.placed(self.read), *([self.pattern] if self.attends else [])]

    def tokens(self, run: Run, site: str) -> Float[Tensor, "token ..."]:
        """The values of a site that is `placed`, at the tokens that the neuron reads."""
        return run.tokens(site) if self.attends else run[self.placed(site)]

    def of(self, run: Run) -> Reading:
        """The directions in this run."""
        before, read = self.tokens(run, self.stream), self.tokens(run, self.read)
        norm = norm_before(self.lm.anatomy.blocks[self.layer], before, read)
        a = self.lm.anatomy
        place = (self.head * a.n_kv // a.n_heads, self.unit % a.d_head) if self.attends else (self.unit,)
        directions = FrozenNorm(norm, before).back(self._key(read, place))
        last = torch.tensor([columns[-1] for columns in run.prompts.positions("all")])
        if not self.attends:
            return Reading(torch.arange(len(last)), last, directions)
        rows, columns = run.prompts.mask.bool().cpu().nonzero(as_tuple=True)
        pattern = run[self.pattern][:, 0].cpu().double()  # (row key)
        return Reading(rows, columns, directions * pattern[rows, columns][:, None])

    def _key(self, x: Tensor, place: Sequence[int]) -> Float[Tensor, "token d_model"]:
        """The gradient of one entry of the projection at what it is given."""
        tap = self.lm.anatomy.tap(self.projection)
        with frozen(self.lm), torch.enable_grad():
            held = x.detach().requires_grad_()
            out = tap.layout.read(tap.module(held[:, None]), len(held), 1)
            (gradient,) = torch.autograd.grad(out[(slice(None), 0, *place)].sum(), held)
        return gradient
