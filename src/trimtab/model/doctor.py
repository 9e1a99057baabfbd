"""A check-up of a loaded model: its identities, how exact the engine is on it, and what common jobs will cost.

Everything is measured on a few arbitrary tokens, so the words do not matter and no data is needed. Times of single
passes are measured; those of sweeps are worked out from the engine's own plan and two measured passes, and are meant to
tell seconds from minutes from hours.
"""

from __future__ import annotations

import copy
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from trimtab.model.identities import TOLERANCE, Identity, identities, probe_prompts
from trimtab.model.memory import free_memory, row_bytes
from trimtab.model.protocols import all_logits, logit_diff
from trimtab.model.run import Run
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.model.prompts import Prompts

SHORT, LONG = 14, 128
"""Tokens of the two passes that are measured."""
DIFFERS = 9
"""The first token in which the clean and the corrupt prompt of the sweeps differ, counted from 0."""
MOST_LAYERS, CHECKED = 30, 13
"""Layers that the engine is tried on, and how many of its cells are compared with whole passes."""
HARVEST = 1_000_000
_LAYER = re.compile(r"L(\d+)\.")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One identity in every layer that has it: the worst of them. Errors are relative to the largest entry."""

    name: str
    layers: int
    worst: int | None
    """The layer of the largest error; None for an identity of the whole model."""
    error: float
    tolerance: float
    holds: bool


@dataclass(frozen=True)
class Deviation:
    """How far the engine's results are from whole forward passes, in one number format.

    `largest` is in logits, `relative` to the largest logit; `rounding` is how far the unedited model's own logits in
    this format are from those in float32, None where there was no float32 to compare with.
    """

    dtype: str
    cells: int
    largest: float
    relative: float
    rounding: float | None
    holds: bool


@dataclass(frozen=True)
class Job:
    """What a common job costs on this machine: seconds, and bytes beyond the model (on disk where it says so)."""

    name: str
    seconds: float
    bytes: int
    measured: bool
    detail: str = ""


@dataclass(frozen=True)
class Checkup:
    """What `checkup` found out about a model."""

    model: str
    dtype: str
    device: str
    checks: tuple[Check, ...]
    deviations: tuple[Deviation, ...]
    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether every identity holds, that of the engine in float32 among them."""
        return all(check.holds for check in self.checks) and all(d.holds for d in self.deviations)


def checkup(lm: LM, *, progress: Progress | None = None) -> Checkup:
    """Identities, the engine's deviation in float32 and bfloat16, and times and memory of common jobs.

    `progress` is told what comes next. Copies of the model in another number format are made one at a time and only
    where memory allows it; `notes` says what was left out.
    """
    say = progress or (lambda stage: None)
    say("identities")
    checks = grouped(list(identities(lm)))
    deviations, notes = _deviations(lm, say)
    jobs, more = _jobs(lm, say)
    dtype = str(lm.dtype).removeprefix("torch.")
    return Checkup(lm.name, dtype, str(lm.device), checks, deviations, jobs, (*notes, *more))


def grouped(found: Sequence[Identity]) -> tuple[Check, ...]:
    """The same identity of all layers as one line, that of the layer where it is furthest from holding."""
    groups: dict[str, list[tuple[int | None, Identity]]] = {}
    for identity in found:
        match = _LAYER.match(identity.name)
        name = identity.name[match.end() :] if match else identity.name
        groups.setdefault(name, []).append((int(match[1]) if match else None, identity))
    checks = []
    for name, members in groups.items():
        layer, worst = max(members, key=lambda member: (not member[1].holds, _size(member[1])))
        checks.append(Check(name, len(members), layer, worst.error, worst.tolerance, worst.holds))
    return tuple(checks)


def _size(identity: Identity) -> float:
    return identity.error if identity.error == identity.error else float("inf")


# The engine against whole passes --------------------------------------------------------------------------------------


def _deviations(lm: LM, say: Progress) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
    found: list[Deviation] = []
    notes: list[str] = []
    reference: torch.Tensor | None = None
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        other = lm if lm.dtype == dtype else None
        if other is None:
            reason = _no_copy(lm, dtype)
            if reason is not None:
                notes.append(f"the engine's deviation in {name} was not measured: {reason}")
                continue
            other = _cast(lm, dtype)
        say(f"the engine against whole passes in {name}")
        deviation, base = _deviation(other, name, reference)
        found.append(deviation)
        reference = base if dtype == torch.float32 else reference
        del other
    return tuple(found), tuple(notes)


def _deviation(lm: LM, name: str, reference: torch.Tensor | None) -> tuple[Deviation, torch.Tensor]:
    prompts, clean = _pair(lm)
    a = lm.anatomy
    step = max(1, a.n_layers // MOST_LAYERS)
    layers = range((a.n_layers - 1) % step, a.n_layers, step)
    places = sorted({min(DIFFERS, prompts.width - 1), prompts.width - 1})
    variants: list[Edit] = []
    for layer in layers:
        stream = Site("resid_pre", layer)
        variants += [Edit(stream, "set", Ref("clean"), where=Scope("index", index=place)) for place in places]
        variants += [Edit(Site("head", layer, index=(a.n_heads - 1,)), "scale", 0.0)]
        variants += [Edit(Site("mlp_out", layer), "scale", 0.5)]
    few = sorted({round(i * (len(variants) - 1) / (CHECKED - 1)) for i in range(CHECKED)})
    runs = {"clean": lm.run(clean, [Site("resid_pre", layer) for layer in layers], logits=False)}
    fast = lm.counterfactuals(prompts, variants, all_logits(), runs=runs)  # all, so that batches are those of a sweep
    naive = lm.counterfactuals(prompts, [variants[i] for i in few], all_logits(), runs=runs, exact="naive")
    largest = float((fast.values[few].double() - naive.values.double()).abs().max())
    relative = largest / max(float(naive.values.abs().max()), 1e-30)
    base = naive.base.double().cpu()
    rounding = None if reference is None else float((base - reference).abs().max())
    holds = relative <= TOLERANCE[torch.float32] if name == "float32" else largest == largest
    return Deviation(name, len(few), largest, relative, rounding, holds), base


def _no_copy(lm: LM, dtype: torch.dtype) -> str | None:
    """Why no copy of the model in another number format can be made here, or None."""
    if getattr(lm.hf, "is_quantized", False):
        return "the model is quantised"
    if len(getattr(lm.hf, "hf_device_map", None) or {}) > 1:
        return "the model is spread over several devices"
    need = sum(p.numel() for p in lm.hf.parameters()) * dtype.itemsize
    free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else free_memory()
    if 1.5 * need > free:
        return f"a copy takes {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
    return None


def _cast(lm: LM, dtype: torch.dtype) -> LM:
    """A copy of the model in another number format."""
    from trimtab.model.lm import LM

    hf = copy.deepcopy(lm.hf)
    torch.nn.Module.to(hf, dtype)
    return LM(hf, lm.tokenizer, name=lm.name, check=False)


def _pair(lm: LM) -> tuple[Prompts, Prompts]:
    """Two prompts of arbitrary tokens that differ in one."""
    corrupt = probe_prompts(lm, min(SHORT, _most(lm)))
    ids = corrupt.ids.clone()
    place = min(DIFFERS, corrupt.width - 1)
    ids[:, place] = (ids[:, place] + 5) % lm.anatomy.vocab
    return corrupt, lm.prompts(ids.tolist())


def _most(lm: LM) -> int:
    """How many tokens the model takes."""
    config = lm.hf.config
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "seq_length"))
    return next((int(limit) for limit in limits if isinstance(limit, int) and limit > 0), LONG)


# What jobs cost -------------------------------------------------------------------------------------------------------


def _jobs(lm: LM, say: Progress) -> tuple[tuple[Job, ...], tuple[str, ...]]:
    a, itemsize = lm.anatomy, lm.dtype.itemsize
    prompts, clean = _pair(lm)
    long = probe_prompts(lm, min(LONG, _most(lm)))
    notes: list[str] = []
    say("time of single passes")
    short_s, long_s = (_seconds(lm, lambda p=p: lm.run(p)) for p in (prompts, long))
    each = max(long_s - short_s, 0.0) / max(long.width - prompts.width, 1)
    fixed = max(short_s - prompts.width * each, 0.0)

    def held(tokens: int, layers: int = 1) -> int:
        return layers * row_bytes(lm, tokens, tokens) + tokens * a.vocab * max(itemsize, 4)

    jobs = [
        Job(f"one pass of {p.width} tokens", s, held(p.width), True) for p, s in ((prompts, short_s), (long, long_s))
    ]

    say("plans of sweeps")
    readout = logit_diff([1], [2])
    stream = [Site("resid_pre", layer) for layer in range(a.n_layers)]
    places = [Scope("index", index=i) for i in range(prompts.width)]
    sweep = [Edit(site, "set", Ref("clean"), where=place) for site in stream for place in places]
    heads = [Edit(Site("head", i, index=(h,)), "scale", 0.0) for i in range(a.n_layers) for h in range(a.n_heads)]
    sizes = f"{a.n_layers} x {prompts.width}"
    for name, variants in ((f"residual patching, {sizes}", sweep), ("ablation of every head", heads)):
        planned = lm.plan(prompts, variants, readout, runs={"clean": Run(clean, origin=lm)})
        groups = len({cell.column for cell in planned.cells}) or 1
        seconds = planned.passes * prompts.width * each + (groups + 1) * fixed
        size = planned.base_bytes + planned.chunk * planned.bytes_each
        detail = f"{planned.computed} of {planned.total} cells, work of {planned.passes:.0f} passes"
        jobs.append(Job(name, seconds, size, False, detail))

    say("gradients")
    try:
        seconds = _seconds(lm, lambda: lm.gradients(prompts, readout, ["L*.head", "L*.mlp_out"]))
    except (RuntimeError, NotImplementedError) as error:
        notes.append(f"attribution patching was not measured: {str(error).splitlines()[0]}")
    else:
        size = held(prompts.width, a.n_layers)
        jobs.append(Job("attribution patching", short_s + seconds, size, True, "one pair: two passes, one backward"))

    say("generation")
    cache = 2 * a.n_layers * a.n_kv * a.d_head * itemsize
    jobs.append(Job("generation, one token", _step_seconds(lm, prompts), cache, True, "memory of its keys and values"))

    say("harvest")
    site = Site("resid_post", a.n_layers // 2)
    seconds = _seconds(lm, lambda: lm.run(long, [site], logits=False)) / long.width * HARVEST
    jobs.append(Job("harvest of 1M tokens", seconds, HARVEST * a.d_model * 2, False, f"{site}, float16 on disk"))
    return tuple(jobs), tuple(notes)


def _seconds(lm: LM, job: Callable[[], object], times: int = 3) -> float:
    """The shortest time of a job that has been run once before."""
    taken = []
    for _ in range(times + 1):
        _wait(lm)
        start = time.perf_counter()
        job()
        _wait(lm)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _step_seconds(lm: LM, prompts: Prompts) -> float:
    """The median time of a step of generation, the first of which reads the prompt."""
    marks = [time.perf_counter()]
    for _ in lm.stream(prompts, max_new_tokens=min(9, max(2, _most(lm) - prompts.width))):
        _wait(lm)
        marks.append(time.perf_counter())
    steps = [later - earlier for earlier, later in pairwise(marks)]
    return statistics.median(steps[1:] or steps)


def _wait(lm: LM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
