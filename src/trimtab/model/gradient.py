"""Activations and gradients at any sites, from one forward and one backward pass for a whole batch.

Parameters are frozen while it runs, so the backward pass goes to activations only. The gradient of each row's number is
taken of the sum over rows: rows do not mix, so each row's entries are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import EditError, SiteError
from trimtab.model.frame import Frame
from trimtab.model.hooks import Look, Step
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Readout, Source
from trimtab.model.provenance import Call, about
from trimtab.model.run import Run
from trimtab.model.steps import spelled_out
from trimtab.model.taps import Tap
from trimtab.values.provenance import Provenance
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Edits, Reads, Text


@dataclass(frozen=True, eq=False)
class Gradients:
    """A number for each row, activations at sites, and the number's gradient there.

    `value` (row); `activations` and `gradients` are runs: `result.gradients["L3.head"]` is (batch pos head d_head),
    zero at pads. Unit of a gradient: the readout's unit per unit of activation.
    """

    value: Tensor
    activations: Run
    gradients: Run
    made: Call | None = field(default=None, repr=False)

    @property
    def provenance(self) -> Provenance | None:
        """Where this comes from, worked out when it is first asked for."""
        return None if self.made is None else self.made.provenance


def gradients(
    lm: LM,
    prompts: Text,
    readout: Readout,
    sites: Reads,
    *,
    edit: Edits = None,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Gradients:
    """Activations and gradients of a readout at sites (whole sites, without positions or units).

    Raises `SiteError` for a site that the readout does not depend on or that is given with positions or units, and
    `EditError` for a readout that does not give one number for each row.
    """
    wanted = lm.sites(sites)
    with trace(lm, prompts, readout, wanted, edit=edit, runs=runs, dictionaries=dictionaries) as traced:
        found = traced.gradients(wanted)
        return Gradients(traced.value, traced.activations(wanted), traced.run(found), traced.made)


@dataclass(frozen=True, eq=False)
class Traced:
    """A forward pass whose graph is kept, so that gradients can be taken of it more than once.

    `number` (row) is the readout's; `held` has the model's own tensor at each site, and how the site lies in it.
    """

    prompts: Prompts
    number: Tensor
    logits: Tensor
    held: Mapping[Site, tuple[Tensor, Tap]]
    edited: bool
    made: Call

    @property
    def value(self) -> Tensor:
        """(row) without its graph."""
        return self.number.detach()

    def activations(self, sites: Sequence[Site]) -> Run:
        """What passed at the sites."""
        batch, width = self.prompts.batch, self.prompts.width
        tensors = {site: self.held[site] for site in sites}
        found = {site: tap.layout.read(raw.detach(), batch, width) for site, (raw, tap) in tensors.items()}
        return Run(self.prompts, self.logits.detach(), found, self.edited, made=self.made)

    def gradients(
        self, sites: Sequence[Site], start: tuple[Site, Tensor] | None = None, keep: bool = False
    ) -> dict[Site, Tensor | None]:
        """The number's gradient at the model's own tensors; None where nothing of it arrives.

        `start` = (site, gradient at its tensor) goes back from there instead of from the number. `keep` keeps the graph
        for another time.
        """
        top, given = (
            (self.number, torch.ones_like(self.number)) if start is None else (self.held[start[0]][0], start[1])
        )
        tensors = [self.held[site][0] for site in sites]
        grads = torch.autograd.grad(top, tensors, given, allow_unused=True, retain_graph=keep)
        return dict(zip(sites, grads, strict=True))

    def run(self, gradients: Mapping[Site, Tensor | None]) -> Run:
        """Gradients of the model's own tensors as those of the sites, (batch pos unit …), zero at pads."""
        batch, width = self.prompts.batch, self.prompts.width
        real = self.prompts.mask.bool()
        found: dict[Site, Tensor] = {}
        for site, grad in gradients.items():
            raw, tap = self.held[site]
            if grad is None:
                part = torch.zeros_like(tap.layout.read(raw.detach(), batch, width))
            else:
                part = tap.layout.gradient(grad, batch, width)
            mask = real.to(part.device)
            found[site] = part if bool(mask.all()) else part * mask.view(*mask.shape, *[1] * (part.ndim - 2))
        return Run(self.prompts, None, found, self.edited, made=self.made)


@contextmanager
def trace(
    lm: LM,
    prompts: Text,
    readout: Readout,
    wanted: Sequence[Site],
    *,
    edit: Edits = None,
    runs: Mapping[str, Source] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Iterator[Traced]:
    """The forward pass of `gradients`, with what it raises; patched weights stay for as long as the block lasts, as the
    way back goes through them too."""
    prompts = lm.prompts(prompts)
    if not readout.differentiable:
        raise EditError(
            f"{readout.name} moves in steps, so its gradient says nothing: read a log probability or a logit difference"
        )
    for site in wanted:
        if site.view is not None:
            raise SiteError(
                f"{site}: features are no tensor of the model's own; take the gradient at {site.base} times the decoder"
            )
        if site.name in ("router", "expert", "expert.neuron"):
            raise SiteError(f"{site}: experts run as one fused operation, with no gradient at single ones; use mlp_out")
        if site != site.whole:
            raise SiteError(f"{site}: gradients are taken at whole sites; ask for {site.whole} and index the result")
    intervention = spelled_out(edit, lm.anatomy)

    def options() -> dict[str, object]:
        return {"readout": about(readout), "sites": [str(site) for site in wanted]}

    held: dict[Site, tuple[Tensor, Tap]] = {}
    steps = [Step(site, look=_holder(site, held)) for site in wanted]
    hooked = lm.hooked(prompts, intervention, runs, dictionaries, steps)
    with frozen(lm), torch.enable_grad(), hooked:
        logits = lm.call(prompts).logits
        value = _number(readout, logits, prompts)
        if not value.requires_grad:
            raise SiteError(
                f"{readout.name} does not depend on {', '.join(map(str, wanted[:3]))}: nothing to differentiate. A "
                "metric that has no gradient, such as one of an argmax, says so: differentiable=False on its readout "
                "or its function"
            )
        made = Call(lm, prompts, "gradients", options, edit=intervention or None, runs=runs)
        yield Traced(prompts, value, logits, held, bool(intervention) or bool(lm.active), made)


def _holder(site: Site, held: dict[Site, tuple[Tensor, Tap]]) -> Look:
    """A look that keeps the tensor that goes on, so that its gradient is that of this site alone.

    A module's input may be other code's too (the residual path, a parallel MLP): an alias is handed on and kept.
    """

    def look(raw: Tensor, tap: Tap, frame: Frame) -> Tensor | None:
        raw = tap.layout.settled(raw)
        if not raw.requires_grad:  # the first site on the way: the graph begins here
            raw = raw.requires_grad_() if tap.in_place else raw.detach().requires_grad_()
            held[site] = (raw, tap)
            return None if tap.in_place else raw.clone()
        alias = raw.view_as(raw) if tap.side == "in" and not tap.in_place else raw
        held[site] = (alias, tap)
        return raw.clone() if tap.copy else alias

    return look


def _number(readout: Readout, logits: Tensor, prompts: Prompts) -> Tensor:
    rows = torch.arange(prompts.batch, device=logits.device)
    columns = readout.columns(prompts).to(logits.device)
    at = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
    value = readout.of(at, rows)
    if value.shape != (prompts.batch,):
        raise EditError(
            f"{readout.name} must give one number for each of {prompts.batch} rows, got shape {tuple(value.shape)}"
        )
    return value


def readout_value(readout: Readout, run: Run) -> Tensor:
    """(row) a readout's number of a run that has its logits. EditError where it does not give one for each row."""
    assert run.logits is not None
    return _number(readout, run.logits, run.prompts)


@contextmanager
def frozen(lm: LM) -> Iterator[None]:
    """Parameters do not require gradients inside."""
    trained = [p for p in lm.hf.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
