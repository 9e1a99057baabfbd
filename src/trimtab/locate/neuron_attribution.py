"""Neuron attribution: by how much a value vector alone raises the log probability of the answer.

Yu and Ananiadou 2024, "Neuron-Level Knowledge Attribution in Large Language Models", arXiv 2312.12141: a neuron, an
attention neuron or a head scores log p(w | h + v) − log p(w | h), where h is the stream that it adds its vector v to
and p is read through the final norm and the unembedding. Comparative neuron analysis, the same authors, arXiv
2409.14144, asks how that score changes when a head is ablated. Both count direct paths only: what a neuron does by way
of later layers is not in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from trimtab.errors import SiteError, TrimtabError
from trimtab.locate.increases import increases
from trimtab.locate.knowledge_neurons import at_last
from trimtab.locate.pairing import alone
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_increase
from trimtab.locate.units import Places, Spans, places
from trimtab.locate.written import refuse_normed_stream
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Progress = Callable[[int, int], None]
ATTENDING = ("head", "attn_neuron")
WRITERS = ("neuron", *ATTENDING)
On = Literal["clean", "corrupt"]


@alone
@planned_by(plan_increase)
def log_probability_increase(
    lm: LM,
    task: Task,
    sites: Reads = "L*.neuron",
    *,
    keys: Spans | None = None,
    top: int | None = None,
    estimate: bool = False,
    on: On = "clean",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """log p(answer | h + v) − log p(answer | h) of each neuron, attention neuron or head at the last position, in nats.

    For a neuron, v is its activation times its column of the down projection and h the stream that the MLP adds to
    (`resid_mid`; in parallel blocks `resid_pre`). For an attention neuron, one channel of a head's output, v is that
    number times its column of the output projection; for a head it is the sum of those of its channels (channel c of
    head i is attention neuron i·d_head + c). Both are added to `resid_pre`. p is read from h + v through the final
    norm, whose scale moves with v, and the unembedding. A post-norm between v and the stream is frozen.

    Args:
        sites: maps such as `"L*.neuron"`, `"L*.attn_neuron"` and `"L*.head"`, or candidates such as
            `["L20.neuron[3]", "L5.head[1]"]` (several units in one candidate: the sum of their vectors).
        keys: of a map of heads or attention neurons: spans of the prompt, such as `["S1", "S2"]`. Each vector is then
            split by where it was read: attention to the span's tokens times their values, through the output
            projection. The scores are then of edges, `L5.v@S1->L5.head[3]@-1`: what the head's output at the last
            position has of the values at the span.
        top: that many places, those of largest mean |estimate|, are computed exactly; the others are NaN. Each place
            costs an unembedding on every example, the estimates of a layer cost one together.
        estimate: the first-order estimate v·∂ log p/∂h for every place instead.
        on: which prompts of a counterfactual task; contrast tasks are read after their questions.
        batch_size: prompts that go through the model together.

    Returns:
        `Scores` in nats, of sites, or with `keys` of edges; with several answers, of the log probability of any of
        them.

    Raises ModelError where the stream itself is normed (OPT-350m), SiteError for other sites.

    >>> log_probability_increase(lm, task, "L*.neuron", top=300).top(5)  # doctest: +SKIP
    """
    where, measured = _prepared(lm, task, sites, keys, on, "log_probability_increase")
    split = keys is not None
    chosen = _best(lm, where, measured, top, estimate, batch_size, split)
    array = increases(
        lm,
        where,
        measured,
        exact=not estimate,
        split=split,
        chosen=chosen,
        batch_size=batch_size,
        progress=progress,
    )
    options = {"on": on, "top": top, "estimate": estimate, "keys": split}
    made = where.scores(array, lm, task, measured.prompts, "log_probability_increase", "nat", options)
    return made.with_(site="L{layer}.v@{span}->" + made.site.replace("@{span}", "@-1")) if split else made


@alone
@planned_by(plan_increase)
def comparative_neurons(
    lm: LM,
    task: Task,
    heads: str | Sequence[str],
    sites: Reads = "L*.neuron",
    *,
    strength: float = 1.0,
    top: int | None = None,
    estimate: bool = False,
    on: On = "clean",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """Comparative neuron analysis: the log probability increase of each neuron less what it is without some heads.

    Positive: the neuron raises the answer because of these heads. `heads` (`"L9.head[6]"`, or a list) are scaled by
    1 − `strength` at every position. `top` chooses by the estimates of the whole model's scores; the rest as in
    `log_probability_increase`.

    Raises SiteError where `heads` are something else.

    >>> comparative_neurons(lm, task, "L9.head[6]", "L10-29.neuron").top(5)  # doctest: +SKIP
    """
    ablated = lm.sites(heads)
    if wrong := [site for site in ablated if site.name != "head" or site.input is not None or site.view is not None]:
        raise SiteError(f"{wrong[0]} is no head: comparative_neurons ablates heads, such as L9.head[6]")
    where, measured = _prepared(lm, task, sites, None, on, "comparative_neurons")
    chosen = _best(lm, where, measured, top, estimate, batch_size)
    edits = [Edit(site, "scale", 1.0 - strength) for site in ablated]
    total = 2 * len(measured.prompts)

    def scored(number: int) -> np.ndarray:
        def report(done: int, of: int) -> None:
            if progress is not None:
                progress(number * of + done, total)

        on_ = edits if number else ()
        return increases(
            lm,
            where,
            measured,
            edits=on_,
            exact=not estimate,
            chosen=chosen,
            batch_size=batch_size,
            progress=report,
        )

    array = scored(0) - scored(1)
    options = {"heads": [str(site) for site in ablated], "strength": strength, "on": on, "top": top}
    options |= {"estimate": estimate}
    return where.scores(array, lm, task, measured.prompts, "comparative_neurons", "nat", options)


def _prepared(lm: LM, task: Task, sites: Reads, keys: Spans | None, on: On, method: str) -> tuple[Places, Measure]:
    refuse_normed_stream(lm, "a value vector")
    where = places(lm, sites, keys, mapped="last", alone="last")
    if keys is None:
        at_last(where, method, WRITERS)
    elif where.units is None or any(block.name not in ATTENDING or block.view is not None for block in where.blocks):
        raise SiteError(f"keys split a map of heads or attention neurons, L*.head or L*.attn_neuron, got {sites}")
    return where, measure(lm, task, on=on, metric="log_prob")


def _best(
    lm: LM, where: Places, measured: Measure, top: int | None, estimate: bool, batch_size: int, split: bool = False
) -> np.ndarray | None:
    """(…) the `top` places of largest mean |estimate|; None for all."""
    if top is None:
        return None
    if top < 1 or estimate:
        raise TrimtabError(f"top is how many places are computed exactly, 1 or more, and not estimated; got {top}")
    sizes = np.abs(increases(lm, where, measured, exact=False, split=split, batch_size=batch_size)).mean(0)
    best = np.zeros(sizes.size, bool)
    best[np.argsort(-sizes.ravel(), kind="stable")[:top]] = True
    return best.reshape(sizes.shape)
