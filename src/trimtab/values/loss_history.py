"""LossHistory: how a loss fell while an intervention was trained, on what it was trained on and on what was held out.

It is kept in the provenance of the intervention, and so in its file. Nothing here knows what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.values.edit import Intervention
from trimtab.values.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.figures.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LossHistory(Saved):
    """`train` (step) is the loss of each batch before its step, `held_out` (epoch) that of examples of other groups
    before training and after each epoch, both in nats per token; `kept` the epoch that was kept.

    `held_out` is empty where there were too few groups to hold any out.
    """

    KIND: ClassVar[str] = "loss history"

    train: np.ndarray
    held_out: np.ndarray
    kept: int

    def __post_init__(self) -> None:
        for name in ("train", "held_out"):
            losses = np.array(getattr(self, name), dtype=np.float64)
            if losses.ndim != 1:
                raise TrimtabError(f"{name} of a loss history is one number for each step, got shape {losses.shape}")
            losses.setflags(write=False)
            object.__setattr__(self, name, losses)

    @classmethod
    def of(cls, intervention: Intervention) -> Self:
        """That of a trained intervention. TrimtabError for one whose provenance has none.

        >>> LossHistory.of(loreft(lm, task, "L10.resid_post")).held_out  # doctest: +SKIP
        """
        known = {} if intervention.provenance is None else intervention.provenance.options
        if not {"train_loss", "held_out_loss", "kept_epoch"} <= set(known):
            raise TrimtabError(
                f"{intervention!r} does not say how it was trained: loreft and reft_r1 keep that in its provenance, "
                "which sums of interventions do not have"
            )
        return cls(np.array(known["train_loss"]), np.array(known["held_out_loss"]), int(known["kept_epoch"]))

    def to_frame(self) -> pd.DataFrame:
        """A table of `epoch`, `train` (the mean over the epoch's steps, NaN before the first) and `held_out`."""
        import pandas as pd

        train = self._by_epoch()
        held_out = self.held_out if len(self.held_out) else np.full(len(train), np.nan)
        return pd.DataFrame({"epoch": np.arange(len(train)), "train": train, "held_out": held_out})

    def plot(self) -> Figure:
        """Both losses over epochs; the epoch that was kept has a ring."""
        from trimtab.figures.figure import Drawing, Figure
        from trimtab.figures.lines import Curve, Mark, curves
        from trimtab.figures.numbers import Value

        frame = self.to_frame()
        lines = []
        for name in ("train", "held_out"):
            known = [(e, y) for e, y in zip(frame["epoch"], frame[name], strict=True) if np.isfinite(y)]
            marks = tuple(Mark(float(e), Value(float(y)), picked=bool(e == self.kept)) for e, y in known)
            lines += [Curve(name.replace("_", " "), marks)] if marks else []
        svg = curves(lines, about="loss by epoch", x_axis="epoch", y_axis="loss, nats per token")
        return Figure("loss by epoch", (Drawing(svg),), f"Epoch 0 is the model itself; epoch {self.kept} was kept.")

    def _by_epoch(self) -> np.ndarray:
        epochs = max(len(self.held_out) - 1, self.kept)
        means = [part.mean() if len(part) else np.nan for part in np.array_split(self.train, max(epochs, 1))]
        return np.array([np.nan, *means])

    def __repr__(self) -> str:
        falls = f", held out {self.held_out[0]:.3g} to {self.held_out[self.kept]:.3g}" if len(self.held_out) else ""
        return f"<LossHistory: {len(self.train)} steps{falls} nats per token, epoch {self.kept} kept>"
