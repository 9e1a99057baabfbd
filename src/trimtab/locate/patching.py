"""Activation patching: a site takes its value from the run of the twin prompt, and the rest of the model goes on.

Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Wang et al. 2022, arXiv 2211.00593; on its two
directions and metrics Heimersheim and Nanda 2024, arXiv 2404.15255. Exact: every place on every example is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float

from trimtab.errors import TaskError, TrimtabError, nearest
from trimtab.locate.plans import plan_patching, planned_by
from trimtab.locate.sweep import Exact, Progress, Variants, intervenes, sweep, window_around
from trimtab.locate.units import Spans, default_spans, places
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure, sides
from trimtab.tasks.task import Task
from trimtab.values.bootstrap import ratio_interval
from trimtab.values.edit import Edit, Ref
from trimtab.values.scores import Interval, Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Direction = Literal["denoise", "noise"]

SMALLEST = 0.05
"""Share of the median gap below which an example's own ratio is not taken."""


@planned_by(plan_patching)
@intervenes
def patching(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    spans: Spans | None = None,
    direction: Direction = "denoise",
    window: int = 1,
    exact: Exact = "fast",
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """What patching each place does to the task's number.

    "denoise": the clean run's value in the corrupt run, M(patched) − M(corrupt): does the place suffice? "noise": the
    corrupt run's value in the clean run, M(clean) − M(patched): is it necessary? Both are positive where the place
    makes for the answer; they answer different questions (with two places either of which is enough, "denoise" shows
    both and "noise" neither).

    Args:
        sites: a map such as `"L*.head"`, each of whose units is patched alone, or a list of candidates such as
            `["L5.head[3]", "L9.mlp_out@S2"]`. Single neurons are best listed: a map of them is one run for each.
        spans: positions that are patched: by default the task's own spans and "end". Candidates without positions of
            their own are patched at all.
        window: layers patched together around each place's layer l: from l − window/2 up to, not including,
            l + window/2, as far as they exist; as in `causal_tracing`. Only whole outputs of sublayers have windows
            (`attn_out`, `mlp_out`, `attn_raw`, `mlp_raw`).
        exact: "fast" computes what changes; "naive" runs the model once for each place.
        batch_size: prompts whose runs are held together.

    Returns:
        `Scores` in the metric's unit; `normalised` sets them against the gap between clean and corrupt.

    Raises TaskError for contrast tasks: their sides do not correspond token by token; see `shift`. SiteError for
    windows of other sites.

    >>> patching(lm, task, "L*.resid_post", direction="noise").top(5)  # doctest: +SKIP
    """
    _counterfactual(task, "patching")
    if direction not in ("denoise", "noise"):
        raise TrimtabError(
            f'direction is "denoise" or "noise", got {direction!r}{nearest(str(direction), ["denoise", "noise"])}'
        )
    if window < 1:
        raise TrimtabError(f"window is how many layers are patched together, at least 1, got {window}")
    where = places(lm, sites, spans, mapped=default_spans(task), dictionaries=dictionaries)
    both = sides(lm, task)
    measured = measure(lm, task, on="corrupt" if direction == "denoise" else "clean")
    other = both.positive if direction == "denoise" else both.negative
    windows = [window_around(lm, site, window) for site in where.sites]
    variants = [[Edit(site, "set", Ref("other")) for site in together] for together in windows]
    tensors = list(dict.fromkeys(site.base.whole for together in windows for site in together))

    def make(rows: list[int], prompts: Prompts) -> tuple[Variants, dict[str, Run]]:
        return variants, {"other": lm.run(other.rows(rows, trim=True), tensors, logits=False)}

    changes = sweep(
        lm,
        measured,
        make,
        tensors,
        exact=exact,
        batch_size=batch_size,
        dictionaries=dictionaries,
        progress=progress,
    )
    effects = changes if direction == "denoise" else -changes
    options = {"window": window} if window > 1 else {}
    return where.scores(effects, lm, task, measured.prompts, "patching", measured.unit, options, direction)


@dataclass(frozen=True, eq=False, repr=False)
class Normalised:
    """Effects as shares of the gap between clean and corrupt: 1 is the whole of it.

    `effect` (…) is the ratio of means, mean effect over mean gap, which a few examples with a small gap cannot upset;
    `interval` its interval by group. `scores` holds the ratio of each example, NaN where it has no effect or no gap, or
    one of less than 5 % of the median gap; `left_out` examples have no ratio at any place.
    """

    effect: np.ndarray
    interval: Interval
    scores: Scores
    left_out: int

    def __repr__(self) -> str:
        left = f", {self.left_out} of {len(self.scores)} examples without a ratio" if self.left_out else ""
        sizes = np.abs(self.effect[~np.isnan(self.effect)])
        largest = f"largest {sizes.max():.2f} of the gap" if sizes.size else "no effect"
        return f"<Normalised {self.scores.method}: {largest}{left}>"


def normalised(
    scores: Scores,
    gap: Float[np.ndarray, "example"],
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> Normalised:
    """Effects of `patching`, `attribution_patching` or `ablation` as shares of `total_effect`, clean minus corrupt; of
    `causal_tracing` as shares of `tracing_effect`.

    Denoise: (M(patched) − M(corrupt))/(M(clean) − M(corrupt)); noise: (M(clean) − M(patched))/(M(clean) − M(corrupt)).
    `gap` (example) is in the scores' unit. At each place both means are over the examples that have an effect there and
    a gap. The interval is a bootstrap of whole groups, effects and gaps together, with 30 groups or more; with fewer it
    is Student's (`values.bootstrap.ratio_interval`).

    Raises TaskError for another number of gaps than of examples, or where no example has one.
    """
    gap = np.asarray(gap, dtype=np.float64)
    if gap.shape != (len(scores),):
        raise TaskError(f"gap is one number for each of the {len(scores)} examples, got shape {gap.shape}")
    known = ~np.isnan(gap)
    if not known.any():
        raise TaskError(f"gap is NaN for all {len(scores)} examples: give the total effect of these examples")
    large = np.abs(gap) >= SMALLEST * np.median(np.abs(gap[known]))
    large &= gap != 0
    flat = scores.array.reshape(len(scores), -1).astype(np.float64)
    each = np.full_like(flat, np.nan)
    each[large] = flat[large] / gap[large, None]
    groups = None if scores.groups is None else list(scores.groups)
    effect, low, high = ratio_interval(flat, gap, level=level, groups=groups, samples=samples, seed=seed)
    shape = scores.array.shape[1:]
    return Normalised(
        effect.reshape(shape),
        Interval(low.reshape(shape), high.reshape(shape), level),
        scores.with_(array=each.reshape(scores.array.shape), unit="share of gap"),
        int(np.isnan(each).all(1).sum()),
    )


def total_effect(lm: LM, task: Task, *, batch_size: int = 16) -> Float[np.ndarray, "example"]:
    """M(clean) − M(corrupt) of each example, in the metric's unit: what patching everything would do."""
    _counterfactual(task, "total_effect")
    clean, corrupt = (_numbers(lm, measure(lm, task, on=side), batch_size) for side in ("clean", "corrupt"))
    return clean - corrupt


def _numbers(lm: LM, measured: Measure, batch_size: int) -> np.ndarray:
    values = torch.zeros(len(measured.prompts), dtype=torch.float64)
    for rows in batches(measured.prompts, lm.anatomy.vocab, batch_size):
        prompts, readout = measured.prompts.rows(rows, trim=True), measured.readout.of_rows(rows)
        values[rows] = lm.counterfactuals(prompts, [()], readout).base.double().cpu()
    return measured.per_example(values)


def _counterfactual(task: Task, what: str) -> None:
    if task.shape != "counterfactual":
        raise TaskError(
            f"{what} puts activations of one prompt into its twin, and {task.name} has contrast examples, whose sides "
            "do not correspond token by token: use shift, which adds the mean difference while the question is read"
        )
