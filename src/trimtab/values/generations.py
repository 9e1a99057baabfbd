"""Generations: what a model writes before and after a change, and numbers of each text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trimtab.errors import TrimtabError, nearest
from trimtab.values.edit import Intervention
from trimtab.values.estimate import Estimate
from trimtab.values.findings import Sample
from trimtab.values.outcome import Outcome
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.figures.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Generations(Saved):
    """Continuations of the same prompts without and with an intervention, and measures of them by name.

    Each of `measures` has a number of every text before and after; NaN where a text is too short to have one.
    """

    KIND: ClassVar[str] = "generations"

    task: str
    samples: tuple[Sample, ...]
    measures: Mapping[str, Outcome]
    intervention: Intervention = field(default_factory=Intervention)
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name, outcome in self.measures.items():
            if len(outcome) != len(self.samples):
                raise TrimtabError(f"{name} has {len(outcome)} numbers, and there are {len(self.samples)} texts")

    def __getitem__(self, name: str) -> Outcome:
        if name not in self.measures:
            raise TrimtabError(
                f'no measure "{name}"{nearest(name, self.measures)}: there are {", ".join(self.measures)}'
            )
        return self.measures[name]

    def __len__(self) -> int:
        return len(self.samples)

    def change(self, name: str) -> Estimate:
        """The mean of after − before of one measure, with its interval."""
        outcome = self[name]
        return Estimate.of(outcome.after - outcome.before, outcome.groups)

    def __or__(self, other: Generations) -> Generations:
        """The measures of both, of the same texts."""
        if self.samples != other.samples:
            raise TrimtabError("these are measures of different texts: generate once, and measure the same generations")
        return self.with_(measures={**self.measures, **other.measures})

    def to_frame(self) -> pd.DataFrame:
        """A row for each measure: means before and after, and the change with its interval."""
        import pandas as pd

        rows = []
        for name, outcome in self.measures.items():
            both = np.isfinite(outcome.before) & np.isfinite(outcome.after)
            before, after = ((float(v[both].mean()) if both.any() else np.nan) for v in (outcome.before, outcome.after))
            change = self.change(name)
            rows.append((name, outcome.unit, before, after, change.mean, change.low, change.high, int(both.sum())))
        return pd.DataFrame(rows, columns=["measure", "unit", "before", "after", "change", "low", "high", "n"])

    def texts(self) -> pd.DataFrame:
        """A row for each text: its prompt, both continuations, and every measure before and after."""
        import pandas as pd

        columns: dict[str, list[object]] = {
            "prompt": [s.prompt for s in self.samples],
            "before": [s.before for s in self.samples],
            "after": [s.after for s in self.samples],
        }
        for name, outcome in self.measures.items():
            columns[f"{name} before"], columns[f"{name} after"] = outcome.before.tolist(), outcome.after.tolist()
        return pd.DataFrame(columns)

    def plot(self) -> Figure:
        """The change of each measure in standard deviations of what it was before, over the texts."""
        from trimtab.figures import Bar, Drawing, Figure, Value, bars

        rows = []
        for name, outcome in self.measures.items():
            change, known = self.change(name), outcome.before[np.isfinite(outcome.before)]
            spread = float(known.std()) if len(known) > 1 else 0.0
            if spread > 0 and np.isfinite(change.mean):
                rows.append(Bar(name, Value(change.mean / spread, change.low / spread, change.high / spread)))
        svg = bars(rows, about="Changes of the generations' measures", unit="standard deviations", mono=False)
        return Figure(f"Generations: {self.task}", (Drawing(svg, "What changed in the texts"),))

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, float_format="{:.3g}".format)
        texts = self.texts()[["prompt", "before", "after"]].head(10).to_html(index=False)
        return f"<div>{table}<details><summary>Texts</summary>{texts}</details></div>"

    def __str__(self) -> str:
        lines = [f"{len(self)} texts of {self.task}"]
        return "\n".join([*lines, *(f"  {name}: {self.change(name)} {self[name].unit}" for name in self.measures)])

    def __repr__(self) -> str:
        return f"<Generations of {self.task}: {len(self)} texts, {', '.join(self.measures)}>"
