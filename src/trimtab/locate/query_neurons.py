"""Query neurons: which earlier neurons or heads activate a neuron.

Yu and Ananiadou 2024, arXiv 2312.12141, section 3.4: the inner product of a value neuron's key with what earlier
neurons write to the stream. The key of an MLP neuron is the direction that its gate (or input projection) reads, that
of an attention neuron the direction that its head's values read. Here the norm in front of the sublayer, and the
attention pattern, are frozen at what they were, so the parts are in units of the neuron's pre-activation (of an
attention neuron, its activation) and sum to it, with those of the embedding and the biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import SiteError
from trimtab.locate.knowledge_neurons import at_last, only
from trimtab.locate.pairing import alone
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_question
from trimtab.locate.reading import Key, Reader
from trimtab.locate.units import Places, places
from trimtab.locate.written import LAST, Written, raw_of, refuse_normed_stream
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

WRITERS = ("neuron", "head", "attn_neuron")


@alone
@planned_by(plan_question)
def query_neurons(
    lm: LM,
    task: Task,
    neuron: str,
    sites: Reads = "L*.neuron",
    *,
    key: Key = "gate_pre",
    on: Literal["clean", "corrupt"] = "clean",
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """What each earlier neuron or head adds to a neuron's pre-activation at the last position.

    v·(∂ pre-activation/∂ stream) with the norm in front of the MLP frozen: v is the vector that the neuron (activation
    times column of the down or output projection) or head writes. Places computed after the neuron score 0, and so do
    the heads of its own layer in parallel blocks.

    An attention neuron (`"L20.attn_neuron[7]"`) has no pre-activation: it is the sum over the tokens t of its head's
    attention a_t to them times their values. There a place's score is Σ_t a_t·v_t·(∂ value_t/∂ stream_t), with the
    attention frozen too, over the tokens of its span.

    Args:
        neuron: the one that is activated, such as `"L20.neuron[7]"` or `"L20.attn_neuron[7]"`.
        sites: those that may activate it: `"L*.neuron"`, `"L*.attn_neuron"`, `"L*.head"`, or candidates of these; for
            an MLP neuron at the last position, for an attention neuron at all that it reads or at a span
            (`"L*.neuron@subject"`).
        key: which of the neuron's two input directions in a gated MLP, "gate_pre" or "up"; without a gate there is
            only "gate_pre", the input projection.
        on: which prompts of a counterfactual task; contrast tasks are read after their questions.
        batch_size: prompts that go through the model together.

    Returns:
        `Scores` in units of the pre-activation (`L20.gate_pre[7]`) or of the attention neuron's activation.

    Raises SiteError where `neuron` is not one neuron or names another position than the last, ModelError where the
    stream itself is normed (OPT-350m).

    >>> query_neurons(lm, task, "L20.neuron[7]").top(5)  # doctest: +SKIP
    """
    refuse_normed_stream(lm, "what a neuron writes")
    target = _one_neuron(lm, neuron)
    reader = Reader(lm, target, key)
    where = _places(lm, sites, reader)
    measured = measure(lm, task, on=on)
    written = dict.fromkeys(block.whole for block in where.blocks if _earlier(block, reader.stream))
    needed = [reader.placed(name) for site in written for name in (str(site), _raw(site))]
    reads = [*dict.fromkeys([*reader.reads, *needed])]
    columns = [np.zeros((len(measured.prompts), where.units or 1)) for _ in where.blocks]
    entries = sum(int(np.prod(lm.shape(site.whole))) for site in lm.sites(reads))
    entries = entries if reader.attends else entries // 8 + lm.anatomy.d_model
    done = 0
    for rows in batches(measured.prompts, entries, batch_size):
        prompts = measured.prompts.rows(rows, trim=True)
        run = lm.run(prompts, reads, logits=False)
        for block, found in _parts(lm, reader, where, list(written), prompts, run):
            columns[block][rows] = found
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    array = where.array([measured.per_example(torch.as_tensor(column).T).T for column in columns])
    options = {"neuron": str(target), "on": on} | ({} if reader.attends else {"key": key})
    return where.scores(array, lm, task, measured.prompts, "query_neurons", "activation", options)


def _one_neuron(lm: LM, neuron: str) -> Site:
    (target, *more) = lm.sites(neuron)
    named = target.name in ("neuron", "attn_neuron") and target.view is None
    if more or not named or target.index is None or len(target.index) != 1:
        raise SiteError(
            f"{neuron} is not one neuron: name the one that is activated, such as L20.neuron[7] or L20.attn_neuron[7]"
        )
    if target.at not in (None, *LAST):
        raise SiteError(f"{neuron}: what activates a neuron is asked at the last position; leave @{target.at} out")
    return target.with_(at=None)


def _places(lm: LM, sites: Reads, reader: Reader) -> Places:
    read = "all" if reader.attends else "last"
    where = places(lm, sites, None, mapped=read, alone=read)
    return (only if reader.attends else at_last)(where, "query_neurons", WRITERS)


def _parts(
    lm: LM, reader: Reader, where: Places, written: Sequence[Site], prompts: Prompts, run: Run
) -> Iterator[tuple[int, Float[np.ndarray, "row unit"]]]:
    """The number of each block that is written earlier, and what its units add to the neuron."""
    reading = reader.of(run)
    for site in written:
        coefficients, raw = reader.tokens(run, str(site)), reader.tokens(run, _raw(site))
        each = Written(lm, site.layer or 0, site.name, coefficients, raw).onto(reading.directions)  # (token unit)
        for number, block in enumerate(where.blocks):
            if block.whole != site:
                continue
            own = each if block.index is None else each[:, list(block.index)]
            own = own if where.units is not None else own.sum(1, keepdim=True)
            inside = prompts.columns(block.at or Scope("all")).cpu()[reading.rows, reading.columns]
            found = torch.zeros(prompts.batch, own.shape[1], dtype=own.dtype)
            yield number, found.index_add_(0, reading.rows[inside], own[inside]).numpy()


def _raw(site: Site) -> str:
    return f"L{site.layer}.{raw_of(site.name)}"


def _earlier(block: Site, stream: str) -> bool:
    """Whether what a block writes is in the stream that the neuron reads."""
    return (block.layer or 0, block.kind.order) < Site.parse(stream).depth
