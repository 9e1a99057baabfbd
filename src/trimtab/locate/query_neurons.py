"""Query neurons: which earlier neurons or heads activate a neuron.

Yu and Ananiadou 2024, arXiv 2312.12141, section 3.4: the inner product of a value neuron's key, the direction that its
gate (or input projection) reads, with what earlier neurons write to the stream. Here the norm in front of the MLP is
frozen at what it was, so the parts are in units of the neuron's pre-activation and sum to it, with those of the
embedding and the biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import SiteError
from trimtab.locate.frozen import FrozenNorm
from trimtab.locate.knowledge_neurons import at_last
from trimtab.locate.units import places
from trimtab.locate.written import Written, norm_before_mlp, refuse_normed_stream, stream_before
from trimtab.model.gradient import frozen
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads


def query_neurons(
    lm: LM,
    task: Task,
    neuron: str,
    sites: Reads = "L*.neuron",
    *,
    key: Literal["gate_pre", "up"] = "gate_pre",
    on: Literal["clean", "corrupt"] = "clean",
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """What each earlier neuron or head adds to a neuron's pre-activation at the last position.

    v·(∂ pre-activation/∂ stream) with the norm in front of the MLP frozen: v is the vector that the neuron (activation
    times column of the down projection) or head writes. Places computed after the neuron score 0, and so do the heads
    of its own layer in parallel blocks.

    Args:
        neuron: the one that is activated, such as `"L20.neuron[7]"`.
        sites: those that may activate it: `"L*.neuron"`, `"L*.head"`, or candidates of these.
        key: which of the neuron's two input directions in a gated MLP, "gate_pre" or "up"; without a gate there is
            only "gate_pre", the input projection.
        on: which prompts of a counterfactual task; contrast tasks are read after their questions.

    Returns:
        `Scores` in units of the pre-activation (`L20.gate_pre[7]`).

    Raises SiteError where `neuron` is not one neuron, ModelError where the stream itself is normed (OPT-350m).

    >>> query_neurons(lm, task, "L20.neuron[7]").top(5)  # doctest: +SKIP
    """
    refuse_normed_stream(lm, "what a neuron writes")
    (target, *more) = lm.sites(neuron)
    if more or target.name != "neuron" or target.index is None or len(target.index) != 1:
        raise SiteError(f"{neuron} is not one neuron: name the one that is activated, such as L20.neuron[7]")
    where = at_last(places(lm, sites, None, mapped="last", alone="last"), "query_neurons", ("neuron", "head"))
    read_by = lm.anatomy.check(Site(key, target.layer, target.index))
    measured = measure(lm, task, on=on)
    layer = target.layer or 0
    stream = stream_before(lm, layer, "neuron")
    earlier = [block for block in where.blocks if _earlier(block, stream)]
    names = {f"L{b.layer}.{n}" for b in earlier for n in (b.name, "mlp_raw" if b.name == "neuron" else "attn_raw")}
    reads = [f"{name}@last" for name in sorted(names | {stream, f"L{layer}.mlp_in"})]
    size = 1 if where.units is None else where.units
    columns = [np.zeros((len(measured.prompts), size)) for _ in where.blocks]
    entries = sum(int(np.prod(lm.shape(site.whole))) for site in lm.sites(reads)) // 8 + lm.anatomy.d_model
    done = 0
    for rows in batches(measured.prompts, entries, batch_size):
        run = lm.run(measured.prompts.rows(rows, trim=True), reads, logits=False)
        x = _at_last(lm, f"L{layer}.mlp_in", run)
        before = _at_last(lm, stream, run)
        norm = norm_before_mlp(lm.anatomy.blocks[layer], before, x)
        direction = FrozenNorm(norm, before).back(_key(lm, read_by, x))
        for column, block in zip(columns, where.blocks, strict=True):
            if block not in earlier:
                continue
            raw = f"L{block.layer}.{'mlp_raw' if block.name == 'neuron' else 'attn_raw'}"
            coefficients = _at_last(lm, f"L{block.layer}.{block.name}", run)
            found = Written(lm, block.layer or 0, block.name, coefficients, _at_last(lm, raw, run)).onto(direction)
            found = found if block.index is None else found[:, list(block.index)]
            column[rows] = (found if where.units is not None else found.sum(1, keepdim=True)).numpy()
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    array = where.array([measured.per_example(torch.as_tensor(column).T).T for column in columns])
    options = {"neuron": str(target.with_(at=None)), "key": key, "on": on}
    return where.scores(array, lm, task, measured.prompts, "query_neurons", "activation", options)


def _key(lm: LM, site: Site, x: Tensor) -> Float[Tensor, "row d_model"]:
    """The direction that a neuron reads: the gradient of its pre-activation at the MLP's input (row d_model)."""
    tap = lm.anatomy.tap(site)
    assert site.index is not None
    with frozen(lm), torch.enable_grad():
        held = x.detach().requires_grad_()
        out = tap.layout.read(tap.module(held[:, None]), len(held), 1)
        (gradient,) = torch.autograd.grad(out[:, 0, site.index[0]].sum(), held)
    return gradient


def _at_last(lm: LM, site: str, run: Run) -> Tensor:
    values = run[f"{site}@last"]
    return values.reshape(len(values), *lm.shape(lm.sites(site)[0]))


def _earlier(block: Site, stream: str) -> bool:
    """Whether what a block writes is in the stream that the neuron's MLP reads."""
    return (block.layer or 0, block.kind.order) < Site.parse(stream).depth
