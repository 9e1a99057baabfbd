"""Mean activations of the two sides of each example, and the difference between them.

One pass over the prompts of `tasks.measure.sides` serves a steering vector, a training-free score, a probe's features
and every control with shuffled labels: flipping a pair's label is a change of sign (Rimsky et al. 2023, arXiv
2312.06681; Marks and Tegmark 2023, arXiv 2310.06824).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import SiteError, TaskError
from trimtab.model.memory import limit
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

AT_ONCE = 1 << 26
"""Activations (numbers) that one pass may hold: batches are cut to it."""
HOLDING = 8
"""Bytes for each of them: as it is read, and as it is taken out."""

Pool = Literal["mean", "mean_abs", "max", "max_abs", "frequency"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, repr=False)
class MeanDifference:
    """What each side of each example looks like at some sites, averaged over positions.

    `positive` and `negative` give for each site float32 means (example, *shape), where shape is that of the site's
    units: (d_model,), (d_mlp,), (head, d_head), or one entry for each unit that the site names. `read` is the scope of
    sites without positions of their own. `groups` is the group of each example.
    """

    positive: Mapping[Site, np.ndarray]
    negative: Mapping[Site, np.ndarray]
    groups: tuple[str, ...]
    read: str

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.positive)

    def sides(self, site: Site | str) -> tuple[np.ndarray, np.ndarray]:
        """(example, *shape) of the positive and of the negative side.

        Units of a site that was read whole are picked from it, and positions left out where it was read without any.
        SiteError for a site that was not read.
        """
        site = Site.parse(site)
        for form in (site, site.with_(at=None)):
            whole = form.with_(index=None)
            if form in self.positive:
                return self.positive[form], self.negative[form]
            if whole in self.positive:
                units = list(form.index or ())
                return self.positive[whole][:, units], self.negative[whole][:, units]
        raise SiteError(f"{site} was not read: there are {', '.join(str(s) for s in list(self)[:8])}")

    def pairs(self, site: Site | str) -> np.ndarray:
        """(example, *shape) positive minus negative, of a site as in `sides`."""
        positive, negative = self.sides(site)
        return positive - negative

    def difference(
        self, site: Site | str, signs: Float[np.ndarray, "example"] | None = None
    ) -> Float[np.ndarray, "..."]:
        """(*shape) mean over examples of positive minus negative; `signs` of −1 swap the two sides of an example."""
        pairs = self.pairs(site)
        if signs is None:
            return pairs.mean(0, dtype=np.float64).astype(np.float32)
        return (np.tensordot(_signs(signs, len(self)), pairs, 1) / len(self)).astype(np.float32)

    def flipped(self, signs: Float[np.ndarray, "example"]) -> MeanDifference:
        """With the two sides of the examples whose sign is −1 swapped: a control with nothing to find."""
        flip = _signs(signs, len(self)) < 0
        positive, negative = dict(self.positive), dict(self.negative)
        for site, values in self.positive.items():
            swap = flip.reshape(-1, *[1] * (values.ndim - 1))
            positive[site] = np.where(swap, self.negative[site], values)
            negative[site] = np.where(swap, values, self.negative[site])
        return MeanDifference(positive, negative, self.groups, self.read)

    def __repr__(self) -> str:
        return f"<MeanDifference: {len(self)} examples at {len(self.positive)} sites, read at {self.read}>"


def mean_difference(
    lm: LM,
    task: Task,
    sites: Reads,
    *,
    read: str | Scope | None = None,
    signs: Float[np.ndarray, "example"] | None = None,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> MeanDifference:
    """The means of both sides of every example at some sites, from one forward pass over each prompt.

    Args:
        sites: sites or selections; one that names positions (`"L5.head[3]@S2"`) is read there.
        read: where the others are averaged; by default the task's own `read` for contrast tasks, and the last token
            for counterfactual ones.
        signs: (example) ±1; where −1, the two sides of the example are swapped.
        batch_size: prompts in a pass, or fewer where their activations would not fit.
        dictionaries: by name, for sites such as `"L5.resid_post.feature@name"`.
        progress: called with prompts done and prompts in all.

    Raises TaskError for a span without tokens, SiteError for attention scores, which have no units.

    >>> mean_difference(lm, task, "L*.resid_post").difference("L12.resid_post")  # doctest: +SKIP
    """
    scope = Scope.parse(default_read(task) if read is None else read)
    made = sides(lm, task)
    wanted = lm.sites(sites)
    found: list[dict[Site, np.ndarray]] = []
    for number, prompts in enumerate(made):

        def report(done: int, total: int, before: int = number * len(task)) -> None:
            if progress is not None:
                progress(before + done, 2 * total)

        placed = {site: site if site.at else site.with_(at=scope) for site in wanted}
        read_ = pooled(
            lm, prompts, list(placed.values()), batch_size=batch_size, dictionaries=dictionaries, progress=report
        )
        found.append({site: read_[at] for site, at in placed.items()})
    means = MeanDifference(found[0], found[1], task.groups, str(scope))
    return means if signs is None else means.flipped(signs)


def default_read(task: Task) -> str:
    """Where the two sides of a task are compared unless told otherwise."""
    return task.read if task.shape == "contrast" else "last"


def pooled(
    lm: LM,
    prompts: Prompts,
    sites: Sequence[Site],
    *,
    pool: Pool = "mean",
    threshold: float = 0.0,
    batch_size: int = 16,
    dictionaries: Mapping[str, Dictionary] | None = None,
    progress: Progress | None = None,
) -> dict[Site, np.ndarray]:
    """Of each row and site, float32 (row, *shape): activations over the site's positions made into one number.

    `pool`: their "mean", the "max", mean or largest absolute value, or the share of them above `threshold`.
    """
    by_tensor: dict[Site, list[Site]] = defaultdict(list)
    for site in sites:
        if site.name in ("scores", "pattern"):
            raise SiteError(f"{site}: attention has a number for each key and no units; read the head's output instead")
        by_tensor[site.base.whole if site.view is None else site.whole].append(site)
    entries = sum(int(np.prod(lm.shape(site))) for site in by_tensor)
    out: dict[Site, np.ndarray] = {}
    done = 0
    for rows in batches(prompts, entries, batch_size):
        part = prompts.rows(rows, trim=True)
        logits = any(site.name == "logits" for site in by_tensor)
        run = lm.run(part, list(by_tensor), logits=logits, dictionaries=dictionaries)
        for tensor, members in by_tensor.items():
            values = run.whole(tensor)
            for site in members:
                chosen = values if site.index is None else values[:, :, list(site.index)]
                numbers = _pool(chosen, part, site, pool, threshold).cpu().numpy()
                if site not in out:
                    out[site] = np.empty((len(prompts), *numbers.shape[1:]), np.float32)
                out[site][rows] = numbers
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts))
    return out


def deviations(lm: LM, tensors: Sequence[Site], prompts: Prompts, batch_size: int = 16) -> dict[Site, np.ndarray]:
    """(*shape) the standard deviation of each entry over all tokens but first ones, batch by batch (Chan et al.
    1983)."""
    found: dict[Site, tuple[int, np.ndarray, np.ndarray]] = {}
    entries = sum(int(np.prod(lm.shape(site))) for site in tensors)
    for rows in batches(prompts, entries, batch_size):
        part = prompts.rows(rows, trim=True)
        run = lm.run(part, tensors, logits=False)
        counted = part.mask.bool().clone()
        counted[torch.arange(len(rows)), part.start] = False
        counted = counted if bool(counted.any()) else part.mask.bool()
        for site in tensors:
            x = run.whole(site)[counted.to(run.whole(site).device)].cpu().double().numpy()
            n, mean, squares = len(x), x.mean(0), ((x - x.mean(0)) ** 2).sum(0)
            if site in found:
                before, old, kept = found[site]
                gap, n = mean - old, before + n
                mean = old + gap * len(x) / n
                squares = kept + squares + gap**2 * before * len(x) / n
            found[site] = n, mean, squares
    return {site: np.sqrt(squares / n) for site, (n, _, squares) in found.items()}


def batches(prompts: Prompts, entries: int, batch_size: int, at_once: int | None = None) -> Iterator[list[int]]:
    """Rows that go through the model together: short ones first, at most `batch_size`, and no more than fit in memory
    where `entries` numbers are kept of every token (`at_once` of them, AT_ONCE by default)."""
    if batch_size < 1:
        raise TaskError(f"batch_size is how many prompts go through the model together, at least 1, got {batch_size}")
    most = AT_ONCE if at_once is None else at_once
    if at_once is None and (told := limit()) is not None:
        most = min(most, int(told // HOLDING))
    rows: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: len(prompts.tokens[row])):
        if len(rows) == batch_size or (rows and (len(rows) + 1) * len(prompts.tokens[row]) * entries > most):
            yield rows
            rows = []
        rows.append(row)
    yield rows


def _pool(values: Tensor, prompts: Prompts, site: Site, pool: Pool, threshold: float) -> Tensor:
    """(batch unit …) from (batch pos unit …) over the site's positions; pads are never looked at."""
    assert site.at is not None
    positions = prompts.positions(site.at)
    if not all(positions):
        row = next(row for row, columns in enumerate(positions) if not columns)
        raise TaskError(f'"{site.at}" covers no token of {" ".join(prompts.tokens[row])[:80]!r}: read another span')
    most = max(map(len, positions))
    columns = torch.tensor([[*p, *[p[-1]] * (most - len(p))] for p in positions], device=values.device)
    x = values[torch.arange(len(values), device=values.device)[:, None], columns]
    x = x.float() if x.dtype.itemsize < 4 else x
    if pool in ("max", "max_abs"):
        return (x if pool == "max" else x.abs()).amax(1).float()
    x = x if pool == "mean" else x.abs() if pool == "mean_abs" else (x > threshold).to(x.dtype)
    counts = torch.tensor([len(p) for p in positions], device=x.device)
    weight = (torch.arange(most, device=x.device) < counts[:, None]) / counts[:, None].to(x.dtype)
    return torch.einsum("bp,bp...->b...", weight, x).float()


def _signs(signs: np.ndarray, examples: int) -> np.ndarray:
    signs = np.asarray(signs, dtype=np.float64)
    if signs.shape != (examples,) or not np.isin(signs, (-1, 1)).all():
        raise TaskError(f"signs are 1 or −1 for each of the {examples} examples, got shape {signs.shape}")
    return signs
