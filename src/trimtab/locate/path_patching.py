"""Path patching: the effect of one head through one later head's query, key or value, or straight on the logits.

Wang et al. 2022, "Interpretability in the wild", arXiv 2211.00593 (its appendix B); Goldowsky-Dill et al. 2023, arXiv
2304.05969. The sender takes its value from the run of the twin prompt while every other head keeps its own; what then
arrives at the receiver is put into an otherwise normal run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from trimtab.errors import ModelError, SiteError, TaskError, TrimtabError, nearest
from trimtab.locate.naive_paths import naive_paths
from trimtab.locate.plans import Cost, plan_paths, planned_by
from trimtab.locate.sweep import Exact, Progress
from trimtab.locate.units import Spans, places
from trimtab.model.paths import Paths
from trimtab.model.provenance import provenance
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.site import INPUTS, Edge, Selection, Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Direction = Literal["denoise", "noise"]
MLPs = Literal["recompute", "freeze"]


def _plan(
    lm: LM,
    task: Task,
    *,
    senders: Reads,
    receivers: str | Site | Iterable[str | Site],
    spans: Spans | None,
    batch_size: int,
    **_: object,
) -> Cost:
    sending = places(lm, senders, spans, mapped="all").sites
    return plan_paths(lm, task, sending, _receivers(lm, receivers), batch_size)


@planned_by(_plan)
def path_patching(
    lm: LM,
    task: Task,
    senders: Reads = "L*.head",
    receivers: str | Site | Iterable[str | Site] = "logits",
    *,
    mlps: MLPs = "recompute",
    direction: Direction = "noise",
    spans: Spans | None = None,
    exact: Exact = "fast",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores[Edge]:
    """The effect of each sender through each receiver on the task's number.

    First, in the run of one prompt, the sender's output is that of the twin's run and all other heads keep their own
    outputs; MLPs are computed anew, or keep theirs too. What the receiver then reads is noted. Second, the receiver
    alone reads that in an otherwise normal run, and the task's number is compared with that of the run without it.

    Args:
        senders: heads, as a map `"L*.head"` or as candidates such as `["L3.head[0]@S2", "L9.head[6,9]"]` (the heads of
            one candidate send together).
        receivers: inputs of heads such as `"L9.head[6].q"`; `"L*.head.q"` for the query of each head, `"L*.head"` for
            the query, key and value of each; several heads in brackets receive together; `"logits"` is the direct path.
            Under grouped-query attention a head's key or value is its own copy: the other heads of its group read what
            they always did.
        mlps: "recompute": the path may go through MLPs between the two (the paper's way); "freeze": it may not.
        direction: "noise": the corrupt run's value in the clean run, M(clean) − M(patched); "denoise": the other way
            round, M(patched) − M(corrupt). Both are positive where the path makes for the answer.
        spans: positions at which the sender is changed, by default all of them.
        exact: "fast" shares what paths have in common; "naive" runs the model anew for each path.
        batch_size: prompts whose runs are held together.

    Returns:
        `Scores` over edges, in the metric's unit; NaN where a receiver does not come after the sender.

    Raises TaskError for contrast tasks, SiteError for senders that are no heads and receivers that are no inputs.

    >>> path_patching(lm, task, "L*.head", "L9.head[6].q").top(5)  # doctest: +SKIP
    """
    if task.shape != "counterfactual":
        raise TaskError(f"path_patching takes values from the twin prompt, and {task.name} has contrast examples")
    for given, what, ways in ((direction, "direction", ("noise", "denoise")), (mlps, "mlps", ("recompute", "freeze"))):
        if given not in ways:
            raise TrimtabError(f'{what} is "{ways[0]}" or "{ways[1]}", got {given!r}{nearest(str(given), ways)}')
    where = places(lm, senders, spans, mapped="all")
    sending, receiving = where.sites, _receivers(lm, receivers)
    if wrong := [site for site in sending if site.name != "head" or site.view or site.expert]:
        raise SiteError(f"{wrong[0]} is no head: paths start at heads, as in L*.head or L3.head[0]@S2")
    sending = [s if s.index else s.with_(index=tuple(range(lm.anatomy.n_heads))) for s in sending]
    both = sides(lm, task)
    measured = measure(lm, task, on="clean" if direction == "noise" else "corrupt")
    other = both.negative if direction == "noise" else both.positive
    possible = [[r.layer is None or r.layer > (s.layer or 0) for r in receiving] for s in sending]
    total = int(np.sum(possible)) * len(measured.prompts)
    heads = lm.sites("L*.head")
    changes = np.full((len(measured.prompts), len(sending), len(receiving)), np.nan)
    done, note = 0, ""

    def report(paths: int) -> None:
        nonlocal done
        done += paths
        if progress is not None:
            progress(done, total)

    for rows in batches(measured.prompts, 2 * sum(int(np.prod(lm.shape(site))) for site in heads), batch_size):
        prompts, twins = measured.prompts.rows(rows, trim=True), other.rows(rows, trim=True)
        readout = measured.readout.of_rows(rows)
        if exact == "fast" and not note:
            try:
                for i, row in enumerate(rows):
                    one = lm.run(twins.rows([i], trim=True), heads, logits=False)
                    of_one = Paths(lm, prompts.rows([i], trim=True), one, readout.of_rows([i]), freeze=mlps == "freeze")
                    changes[row] = of_one.effects(sending, receiving, report).double().cpu().numpy()
                continue
            except ModelError as reason:
                note = f"computed by whole forward passes: {reason}"
        naive = naive_paths(lm, prompts, twins, readout, sending, receiving, mlps == "freeze", report)
        changes[rows] = naive.double().cpu().numpy()
    options = {"task": task.name, "spans": list(where.spans), "mlps": mlps} | ({"note": note} if note else {})
    options["no_path"] = int(np.size(possible) - np.sum(possible))
    effects = -changes if direction == "noise" else changes
    return Scores(
        effects.reshape(len(effects), *where.shape, len(receiving)),
        (*where.dims, "receiver"),
        {**where.coords, "receiver": tuple(map(str, receiving))},
        where.site + "->{receiver}",
        unit=measured.unit,
        method="path_patching",
        options=options,
        direction=direction,
        groups=task.groups,
        provenance=provenance(lm, measured.prompts, "path_patching", options),
    )


def _receivers(lm: LM, given: str | Site | Iterable[str | Site]) -> list[Site]:
    """Inputs of heads, each head of a layer alone unless heads are named, and the logits."""
    found: list[Site] = []
    for each in [given] if isinstance(given, str | Site) else given:
        selection = Selection.parse(each)
        site = selection.site
        if site.name not in ("head", "logits") or site.view is not None or site.at is not None:
            raise SiteError(
                f"{site} receives no path: receivers are a head's query, key or value, as in L9.head[6].q, L*.head.k "
                'or L*.head (all three), at all positions, and "logits"'
            )
        if site.name == "logits":
            found.append(site)
            continue
        if site.index is None:
            selection = replace(selection, every=selection.every | {"unit"})
        heads = selection.expand(lm.anatomy.n_layers, lambda s: lm.anatomy.n_heads)
        for head in heads:
            lm.anatomy.check(head.with_(input=None))
        found += [head.with_(input=name) for head in heads for name in ((head.input,) if head.input else INPUTS)]
    return list(dict.fromkeys(found))
