"""Entanglement: what interventions for several traits do to each other's tasks, all as strong by what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from trimtab.errors import TrimtabError, nearest
from trimtab.values.edit import Intervention
from trimtab.values.estimate import Estimate
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.figures.figure import Figure

NEAR = 0.25
"""How far from the wanted KL, as a share of it, an intervention may be."""


@dataclass(frozen=True, eq=False, repr=False)
class Entanglement(Saved):
    """A matrix of interventions (rows, by trait) against tasks (columns).

    Of each task `base` (example) has its number as it is and `changes` (trait, example) what each intervention adds to
    it. `target` is the KL per token that every intervention was set to, `kl` (trait) what it came to, `matched` the
    interventions at that strength. Effects are given in standard deviations of a task's own `base`.

    `random` has of each task what random directions (draw, example) of the same KL add to it, `random_kl` (draw) the
    KL that they came to; both are empty where none were drawn.
    """

    KIND: ClassVar[str] = "entanglement"
    LATER: ClassVar[Mapping[str, object]] = {"random": {}, "random_kl": ()}

    traits: tuple[str, ...]
    tasks: tuple[str, ...]
    target: float
    kl: np.ndarray
    matched: tuple[Intervention, ...]
    base: Mapping[str, np.ndarray]
    changes: Mapping[str, np.ndarray]
    groups: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance | None = None
    random: Mapping[str, np.ndarray] = field(default_factory=dict)
    random_kl: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in self.tasks:
            wanted = (len(self.traits), len(self.base[name]))
            if np.shape(self.changes[name]) != wanted or len(self.groups[name]) != wanted[1]:
                raise TrimtabError(
                    f"changes of {name} must have shape (trait, example) = {wanted}, got {np.shape(self.changes[name])}"
                )
            drawn = (len(self.random_kl), wanted[1])
            if self.random_kl and np.shape(self.random[name]) != drawn:
                raise TrimtabError(
                    f"random of {name} must have shape (draw, example) = {drawn}, got {np.shape(self.random[name])}"
                )
        object.__setattr__(self, "kl", np.array(self.kl, dtype=np.float64))

    def estimate(self, trait: str, task: str) -> Estimate:
        """The effect of a trait's intervention on a task, in standard deviations of the task's unedited number, with
        its interval over groups; NaN where the number does not vary."""
        row = self.traits.index(_known(trait, self.traits))
        name = _known(task, self.tasks)
        return standardised(self.base[name], self.changes[name][row], self.groups[name])

    @property
    def matrix(self) -> Float[np.ndarray, "trait task"]:
        """The mean effects, in standard deviations."""
        return np.array([[self.estimate(trait, task).mean for task in self.tasks] for trait in self.traits])

    @property
    def matched_well(self) -> np.ndarray:
        """(trait) whether an intervention came near the wanted KL."""
        return near(self.kl, self.target)

    @property
    def chance(self) -> Float[np.ndarray, "task"]:
        """The mean size of what random directions of the same KL do, in standard deviations: an effect no larger says
        nothing of its trait. NaN without draws that came near that KL."""
        well = near(np.array(self.random_kl), self.target)
        if not well.any():
            return np.full(len(self.tasks), np.nan)
        drawn = [self.random[name][well] for name in self.tasks]
        sizes = [
            [abs(standardised(self.base[name], change, self.groups[name]).mean) for change in changes]
            for name, changes in zip(self.tasks, drawn, strict=True)
        ]
        return np.array(sizes).mean(1)

    def others(self, trait: str) -> float:
        """The mean size of a trait's effects on the other traits' tasks, in standard deviations."""
        sizes = [abs(self.estimate(trait, task).mean) for task in self.tasks if task != trait]
        return float(np.nanmean(sizes)) if sizes and not np.isnan(sizes).all() else math.nan

    def to_frame(self) -> pd.DataFrame:
        """A row for each trait and task, then one for each random direction and task."""
        import pandas as pd

        listed = [(trait, self.changes, i, float(self.kl[i])) for i, trait in enumerate(self.traits)]
        listed += [(f"random direction {i + 1}", self.random, i, kl) for i, kl in enumerate(self.random_kl)]
        rows = []
        for name, changes, i, kl in listed:
            for task in self.tasks:
                change = changes[task][i]
                found = standardised(self.base[task], change, self.groups[task])
                raw = float(np.nanmean(change))
                rows.append((name, task, found.mean, found.low, found.high, raw, self.units[task], kl, found.n))
        names = ["intervention", "task", "effect", "low", "high", "change", "unit", "kl", "n"]
        return pd.DataFrame(rows, columns=names)

    def plot(self) -> Figure:
        """The matrix as a map."""
        from trimtab.values.robustness_figures import entanglement_figure

        return entanglement_figure(self)

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, float_format="{:.3g}".format)
        return self.plot().with_details("The numbers", table)

    def __str__(self) -> str:
        lines = [
            f"{len(self.traits)} interventions on {len(self.tasks)} tasks, at {self.target:g} nats of KL per token"
        ]
        for i, trait in enumerate(self.traits):
            own = f"own {self.estimate(trait, trait)}" if trait in self.tasks else "no task of its own"
            unmatched = "" if self.matched_well[i] else f" (KL {self.kl[i]:.3g}: not matched)"
            lines.append(f"  {trait}: {own}, others {self.others(trait):.2g} on average{unmatched}")
        if self.random_kl:
            sizes = ", ".join(f"{task} {size:.2g}" for task, size in zip(self.tasks, self.chance, strict=True))
            well = int(near(np.array(self.random_kl), self.target).sum())
            few = "" if well == len(self.random_kl) else f" ({well} of {len(self.random_kl)} matched)"
            lines.append(f"  random directions, mean size: {sizes}{few}")
        return "\n".join([*lines, *(f"  left out: {what}: {why}" for what, why in self.left_out.items())])

    def __repr__(self) -> str:
        return f"<Entanglement of {', '.join(self.traits)}>"


def near(kl: np.ndarray, target: float) -> np.ndarray:
    """Which of the interventions came near the wanted KL."""
    return np.abs(kl / target - 1) <= NEAR


def standardised(base: np.ndarray, change: np.ndarray, groups: tuple[str, ...]) -> Estimate:
    """A change in standard deviations of what was there before; NaN where that does not vary."""
    spread = float(np.nanstd(base))
    if not spread > 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return Estimate.of(change / spread, groups)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise TrimtabError(f'there is no "{name}"{nearest(name, names)}: there are {", ".join(names)}')
    return name
