"""Direct logit attribution over a task: what each place writes straight towards its answers, example by example.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", https://transformer-circuits.pub/2021/framework;
Wang et al. 2022, arXiv 2211.00593. The last residual stream is a sum, and with the scale of the final norm frozen at
its value in the run the logit difference is linear in it. `logit_attribution` lists all terms of single prompts; here
places are chosen as in every other method, down to neurons and features. Only direct paths count: what a place does by
way of later ones is theirs here, and a place that works through others alone scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import SiteError
from trimtab.locate.attribution import check_sum
from trimtab.locate.frozen import FrozenNorm
from trimtab.locate.pairing import alone
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_question
from trimtab.locate.sweep import Progress
from trimtab.locate.units import places
from trimtab.locate.written import LAST
from trimtab.model.protocols import Dictionary
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

WRITTEN = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Parts of the last residual stream, or sums of them."""
RAW = {
    "head": "attn_raw",
    "attn_neuron": "attn_raw",
    "attn_raw": "attn_raw",
    "neuron": "mlp_raw",
    "mlp_raw": "mlp_raw",
}
"""What comes before a post-norm, where there is one, and the output that it is normed with."""


@alone
@planned_by(plan_question)
def direct_logit_attribution(
    lm: LM,
    task: Task,
    sites: Reads = "L*.head",
    *,
    on: Literal["clean", "corrupt"] = "clean",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """What each place adds to mean logit(answers) − mean logit(distractors) by the direct path, at the last position.

    Args:
        sites: heads, neurons (of the MLP or of attention), features, sublayer outputs, the embedding or residual
            streams, at the last position. The streams are sums of all before them; the others together with the biases
            make up the whole difference.
        on: which prompts of a counterfactual task; contrast tasks are read after their questions.
        batch_size: prompts that go through the model together.

    Returns:
        `Scores` in logits, before any soft cap. Positive: writes towards the answers.

    Raises:
        ModelError: the architecture norms the residual stream itself, so that it is no sum. SiteError: a place that
        does not write to the stream directly, or another position than the last. TaskError: answers of several tokens.

    >>> direct_logit_attribution(lm, task).top(5)  # doctest: +SKIP
    """
    check_sum(lm)
    where = places(lm, sites, None, mapped="last", alone="last", dictionaries=dictionaries)
    for block in where.blocks:
        if block.base.name not in (*WRITTEN, *RAW) or (block.view == "feature" and block.base.name in RAW):
            raise SiteError(
                f"{block} does not write to the residual stream directly; take one of {', '.join((*WRITTEN, *RAW))}"
            )
        if block.at not in LAST:
            raise SiteError(f"{block}: the logit is read at the last position, so only what is written there is direct")
    measured = measure(lm, task, on=on, metric="logit_diff")
    bare = {block: block.with_(at=None) for block in where.blocks}
    wanted = {b.whole for b in bare.values()} | {Site(RAW[b.name], b.layer) for b in bare.values() if b.name in RAW}
    last = Site("resid_post", lm.anatomy.n_layers - 1)
    reads = [site.with_(at=Scope.parse("last")) for site in dict.fromkeys([last, *wanted])]
    entries = sum(int(np.prod(lm.shape(site.base.whole))) for site in reads)
    found: list[np.ndarray] = [np.empty((len(measured), where.units or 1)) for _ in where.blocks]
    done = 0
    for rows in batches(measured.prompts, entries, batch_size):
        prompts = measured.prompts.rows(rows, trim=True)
        run = lm.run(prompts, reads, logits=False, dictionaries=dictionaries)
        read = {site.with_(at=None): run[site] for site in reads}
        direction = _direction(lm, measured, rows, read[last])
        for column, block in zip(found, bare.values(), strict=True):
            terms = _terms(lm, block, read, direction, dictionaries or {})
            terms = terms if block.index is None else terms[:, list(block.index)]
            column[rows] = (terms if where.units else terms.sum(1, keepdim=True)).numpy()
        done += len(rows)
        if progress is not None:
            progress(done, len(measured))
    options = {"on": on} if task.shape == "counterfactual" else {}
    array = where.array(found)
    return where.scores(array, lm, task, measured.prompts, "direct_logit_attribution", "logit", options)


def _direction(lm: LM, measured: Measure, rows: list[int], resid: Tensor) -> Float[Tensor, "row d_model"]:
    """The gradient of the logit difference at the last residual stream, the final norm's scale frozen."""
    a = lm.anatomy
    with torch.enable_grad():
        normed = (resid if a.norm is None else a.norm(resid)).detach().requires_grad_()
        z = a.unembed(normed if a.project_out is None else a.project_out(normed))
        total = measured.readout.of_rows(rows).of(z[:, None], torch.arange(len(rows), device=z.device))
        (toward,) = torch.autograd.grad(total.sum(), normed)
    return FrozenNorm(a.norm, resid).back(toward)


def _terms(
    lm: LM, block: Site, read: Mapping[Site, Tensor], direction: Tensor, dictionaries: Mapping[str, Dictionary]
) -> Float[Tensor, "row unit"]:
    """What each unit of a tensor writes along the direction (row d_model); one unit where it is as wide as the stream.

    Where something linear lies between, the direction is taken back through it by differentiating the module, so that
    no weight is read.
    """
    value = read[block.whole]
    if block.view == "feature":
        assert block.dictionary is not None
        back = _back(dictionaries[block.dictionary].decode, value, direction)
        return _exact(value) * back
    if block.name in WRITTEN:
        return (_exact(value) * direction).sum(-1, keepdim=True)
    assert block.layer is not None
    parts = lm.anatomy.blocks[block.layer]
    attends = RAW[block.name] == "attn_raw"
    raw = read[Site(RAW[block.name], block.layer)]
    toward = FrozenNorm(parts.attn_post if attends else parts.mlp_post, raw).back(direction)
    module = {"head": parts.o, "attn_neuron": parts.o, "neuron": parts.down}.get(block.name)
    if module is None:
        return (_exact(value) * toward).sum(-1, keepdim=True)
    back = _back(lambda x: _apply(module, x), value.flatten(1), toward).view_as(value)
    product = _exact(value) * back
    return product.sum(-1) if block.name == "head" else product


def _back(function: Callable[[Tensor], Tensor], x: Tensor, toward: Tensor) -> Tensor:
    """The direction (row d) at x whose product with x is that of `toward` with what a linear function makes of it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        (back,) = torch.autograd.grad((y * toward.to(y)).sum(), x)
    return _exact(back)


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    """A linear module on (row d): some take nothing but (batch pos d)."""
    return module(x[:, None]).squeeze(1)


def _exact(x: Tensor) -> Tensor:
    """In double precision, on the CPU: not every accelerator has it, and these are a few vectors."""
    return x.detach().cpu().double()
