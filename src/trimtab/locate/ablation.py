"""Ablation: a place loses what it says about the example at hand, and the task's number tells what is lost with it.

Resampling puts another example's activation there, which is the kindest replacement: a typical value that belongs
to the model (Chan et al. 2022, causal scrubbing, https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN). The mean
(Wang et al. 2022, arXiv 2211.00593) is typical as a whole but may be no value that ever occurs; zero and noise take the
model where it has never been, and overstate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import SiteError, TaskError, TrimtabError, nearest
from trimtab.evaluate.resampling import donors, resampled
from trimtab.locate.pairing import alone
from trimtab.locate.plans import plan_ablation, planned_by
from trimtab.locate.sweep import Exact, Make, Progress, Variants, intervenes, sweep
from trimtab.locate.units import Places, Spans, places
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary, Source
from trimtab.model.run import Run
from trimtab.tasks.means import batches, deviations
from trimtab.tasks.measure import measure
from trimtab.tasks.reference import name_of, reference_prompts
from trimtab.tasks.task import Task
from trimtab.tasks.typical import FIRST, from_first, typical
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Kind = Literal["resample", "mean", "zero", "noise"]


@alone
@planned_by(plan_ablation)
@intervenes
def ablation(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    spans: Spans | None = None,
    kind: Kind = "resample",
    on: Literal["clean", "corrupt"] = "clean",
    reference: Task | Prompts | None = None,
    per_position: bool = False,
    sigma: float = 1.0,
    cumulative: bool = False,
    seed: int = 0,
    exact: Exact = "fast",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """How much of the task's number is lost when a place is ablated: M(before) − M(after).

    Positive where the place makes for the behaviour, like `patching` with `direction="noise"`. By `kind`, a place is

    "resample": set to its value in another example's prompt, of another group where there is one, and as long as
        possible alike in length. First token goes to first token, the others are counted from the end.
    "mean": set to its mean over the examples, or over those of `reference`, of the tokens of the span. First tokens of
        a prompt, which draw attention and have activations like no other's, do not count in it: they are set to the
        mean of first tokens, whatever the span.
    "zero": set to zero.
    "noise": given Gaussian noise of `sigma` standard deviations of each entry, taken over all tokens but the first.

    Args:
        sites: a map such as `"L*.head"`, each of whose units is ablated alone, or a list of candidates such as
            `["L5.head[3]", "L9.mlp_out@end", "L5.neuron[3,17]"]`.
        spans: positions that are ablated, "all" by default.
        on: which prompts of a counterfactual task; contrast tasks are measured after their questions.
        reference: what the "mean" is taken over instead of the examples: another task, whose prompts are read where
            this one's are, or prompts such as `lm.prompts(texts)`. They need the spans that are ablated.
        per_position: the "mean" at each position by itself, over prompts of one template: all of the same number of
            tokens. What every prompt has at a position is then kept, and only what tells them apart is lost.
        cumulative: each candidate of a list together with all that stand before it: what is left when the first k are
            gone. With the list in the order of another method's `top`, that method's faithfulness curve.
        seed: of the draw of examples, or of the noise.
        exact: "fast" computes what changes; "naive" runs the model once for each place.
        batch_size: prompts whose runs are held together.

    Returns:
        `Scores` in the metric's unit.

    Zeroing the weights that a head or a neuron writes with (its rows of the output or down projection) is "zero": what
    it writes is then nothing, and the projection's bias is not its own.

    Raises TaskError when there is no other example to resample, for means by position of prompts that differ in length,
    and for the mean of later tokens over prompts in which the span covers first ones alone; PromptError for a span that
    a reference lacks; SiteError for noise at features and for a map that is to be ablated cumulatively, which has no
    order.

    >>> ablation(lm, task, "L*.mlp_out", kind="mean").top(3)  # doctest: +SKIP
    """
    kinds = ("resample", "mean", "zero", "noise")
    if kind not in kinds:
        raise TrimtabError(f'no ablation "{kind}"{nearest(str(kind), kinds)}: there are {", ".join(kinds)}')
    for name, given in (("per_position", per_position), ("reference", reference is not None)):
        if given and kind != "mean":
            raise TrimtabError(f'{name} says how a mean is taken, and this ablation is "{kind}": give kind="mean"')
    where = places(lm, sites, spans, mapped="all", dictionaries=dictionaries)
    measured = measure(lm, task, on=on)
    prompts = measured.prompts
    if kind == "resample":
        groups = [measured.groups[example] for example in measured.owner]
        make = _resampled(lm, where, prompts, donors(prompts, groups, measured.owner, seed))
    elif kind == "mean":
        over = reference_prompts(lm, task, reference, on)
        if per_position:
            make = _averaged_by_position(lm, where, prompts, over, batch_size)
        else:
            make = _averaged(lm, where, prompts, over, batch_size, dictionaries)
    elif kind == "zero":
        make = _always([Edit(site, "set", 0.0) for site in where.sites])
    else:
        make = _noised(lm, where, prompts, sigma, seed, batch_size)
    if cumulative and where.units is not None:
        raise SiteError(
            f"{sites} is a map, which has no order: list the sites to ablate one after the other, as in scores.top(10)"
        )
    changes = sweep(
        lm,
        measured,
        _together(make) if cumulative else make,
        where.tensors,
        exact=exact,
        batch_size=batch_size,
        dictionaries=dictionaries,
        progress=progress,
    )
    options = {"kind": kind, "cumulative": cumulative, "seed": seed} | ({"sigma": sigma} if kind == "noise" else {})
    options |= {"per_position": per_position} if kind == "mean" else {}
    options |= {"reference": name_of(reference)} if reference is not None else {}
    options |= {"on": on} if task.shape == "counterfactual" else {}
    direction = "noise" if options.get("on") == "clean" else None  # what patching the clean prompts is called
    return where.scores(-changes, lm, task, prompts, "ablation", measured.unit, options, direction)


def _together(make: Make) -> Make:
    """Each variant with all before it."""

    def joined(rows: list[int], prompts: Prompts) -> tuple[Variants, Mapping[str, Source]]:
        variants, runs = make(rows, prompts)
        listed = [[variant] if isinstance(variant, Edit) else list(variant) for variant in variants]
        return [[edit for part in listed[: i + 1] for edit in part] for i in range(len(listed))], runs

    return joined


def _always(variants: Variants) -> Make:
    return lambda rows, prompts: (variants, {})


def _resampled(lm: LM, where: Places, prompts: Prompts, partner: Sequence[int]) -> Make:
    variants = [Edit(site, "set", Ref("other")) for site in where.sites]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        return variants, {"other": resampled(lm, prompts, partner, rows, part, where.tensors)}

    return make


def _averaged_by_position(lm: LM, where: Places, prompts: Prompts, over: Prompts, batch_size: int) -> Make:
    """Every place of the prompts at the mean, at each of its positions, over all of `over`: the two have the same
    number of tokens in every row."""
    if features := [block for block in where.blocks if block.view is not None]:
        raise SiteError(f"{features[0]}: means by position are of the model's own tensors; leave per_position out")
    lengths = sorted({*prompts.lengths.tolist(), *over.lengths.tolist()})
    if len(lengths) > 1:
        raise TaskError(
            f"per_position takes the mean of the tokens at one position of a template, and these prompts have "
            f"{lengths[0]} to {lengths[-1]} tokens, so that a position is another word's in each: give prompts (and a "
            "reference) of one template and length, or leave per_position out"
        )
    total: dict[Site, Tensor] = {}
    for rows in batches(over, sum(int(np.prod(lm.shape(site))) for site in where.tensors), batch_size):
        run = lm.run(over.rows(rows, trim=True), where.tensors, logits=False)
        for site in where.tensors:  # the same length: no row is padded
            summed = run.whole(site).double().cpu().sum(0)
            total[site] = summed + total[site] if site in total else summed
    means = {site: (summed / len(over)).to(lm.device, lm.dtype) for site, summed in total.items()}
    variants = [Edit(site, "set", Ref("mean")) for site in where.sites]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        return variants, {"mean": Run(part, None, {s: m.expand(len(rows), *m.shape) for s, m in means.items()})}

    return make


def _averaged(
    lm: LM,
    where: Places,
    prompts: Prompts,
    over: Prompts,
    batch_size: int,
    dictionaries: Mapping[str, Dictionary] | None,
) -> Make:
    """Every place of the prompts at the mean, over all of `over`: first tokens at that of first tokens, the others at
    that of the other tokens of its span."""
    means = typical(lm, over, where.blocks, batch_size=batch_size, dictionaries=dictionaries)
    covered = {at: from_first(prompts, at) for at in dict.fromkeys(block.at or Scope("all") for block in where.blocks)}

    def value(site: Site, first: bool) -> np.ndarray:
        block = site if where.units is None else site.with_(index=None)
        mean = means.first[block] if first else means.of_later(block)
        return mean if where.units is None else mean[list(site.index or ())]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        later = {at: tuple(i for i, row in enumerate(rows) if any(c[row])) for at, c in covered.items()}
        first = {at: tuple(i for i, row in enumerate(rows) if 0 in c[row]) for at, c in covered.items()}
        variants = []
        for site in where.sites:
            at, edits = site.at or Scope("all"), []
            if later[at]:
                edits.append(Edit(site, "set", value(site, first=False), rows=later[at]))
            if first[at]:
                edits.append(Edit(site.with_(at=FIRST), "set", value(site, first=True), rows=first[at]))
            variants.append(edits)
        return variants, {}

    return make


def _noised(lm: LM, where: Places, prompts: Prompts, sigma: float, seed: int, batch_size: int) -> Make:
    if features := [block for block in where.blocks if block.view is not None]:
        raise SiteError(f"{features[0]}: noise is added to the model's own tensors; use kind resample, mean or zero")
    std = deviations(lm, where.tensors, prompts, batch_size)
    variants = [Edit(site, "add", Ref("noise")) for site in where.sites]

    def make(rows: list[int], part: Prompts) -> tuple[Variants, dict[str, Run]]:
        drawn: dict[Site, Tensor] = {}
        for site in where.tensors:
            values = np.zeros((*part.ids.shape, *std[site].shape), np.float32)
            for i, (row, start) in enumerate(zip(rows, part.start.tolist(), strict=True)):
                length = len(part.tokens[i])
                rng = np.random.default_rng([seed, row, crc32(str(site).encode())])
                values[i, start : start + length] = rng.standard_normal((length, *std[site].shape), np.float32)
            drawn[site] = torch.as_tensor(values * (sigma * std[site]).astype(np.float32)).to(lm.device)
        return variants, {"noise": Run(part, None, drawn)}

    return make
