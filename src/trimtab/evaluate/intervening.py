"""Intervening exactly at places of a task: the twin's activation, another example's, the mean difference of its sides,
or random directions as large as these.

All of it goes through the engine. Which places, and what is made of the numbers, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from trimtab.errors import PromptError
from trimtab.evaluate.resampling import donors, resampled
from trimtab.evaluate.sweep import Exact, Make, Progress, Variants, sweep, window_around
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Dictionary
from trimtab.model.run import Run
from trimtab.tasks.means import AT_ONCE, MeanDifference, mean_difference
from trimtab.tasks.measure import Measure, Sides, measure, measure_alone, sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scores import AnyScores
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

How = Literal["patching", "ablation", "shift"]
Direction = Literal["denoise", "noise"]


def direction_of(scores: AnyScores) -> Direction:
    """The direction of patching that asks what scores ask: their own; "noise" where they were computed on clean
    prompts, "denoise" otherwise."""
    return scores.direction or ("noise" if scores.options.get("on") == "clean" else "denoise")


def window_of(scores: AnyScores) -> int:
    """How many layers around each place the scores intervened at together, 1 where they say nothing of it."""
    window = scores.options.get("window", 1)
    return window if isinstance(window, int) else 1


class Intervening:
    """What intervening does to a task's number, example by example.

    `on` is where the number is read: on clean prompts the effect is what is lost, M(before) − M(after), on corrupt ones
    and on questions what is gained; an ablation's is always what is lost. A site stands for itself and its like in a
    `window` of layers. `seed` draws the donors of an ablation.
    """

    def __init__(
        self,
        lm: LM,
        task: Task,
        how: How,
        on: Literal["clean", "corrupt"],
        source: Task,
        exact: Exact,
        batch_size: int,
        dictionaries: Mapping[str, Dictionary] | None,
        progress: Progress | None,
        *,
        window: int = 1,
        seed: int = 0,
    ) -> None:
        self.lm, self.task, self.how, self.source = lm, task, how, source
        self.sign = -1.0 if how == "ablation" or (how == "patching" and on == "clean") else 1.0
        self.other: Prompts | None = None
        self.donors: list[int] = []
        both = _twins(lm, task) if how == "patching" else None
        alone = how == "ablation" and on == "clean" and task.shape == "counterfactual"
        self.measured: Measure = measure_alone(lm, task) if alone else measure(lm, task, on=on)
        if both is not None:
            self.other = both.negative if on == "clean" else both.positive
        elif how == "ablation":
            owner = self.measured.owner
            self.donors = donors(self.measured.prompts, [self.measured.groups[i] for i in owner], owner, seed)
        self.exact: Exact = exact
        self.batch_size, self.dictionaries, self.progress = batch_size, dictionaries, progress
        self.window = window

    def at(self, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
        """(example) the effect of intervening at each site."""
        windows = [self._around(site) for site in sites]
        tensors = self._tensors(windows)
        if self.how == "shift":
            means = self._means([each for window in windows for each in window])
            edits = [[Edit(each, "add", means.difference(each)) for each in window] for window in windows]
        else:
            edits = [[Edit(each, "set", Ref("other")) for each in window] for window in windows]

        def make(rows: list[int], prompts: Prompts) -> tuple[Variants, dict[str, Run]]:
            return edits, {} if self.how == "shift" else {"other": self._there(rows, prompts, tensors)}

        changes = self._sweep(make, tensors)
        return {site: self.sign * changes[:, i] for i, site in enumerate(sites)}

    def directions(self, sites: Sequence[Site], draws: int, rng: np.random.Generator) -> dict[Site, np.ndarray]:
        """(draw example) the effect, at each site, of random directions as long as what is put there differs."""
        random: dict[Site, list[list[np.ndarray]]] = {}
        for site in sites:
            window = self._around(site)
            shape = (-1,) if site.view else self._shape(site)
            drawn = rng.standard_normal((draws, len(window), int(np.prod(self._shape(site)))))
            random[site] = [[(v / np.linalg.norm(v)).reshape(shape) for v in draw] for draw in drawn]
        found: dict[Site, np.ndarray] = {}
        width, n = self.measured.prompts.width, min(self.batch_size, len(self.measured.prompts))
        largest = max((int(np.prod(self._shape(site))) * len(random[site][0]) for site in sites), default=1)
        step = max(1, AT_ONCE // (draws * n * width * largest))
        for start in range(0, len(sites), step):
            part = sites[start : start + step]
            changes = self._random(part, random)
            for i, site in enumerate(part):
                found[site] = self.sign * changes[:, i * draws : (i + 1) * draws].T
        return found

    def _random(self, sites: Sequence[Site], random: Mapping[Site, Sequence[Sequence[np.ndarray]]]) -> np.ndarray:
        """(example variant) of each random direction at each of a few sites."""
        windows = [self._around(site) for site in sites]
        every = list(dict.fromkeys(each for window in windows for each in window))
        tensors = self._tensors(windows)
        means = self._means(every) if self.how == "shift" else None

        def make(rows: list[int], prompts: Prompts) -> tuple[Variants, dict[str, Run]]:
            if means is not None:
                sizes = {site: np.asarray(np.linalg.norm(means.difference(site))) for site in every}
            else:
                there = self._there(rows, prompts, tensors)
                here = self.lm.run(prompts, tensors, logits=False)
                sizes = {site: _apart(there, here, site) for site in every}
            edits: list[list[Edit]] = []
            for site, window in zip(sites, windows, strict=True):
                for draw in random[site]:
                    sized = [_scaled(sizes[each], v) for each, v in zip(window, draw, strict=True)]
                    edits.append([Edit(each, "add", value) for each, value in zip(window, sized, strict=True)])
            return edits, {}

        return self._sweep(make, tensors)

    def _sweep(self, make: Make, tensors: list[Site]) -> Float[np.ndarray, "example variant"]:
        return sweep(
            self.lm,
            self.measured,
            make,
            tensors,
            exact=self.exact,
            batch_size=self.batch_size,
            dictionaries=self.dictionaries,
            progress=self.progress,
        )

    def _there(self, rows: list[int], prompts: Prompts, tensors: list[Site]) -> Run:
        """What is put in the place of these rows' activations: the twins', or the donors'."""
        if self.how == "ablation":
            return resampled(self.lm, self.measured.prompts, self.donors, rows, prompts, tensors)
        assert self.other is not None
        return self.lm.run(self.other.rows(rows, trim=True), tensors, logits=False)

    def _around(self, site: Site) -> list[Site]:
        return window_around(self.lm, site, self.window)

    def _means(self, sites: Sequence[Site]) -> MeanDifference:
        aligned = self.task.shape == self.source.shape == "counterfactual"
        wanted = [site.with_(index=None) if aligned else site.with_(index=None, at=None) for site in sites]
        return mean_difference(
            self.lm,
            self.source,
            list(dict.fromkeys(wanted)),
            batch_size=self.batch_size,
            dictionaries=self.dictionaries,
        )

    def _shape(self, site: Site) -> tuple[int, ...]:
        shape = self.lm.shape(site.base)
        return shape if site.index is None else (len(site.index), *shape[1:])

    def _tensors(self, windows: Sequence[Sequence[Site]]) -> list[Site]:
        return list(dict.fromkeys(site.base.whole for window in windows for site in window))


def _twins(lm: LM, task: Task) -> Sides:
    try:
        return sides(lm, task)
    except PromptError as error:
        raise PromptError(
            f"{error}\npatching takes values from the twin prompt, position by position: give twins of as many tokens, "
            'or verify with method="ablation", which needs none'
        ) from error


def _scaled(size: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (size.reshape(*size.shape, *[1] * v.ndim) * v).astype(np.float32)


def _apart(there: Run, here: Run, site: Site) -> Float[np.ndarray, "batch pos"]:
    """How far the two runs are apart at each position of a site."""
    x = (there.whole(site.base.whole) - here.whole(site.base.whole)).float()
    if site.index is not None:
        x = x[:, :, list(site.index)]
    return (x.flatten(2).norm(dim=-1) * here.prompts.mask).cpu().numpy()
