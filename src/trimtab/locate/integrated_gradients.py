"""Integrated gradients: gradients averaged along the way from a baseline, so that they add up to the whole change.

Sundararajan et al. 2017, arXiv 1703.01365; with the inputs moving and every site read, Hanna et al. 2024, arXiv
2403.17806. Unlike one slope, the mean slope along the way sees a metric that saturates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import TaskError, TrimtabError
from trimtab.locate.pairing import paired_where
from trimtab.locate.plans import plan_integral, planned_by
from trimtab.locate.slopes import at_once, check_choice, check_gradients, differentiates, entries, place_sums, values
from trimtab.locate.units import Spans, default_spans, places
from trimtab.model.gradient import readout_value
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure, sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scores import Scores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Baseline = Literal["corrupt", "zero"]
Rule = Literal["midpoint", "right"]
Path = Literal["site", "input"]


@paired_where(lambda *, baseline, **_: baseline == "corrupt")
@planned_by(plan_integral)
@differentiates
def integrated_gradients(
    lm: LM,
    task: Task,
    sites: Reads = "embed",
    *,
    spans: Spans | None = None,
    steps: int = 20,
    baseline: Baseline = "corrupt",
    rule: Rule = "midpoint",
    path: Path = "site",
    batch_size: int = 16,
    memory: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """(a_clean − a_baseline) · the mean of ∂M/∂a at baseline + α(clean − baseline), summed over spans and units.

    With `path="site"` each tensor (`L5.head`, all of its heads and positions) moves alone in the run of the baseline,
    and its attributions add up to what patching the whole of it does: M(moved) − M(baseline). With `path="input"` the
    embeddings move and every site follows, so all sites share the passes; each site's attributions then add up to
    the change only as far as all of it passes there. For "embed" the two are the same: the classic.

    Args:
        sites: a map such as `"L*.head"`, or a list of candidates, each of which is given its part of the tensor's.
        spans: positions that attributions are summed over; by default the task's own spans and "end", or "all" of a
            contrast task's question.
        steps: gradients along the way, m.
        baseline: "corrupt": from the twin prompt's values; "zero": from 0 in the clean run or the question, with
            `path="input"` from the run whose embeddings are 0.
        rule: α = (k − ½)/m, or α = k/m as in edge attribution with integrated gradients.
        batch_size: prompts times steps that go through the model together, fewer where they do not fit into `memory`.
        memory: bytes that a pass with its gradients may take beyond the model; by default a share of what is free.

    Returns:
        `Scores` in the metric's unit. `options["completeness_error"]` is, for each example, the largest over the
        tensors of |Σ attributions − (M(moved) − M(baseline))|, None with `path="input"` but for "embed". From zero it
        is large at few steps: a model that norms its embedding bends most where the way begins.

    A tensor costs `steps` forward and backward passes; with `path="site"` one more forward pass for its far end.

    Raises TaskError for a corrupt baseline of contrast tasks, EditError for a metric without a gradient.

    >>> integrated_gradients(lm, task, "embed", steps=20).options["completeness_error"]  # doctest: +SKIP
    """
    for name, given, choices in (
        ("baseline", baseline, ("corrupt", "zero")),
        ("rule", rule, ("midpoint", "right")),
        ("path", path, ("site", "input")),
    ):
        check_choice(name, given, choices)
    if steps < 1:
        raise TrimtabError(f"steps is how many gradients are taken along the way, at least 1, got {steps}")
    if baseline == "corrupt" and task.shape != "counterfactual":
        raise TaskError(f'{task.name} has no twin prompts to start from: give baseline="zero"')
    check_gradients(lm, sites)
    where = places(lm, sites, spans, mapped=default_spans(task) if task.shape == "counterfactual" else "all")
    measured = measure(lm, task, on="corrupt" if baseline == "corrupt" else "clean")
    wide = np.float64 if lm.dtype == torch.float64 else np.float32
    out = np.zeros((len(measured.prompts), *where.shape), wide)
    gaps = np.zeros((len(measured.prompts), len(where.tensors)))
    done, most = 0, at_once(lm, memory)
    for rows in batches(measured.prompts, entries(lm, where.tensors), batch_size, most):
        sums: dict[Site, np.ndarray] = {}
        made = attributions(lm, task, measured, rows, where.tensors, steps, baseline, rule, path, batch_size, most)
        for at, (tensor, product, gap) in enumerate(made):
            members = [block for block in where.blocks if block.whole == tensor]
            prompts = measured.prompts.rows(rows, trim=True)
            sums |= place_sums(members, where.units, prompts, lambda _, product=product: product)
            gaps[rows, at] = gap
        out[rows] = where.array(sums[block] for block in where.blocks)
        done += len(rows)
        if progress is not None:
            progress(done, len(measured.prompts))
    examples = np.zeros((len(measured), *where.shape), wide)
    np.add.at(examples, measured.owner, out)
    known = gaps[:, ~np.isnan(gaps).any(0)]
    errors = np.zeros((len(measured), known.shape[1]))
    np.add.at(errors, measured.owner, known)  # an example is all of its rows, whose gaps may cancel
    options: dict[str, object] = {
        "steps": steps,
        "baseline": baseline,
        "rule": rule,
        "path": path,
        "completeness_error": np.abs(errors).max(1).tolist() if known.size else None,
    }
    direction = "denoise" if baseline == "corrupt" else None
    return where.scores(examples, lm, task, measured.prompts, "integrated_gradients", measured.unit, options, direction)


def attributions(
    lm: LM,
    task: Task,
    measured: Measure,
    rows: list[int],
    tensors: list[Site],
    steps: int,
    baseline: Baseline,
    rule: Rule,
    path: Path,
    batch_size: int,
    most: int,
) -> Iterator[tuple[Site, Tensor, np.ndarray]]:
    """Each tensor of some rows with its attributions (batch pos unit …) and their sum minus the change (batch), NaN
    where the inputs move and the tensor is not all of them. `most` numbers are held by a backward pass."""
    alphas = [(k - 0.5) / steps if rule == "midpoint" else k / steps for k in range(1, steps + 1)]
    embed = Site("embed")
    prompts, readout = measured.prompts.rows(rows, trim=True), measured.readout.of_rows(rows)
    read = [*tensors, embed] if path == "input" and embed not in tensors else tensors
    near = far = lm.run(prompts, read)
    if baseline == "corrupt":
        far = lm.run(sides(lm, task).positive.rows(rows, trim=True), read)
    elif path == "input":
        near = lm.run(prompts, read, Edit(embed, "set", 0.0))
    alone = baseline == "zero" and path == "site"
    size = max(1, min(batch_size, most // (prompts.width * entries(lm, read))) // prompts.batch)
    way = _Way(lm, prompts, readout, near, far, alone, alphas, size)
    together = way.mean_gradients(embed, tensors) if path == "input" else {}
    for tensor in tensors:
        gradient = together[tensor] if together else way.mean_gradients(tensor, [tensor])[tensor]
        product = gradient * way.change(tensor)
        known = path == "site" or tensor == embed
        yield tensor, product, way.gap(tensor, product) if known else np.full(len(rows), np.nan)


class _Way:
    """From one run to another, for one batch of prompts; or with `zero` from 0 in the far run, one tensor at a time.

    `together` steps go through the model at once.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Prompts,
        readout: Readout,
        near: Run,
        far: Run,
        zero: bool,
        alphas: list[float],
        together: int,
    ) -> None:
        self.lm, self.prompts, self.readout, self.alphas = lm, prompts, readout, alphas
        self.near, self.far, self.zero, self.together = near, far, zero, together

    def change(self, tensor: Site) -> Tensor:
        """(batch pos unit …) clean minus baseline."""
        end = values(self.far, tensor)
        return end if self.zero else end - values(self.near, tensor)

    def mean_gradients(self, moved: Site, read: list[Site]) -> dict[Site, Tensor]:
        """(batch pos unit …) gradients at `read` with `moved` on its way, averaged over the steps."""
        total = {site: torch.zeros_like(values(self.near, site)) for site in read}
        n = self.prompts.batch
        for start in range(0, len(self.alphas), self.together):
            alphas = self.alphas[start : start + self.together]
            rows = list(range(n)) * len(alphas)
            prompts, run = self._at(moved, alphas, rows)
            edit = Edit(moved, "set", Ref("way"))
            found = self.lm.gradients(prompts, self.readout.of_rows(rows), read, edit=edit, runs={"way": run})
            for site in read:
                total[site] += values(found.gradients, site).unflatten(0, (len(alphas), n)).sum(0)
        return {site: gradient / len(self.alphas) for site, gradient in total.items()}

    def gap(self, moved: Site, product: Tensor) -> np.ndarray:
        """(row) the sum of attributions minus the change that moving the tensor all the way makes."""
        real = self.prompts.mask.bool().to(product.device)
        product = torch.where(real.view(*real.shape, *[1] * (product.ndim - 2)), product, 0.0)
        runs = [readout_value(self.readout, self.near)]
        if moved.name == "embed" and not self.zero:  # what the inputs are all of is the other run itself
            runs.append(readout_value(self.readout, self.far))
        else:
            prompts, run = self._at(moved, [0.0 if self.zero else 1.0], list(range(self.prompts.batch)))
            made = self.lm.run(prompts, edit=Edit(moved, "set", Ref("way")), runs={"way": run})
            runs.append(readout_value(self.readout, made))
        moves = (runs[1] - runs[0]) * (-1 if self.zero else 1)
        return (product.flatten(1).double().sum(1) - moves.double()).cpu().numpy()

    def _at(self, moved: Site, alphas: list[float], rows: list[int]) -> tuple[Prompts, Run]:
        """The prompts once for each α, and a run whose value at the site is that far along."""
        start = torch.zeros_like(values(self.near, moved)) if self.zero else values(self.near, moved)
        along = torch.cat([start + alpha * self.change(moved) for alpha in alphas])
        prompts = self.prompts if len(rows) == self.prompts.batch else self.prompts.rows(rows)
        return prompts, Run(prompts, None, {moved: along})
