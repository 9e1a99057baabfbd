"""Activations and gradients at any sites, from one forward and one backward pass for a whole batch.

Parameters are frozen while it runs, so the backward pass goes to activations only. The gradient of each row's number is
taken of the sum over rows: rows do not mix, so each row's entries are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.errors import EditError, SiteError
from trimtab.model.edits import Source
from trimtab.model.frame import Frame
from trimtab.model.hooks import Look, Step
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Readout
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
    prompts = lm.prompts(prompts)
    if not readout.differentiable:
        raise EditError(
            f"{readout.name} moves in steps, so its gradient says nothing: read a log probability or a logit difference"
        )
    wanted = lm.sites(sites)
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
    with _frozen(lm), torch.enable_grad(), hooked:
        logits = lm.call(prompts).logits
        value = _number(readout, logits, prompts)
        if not value.requires_grad:
            raise SiteError(
                f"{readout.name} does not depend on {', '.join(map(str, wanted[:3]))}: nothing to differentiate"
            )
        grads = torch.autograd.grad(value.sum(), [held[site][0] for site in wanted], allow_unused=True)
    batch, width = prompts.batch, prompts.width
    real = prompts.mask.bool()
    activations: dict[Site, Tensor] = {}
    found: dict[Site, Tensor] = {}
    for site, grad in zip(wanted, grads, strict=True):
        tensor, tap = held[site]
        activations[site] = tap.layout.read(tensor.detach(), batch, width)
        part = torch.zeros_like(activations[site]) if grad is None else tap.layout.gradient(grad, batch, width)
        mask = real.to(part.device)
        found[site] = part if bool(mask.all()) else part * mask.view(*mask.shape, *[1] * (part.ndim - 2))
    made = Call(lm, prompts, "gradients", options, edit=intervention or None, runs=runs)
    edited = bool(intervention) or bool(lm.active)
    return Gradients(
        value.detach(),
        Run(prompts, logits.detach(), activations, edited, made=made),
        Run(prompts, None, found, edited, made=made),
        made,
    )


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


@contextmanager
def _frozen(lm: LM) -> Iterator[None]:
    """Parameters do not require gradients inside."""
    trained = [p for p in lm.hf.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
