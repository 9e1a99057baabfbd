"""AtP*: attribution patching without two of its blind spots, for every place at once.

Kramár et al. 2024, arXiv 2403.00745. Plain attribution patching (Nanda 2023) reads the slope of the softmax, which says
nothing of a query or key that moves attention from one saturated place to another; here the softmax is recomputed with
the patched query or key and only the way from the pattern to the metric is linear. GradDrop replaces the effect by the
mean size of the effects with one layer's gradient left out, so that opposite paths cannot cancel.

The recomputed softmax is the model's own (soft cap, ALiBi, sliding window and rotary included): in one more forward
pass every layer gets the other run's queries, and its attention output is put back, so each layer sees the base run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import TaskError, TrimtabError
from trimtab.locate.audit import audit_scores
from trimtab.locate.keys import key_changes
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_atp_star
from trimtab.locate.slopes import (
    at_once,
    check_choice,
    check_gradients,
    differentiates,
    entries,
    gathered,
    place_sums,
    values,
)
from trimtab.locate.units import Places, Spans, default_spans, places
from trimtab.model.graddrop import dropped_gradients
from trimtab.model.gradient import Gradients
from trimtab.model.prompts import Prompts
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Direction = Literal["denoise", "noise"]
Fixed = Literal["q", "k"]

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "final", "logits")
"""Sites that no layer's gradient is all of: leaving a layer out leaves the stream."""
SQUARES = 1 << 27
"""Attention scores (numbers) that may be held at once."""


@planned_by(plan_atp_star)
@differentiates
def atp_star(
    lm: LM,
    task: Task,
    sites: Reads = "L*.head",
    *,
    spans: Spans | None = None,
    direction: Direction = "denoise",
    fix: tuple[Fixed, ...] = ("q", "k"),
    grad_drop: bool = True,
    verify: int = 0,
    audit: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    memory: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Attribution patching with the softmax recomputed for queries and keys, and effects that cannot cancel.

    Queries: Σ_t ∂M/∂pattern_t · (pattern′_t − pattern_t), with the pattern recomputed for the other run's query. Keys
    of a span S, all other keys as they are: Σ_q Σ_{t∈S} a_qt·expm1(δ_qt)/Z_q·(g_qt − Σ_i a_qi·g_qi) with Z_q = 1 +
    Σ_{t∈S} a_qt·expm1(δ_qt), δ the change of the attention logit and g = ∂M/∂pattern; for a key-value head summed over
    its query group. Everything else: (a_other − a_base)·∂M/∂a. GradDrop: the mean over layers of that effect's size
    with the gradient through the layer left out, over n_layers − 1 of them for what lies inside a layer (its own
    leaves nothing) and n_layers for the stream. Sizes have no sign.

    Args:
        sites: a map such as `"L*.head"` or `"L*.q"`, or a list of candidates such as `["L5.head[3]", "L9.k[1]@S2"]`.
            The softmax is recomputed for queries and keys; a map of heads is about their outputs.
        spans: positions that are patched; by default the task's own spans and "end".
        direction: clean activations into the corrupt run, or the other way round, with the sign turned as in
            `patching`.
        fix: recompute the softmax for these.
        grad_drop: mean sizes instead of effects with a sign, at the cost of about half a backward pass for each layer.
            It is meant for places whose paths cancel; without it the effects keep their sign.
        verify: so many of the strongest places are patched exactly, and `audit` of the others drawn at random;
            `options["audit"]` says what came of it. `locate.audit_scores` gives the same with all its numbers.
        batch_size, memory: as in `attribution_patching`.

    Returns:
        `Scores` in the metric's unit, not negative with `grad_drop`. `options["applied"]` says which of "q", "k" and
        "grad_drop" had a part in them: where it is empty they are those of `attribution_patching`.

    Raises TaskError for contrast tasks, EditError for a metric without a gradient, SiteError for features, TrimtabError
    for `audit` without `verify`.

    >>> atp_star(lm, task, "L*.q", grad_drop=False).top(5)  # doctest: +SKIP
    """
    check_choice("direction", direction, ("denoise", "noise"))
    if wrong := [part for part in fix if part not in ("q", "k")]:
        raise TrimtabError(f'fix is any of "q" and "k", got {wrong[0]!r}')
    if task.shape != "counterfactual":
        raise TaskError(f"atp_star needs twin prompts, and {task.name} has contrast examples: use attribution_patching")
    if verify < 0 or audit < 0 or (audit and not verify):
        raise TrimtabError(
            f"audit draws from what verify leaves behind, so it needs verify=1 or more, got verify={verify} and "
            f"audit={audit}; locate.audit_scores does both for scores that are there"
        )
    check_gradients(lm, sites)
    where = places(lm, sites, spans, mapped=default_spans(task))
    measured = measure(lm, task, on="clean" if direction == "noise" else "corrupt")
    both = sides(lm, task)
    others = both.positive if direction == "denoise" else both.negative
    wide = np.float64 if lm.dtype == torch.float64 else np.float32
    out = np.zeros((len(measured.prompts), *where.shape), wide)
    tensors = list(dict.fromkeys(site for block in where.blocks for site in _needed(lm, block.whole, fix)))
    done, most = 0, at_once(lm, memory)
    held = entries(lm, tensors) + len(where.blocks) * lm.anatomy.n_heads * lm.anatomy.d_head
    for rows in batches(measured.prompts, held, batch_size, most):
        prompts, readout = measured.prompts.rows(rows, trim=True), measured.readout.of_rows(rows)
        other = lm.run(others.rows(rows, trim=True), where.tensors, logits=False)
        if grad_drop:
            steps = dropped_gradients(lm, prompts, readout, tensors)
        else:
            steps = iter([(None, lm.gradients(prompts, readout, tensors))])
        out[rows] = _effects(lm, where, prompts, other, steps, fix, grad_drop, most)
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts) * (2 if verify else 1))
    examples = np.zeros((len(measured), *where.shape), wide)
    np.add.at(examples, measured.owner, out if grad_drop or direction == "denoise" else -out)
    applied = [part for part in fix if any(_kind(block) == part for block in where.blocks)]
    applied += ["grad_drop"] if grad_drop else []
    options: dict[str, object] = {"fix": list(fix), "grad_drop": grad_drop, "applied": applied}
    made = where.scores(examples, lm, task, measured.prompts, "atp_star", measured.unit, options, direction)
    if not verify and not audit:
        return made
    told = None if progress is None else partial(_second_half, progress, len(measured.prompts))
    found = audit_scores(lm, task, made, k=verify, sample=audit, seed=seed, batch_size=batch_size, progress=told)
    return made.with_(options={**made.options, "audit": found.summary()})


def _second_half(progress: Callable[[int, int], None], first: int, done: int, total: int) -> None:
    """Tell how far the exact patching is, which counts as much as the `first` prompts of the estimate."""
    progress(first + first * done // max(total, 1), 2 * first)


def _effects(
    lm: LM,
    where: Places,
    prompts: Prompts,
    other: Run,
    steps: Iterator[tuple[int | None, Gradients]],
    fix: tuple[Fixed, ...],
    grad_drop: bool,
    most: int,
) -> np.ndarray:
    """(row …) the effect of each place, or the mean size over the layers left out."""
    _, first = next(steps)
    changes = _changes(lm, where, prompts, first.activations, other, fix, most)
    plain = changes.effects(first.gradients, where.blocks)
    if not grad_drop:
        return where.array(plain[block] for block in where.blocks)
    layers = lm.anatomy.n_layers
    total = {block: np.zeros_like(numbers) for block, numbers in plain.items()}
    count = dict.fromkeys(where.blocks, 0)
    for _, dropped in steps:
        reached = set(dropped.gradients)
        below = [block for block in where.blocks if changes.read_at(block) in reached]
        for block, numbers in changes.effects(dropped.gradients, below).items():
            total[block] += np.abs(numbers)
            count[block] += 1
    for block, numbers in plain.items():  # layers before the place change nothing
        total[block] += (layers - count[block]) * np.abs(numbers)
        if block.name in STREAM or layers > 1:
            total[block] /= layers if block.name in STREAM else layers - 1
        else:  # of its own layer alone nothing can be left out
            total[block] = np.abs(numbers)
    return where.array(total[block] for block in where.blocks)


class _Changes:
    """What each block changes, at the tensor where its gradient is read."""

    def __init__(self, where: Places, prompts: Prompts) -> None:
        self.where, self.prompts = where, prompts
        self.at: dict[Site, Tensor] = {}
        """Of a tensor (batch pos unit …): its own change, or what its change makes of the heads' outputs."""
        self.keys: dict[Site, Tensor] = {}
        """Of a block of keys (batch pos head d_head): what its change makes of the heads' outputs at every query."""
        self.moved: dict[Site, Site] = {}
        """Queries and keys -> the heads' outputs that stand for them."""
        self.n_kv = 1

    def read_at(self, block: Site) -> Site:
        """The tensor whose gradient a block's effect is read from."""
        return self.moved.get(block.whole, block.whole)

    def effects(self, gradients: Run, blocks: tuple[Site, ...] | list[Site]) -> dict[Site, np.ndarray]:
        """(row unit) change times gradient of each block, summed over positions and entries."""
        units = self.where.units
        own = [block for block in blocks if block not in self.keys]

        def number(tensor: Site) -> Tensor:
            return self.at[tensor] * values(gradients, self.moved.get(tensor, tensor))

        found = place_sums(own, units, self.prompts, number)
        for block in blocks:
            if block in self.keys:
                heads = (self.keys[block] * values(gradients, self.moved[block.whole])).sum((1, 3))
                found[block] = gathered(heads.unflatten(1, (self.n_kv, -1)).sum(2), block, units)
        return found


def _changes(
    lm: LM, where: Places, prompts: Prompts, base: Run, other: Run, fix: tuple[Fixed, ...], most: int
) -> _Changes:
    made = _Changes(where, prompts)
    made.n_kv = lm.anatomy.n_kv
    tensors = list(dict.fromkeys(block.whole for block in where.blocks))
    for tensor in tensors:
        if _kind(tensor) in fix:
            made.moved[tensor] = Site("head", tensor.layer)
        else:
            made.at[tensor] = values(other, tensor) - values(base, tensor)
    queries = [tensor for tensor in made.moved if _kind(tensor) == "q"]
    keys = [tensor for tensor in made.moved if _kind(tensor) == "k"]
    if queries:
        edits = _put_in(queries, base, other)
        heads = [made.moved[tensor] for tensor in queries]
        run = lm.run(
            prompts, heads, [e for pair in edits for e in pair], logits=False, runs={"base": base, "other": other}
        )
        for tensor, head in zip(queries, heads, strict=True):
            made.at[tensor] = values(run, head) - values(base, head)
    for part in _within(lm, keys, prompts, min(SQUARES, most)):
        scores = [Site("scores", tensor.layer) for tensor in part]
        edits = [e for pair in _put_in(part, base, other) for e in pair]
        before = lm.run(prompts, scores, logits=False)
        after = lm.run(prompts, scores, edits, logits=False, runs={"base": base, "other": other})
        for tensor, site in zip(part, scores, strict=True):
            v = Site("v", tensor.layer)
            members = [block for block in where.blocks if block.whole == tensor]
            moved = key_changes(
                values(before, site).transpose(1, 2),
                values(after, site).transpose(1, 2),
                values(base, v),
                [prompts.columns(Scope("all") if block.at is None else block.at) for block in members],
            )
            real = prompts.mask.bool()[..., None, None]
            made.keys.update(
                (block, torch.where(real.to(x.device), x, 0.0)) for block, x in zip(members, moved, strict=True)
            )
    return made


def _put_in(tensors: list[Site], base: Run, other: Run) -> list[tuple[Edit, Edit]]:
    """The other run's values, and the base run's attention output after them: no layer sees another's change."""
    return [
        (Edit(tensor, "set", Ref("other")), Edit(Site("attn_raw", tensor.layer), "set", Ref("base")))
        for tensor in tensors
    ]


def _needed(lm: LM, tensor: Site, fix: tuple[Fixed, ...]) -> Iterator[Site]:
    """The tensors of the base run that a place's effect is worked out from."""
    layer = tensor.layer
    match _kind(tensor):
        case "q" if "q" in fix:
            yield from (Site("head", layer), Site("attn_raw", layer))
        case "k" if "k" in fix:
            yield from (Site("head", layer), Site("attn_raw", layer), Site("v", layer))
        case _:
            yield tensor


def _kind(tensor: Site) -> str:
    return tensor.name.removeprefix("rot_") if tensor.name in ("rot_q", "rot_k") else tensor.name


def _within(lm: LM, keys: list[Site], prompts: Prompts, most: int) -> Iterator[list[Site]]:
    """Layers whose attention logits, `most` numbers of them, are held together."""
    each = 2 * prompts.batch * lm.anatomy.n_heads * prompts.width**2
    layers = max(1, most // each)
    for start in range(0, len(keys), layers):
        yield keys[start : start + layers]
