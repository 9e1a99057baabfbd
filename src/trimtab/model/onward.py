"""The model from one layer's neurons at the last token on, with gradients: what a path of neuron values leads to.

Integrated gradients ask for the output at many values of one layer's neurons at one position. Nothing before them
changes, and attention is causal, so only the last column of the layers above is run, against the base run's keys and
values, by the block's own modules. `exact="naive"` is a whole forward pass for each value.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import ModelError, PromptError
from trimtab.model.base import BaseRun, base_run
from trimtab.model.counterfactual import no_shortcut
from trimtab.model.gradient import frozen
from trimtab.model.halves import finish, needs
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import LAST, Readout
from trimtab.values.edit import Edit
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM


class Onward:
    """A batch of prompts, whose last token's neurons may be given other values.

    `neurons[layer]` (row d_mlp) are the model's own. With `exact="fast"` a step costs the layers above it for one
    token; models or moments at which the engine takes no shortcut (see `counterfactuals`) take whole passes.

    Raises PromptError for prompts padded on the right, SiteError for a layer without neurons of its own.
    """

    def __init__(
        self, lm: LM, prompts: Prompts, layers: list[int], *, exact: Literal["fast", "naive"] = "fast"
    ) -> None:
        if prompts.side != "left" and not bool(prompts.mask.all()):
            raise PromptError("the last tokens of these prompts stand in different columns: pad them on the left")
        self.lm, self.prompts = lm, prompts
        sites = [lm.anatomy.resolve(Site("neuron", layer)) for layer in layers]
        self.base: BaseRun | None = None
        if exact == "fast" and no_shortcut(lm) is None:
            kept = [Site(name, layer) for layer in layers for name in needs(lm.anatomy.family, "neuron")]
            with suppress(ModelError):  # a block is called with something that cannot be cut: whole passes then
                self.base = base_run(lm, prompts, {*kept, *sites})
        if self.base is not None:
            at = {site: self.base.whole(site)[:, -1] for site in sites}
        else:
            run = lm.run(prompts, sites, logits=False)
            at = {site: run.whole(site)[:, -1] for site in sites}
        self.neurons: dict[int, Tensor] = {site.layer or 0: values for site, values in at.items()}

    @property
    def numbers(self) -> int:
        """Numbers that a step holds for one value of the neurons: of one token with the keys and values that it sees,
        or of a whole prompt."""
        a, width = self.lm.anatomy, self.prompts.width
        token = sum(10 * a.d_model + 4 * block.d_mlp for block in a.blocks) + 3 * a.vocab
        if self.base is None:
            return width * token
        return token + a.n_layers * 2 * width * a.d_head * (a.n_kv + a.n_heads)

    def gradient(
        self, layer: int, rows: Tensor, values: Float[Tensor, "n d_mlp"], readout: Readout
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n d_mlp"]]:
        """The readout of the last token for each of the `values` that the neurons of these rows are given, and its
        gradient there. `rows` (n) says of which prompt each is; the readout is that of the whole batch."""
        with frozen(self.lm), torch.enable_grad():
            if self.base is None:
                return self._whole(layer, rows, values, readout)
            held = values.detach().requires_grad_()
            value = readout.of(self._logits(self.base, layer, rows, held), rows)
            (gradient,) = torch.autograd.grad(value.sum(), held)
        return value.detach(), gradient

    def _logits(self, base: BaseRun, layer: int, rows: Tensor, values: Tensor) -> Tensor:
        """(n 1 vocab) from the last column alone."""
        lm, a = self.lm, self.lm.anatomy
        start = self.prompts.width - 1
        given = {name: base.suffix(name, layer, rows, start) for name in needs(a.family, "neuron")}
        given["neuron"] = values[:, None].clone()
        with lm.lock:
            hidden = finish(a.blocks[layer], a.family, "neuron", given)
            for above in range(layer + 1, a.n_layers):
                hidden = base.block(above, hidden, rows, start)
        return lm.unembed(lm.final(hidden))

    def _whole(self, layer: int, rows: Tensor, values: Tensor, readout: Readout) -> tuple[Tensor, Tensor]:
        """The same by whole forward passes of the model."""
        prompts, site = self.prompts.rows(rows.tolist()), Site("neuron", layer)
        edit = Edit(site.with_(at=LAST), "set", values.detach().cpu().numpy()[:, None])
        last = Readout(lambda logits, _: readout.of(logits, rows), LAST, None, readout.name, readout.unit)
        found = self.lm.gradients(prompts, last, site, edit=edit)
        return found.value, found.gradients.whole(site)[:, -1]
