"""Monitor: a direction that is watched while a model reads and writes, with a threshold and a calibration; and what it
is worth on examples that it has not seen.

`locate.fit_monitor` makes one, `locate.score_monitor` judges it. It looks and changes nothing; `monitor.probe` makes
the edit where one is wanted. Nothing here knows of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from trimtab.errors import TrimtabError
from trimtab.values.content import Content
from trimtab.values.findings import Estimate
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.figures.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Content):
    """From margins to probabilities of the positive side.

    "platt" (Platt 1999): 1/(1 + exp(−(slope·margin + offset))). "isotonic" (Zadrozny and Elkan 2002,
    doi:10.1145/775047.775151): a rising line through `knots` (2 knot), margins and probabilities, flat outside.

    >>> Calibration("platt", slope=2.0, offset=0.0).probability(np.array([0.0]))
    array([0.5])
    """

    kind: Literal["platt", "isotonic"]
    slope: float = 1.0
    offset: float = 0.0
    knots: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("platt", "isotonic"):
            raise TrimtabError(f'a calibration is "platt" or "isotonic", got {self.kind!r}')
        if (self.kind == "isotonic") != (self.knots is not None):
            raise TrimtabError("isotonic calibration, and no other, has knots: margins and probabilities (2 knot)")
        if self.knots is not None:
            knots = np.array(self.knots, dtype=np.float64)
            if knots.ndim != 2 or len(knots) != 2 or (np.diff(knots) < 0).any():
                raise TrimtabError(f"knots are rising margins and probabilities (2 knot), got shape {knots.shape}")
            knots.setflags(write=False)
            object.__setattr__(self, "knots", knots)

    def probability(self, margin: np.ndarray | float) -> np.ndarray:
        """Of the positive side, for each margin; NaN stays NaN."""
        margin = np.asarray(margin, dtype=np.float64)
        if self.knots is not None:
            return np.asarray(np.interp(margin, *self.knots))
        return np.asarray(0.5 * (1 + np.tanh((self.slope * margin + self.offset) / 2)))


@dataclass(frozen=True, eq=False, repr=False)
class Monitor(Saved):
    """A linear probe with a calibration, and a threshold above which a text is flagged.

    A text's margin is the mean of its tokens' margins (over the positions that the probe was trained on, `probe.read`),
    and in the activation's units as `threshold` is. The threshold was set so that at most `false_positive_rate` of the
    negative sides that it was fitted on lie above it: it is for whole texts, looked at once.

    `stream_threshold` is for texts that are looked at after every token, from the `least`-th on (a shorter one at its
    end): at most `false_positive_rate` of these negative sides have a running margin above it anywhere. None where it
    was never calibrated. `seen` are digests of the texts that direction and thresholds come from.
    """

    KIND: ClassVar[str] = "monitor"

    probe: LinearProbe
    calibration: Calibration
    threshold: float
    false_positive_rate: float
    provenance: Provenance | None = None
    stream_threshold: float | None = None
    least: int = 1
    seen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", tuple(self.seen))
        if self.least < 1:
            raise TrimtabError(
                f"least is after how many tokens a text is first looked at, at least 1, got {self.least}"
            )

    @property
    def site(self) -> Site:
        """Where it looks."""
        return self.probe.site

    @property
    def pooled(self) -> bool:
        """Whether the margin of a text is the mean over its tokens, and not that of its last token."""
        return self.probe.read not in ("last", "end") and Scope.parse(self.probe.read).kind != "index"

    def margin(self, x: Float[np.ndarray, "..."]) -> np.ndarray:
        """(…) of activations (… *shape)."""
        return self.probe.margin(x)

    def probability(self, margin: np.ndarray | float) -> np.ndarray:
        """Calibrated probability of the positive side for the margin of a text."""
        return self.calibration.probability(margin)

    def flags(self, margin: np.ndarray | float) -> np.ndarray:
        """Whether each margin lies above the threshold."""
        return np.asarray(margin) > self.threshold

    def running(self, margins: Float[np.ndarray, "row token"]) -> Float[np.ndarray, "row token"]:
        """The margin of each text so far, from those of its tokens: the mean, or the last one's (`pooled`)."""
        if not self.pooled:
            return margins
        sums = np.cumsum(np.where(np.isnan(margins), 0.0, margins), 1)
        return np.where(np.isnan(margins), np.nan, sums / np.arange(1, margins.shape[1] + 1))

    def looked_at(self, margins: Float[np.ndarray, "row token"]) -> Float[np.ndarray, "row token"]:
        """The running margins that are compared with `stream_threshold`, NaN before the `least`-th token of a text (its
        last, where it is shorter) and behind its end."""
        running = self.running(margins)
        length = (~np.isnan(margins)).sum(1, keepdims=True)
        return np.where(np.arange(1, running.shape[1] + 1) >= np.minimum(self.least, length), running, np.nan)

    def stream_flags(self, margins: Float[np.ndarray, "row token"]) -> np.ndarray:
        """(row token) after which tokens a text that is watched lies above the threshold for that, from the margins of
        its tokens, NaN behind its end. TrimtabError where there is no such threshold."""
        if self.stream_threshold is None:
            raise TrimtabError(
                "this monitor has no threshold for texts that are looked at after every token, which the one for whole "
                "texts is too low for: fit it again with fit_monitor, or give stream_threshold"
            )
        return self.looked_at(margins) > self.stream_threshold

    def __str__(self) -> str:
        stream = "not calibrated" if self.stream_threshold is None else f"{self.stream_threshold:.3g}"
        rows = {
            "direction": f"{self.probe.kind}, read at {self.probe.read}, calibrated by {self.calibration.kind}",
            "threshold": f"{self.threshold:.3g} for whole texts ({self.false_positive_rate:.0%} of negatives above it)",
            "after every token": f"{stream}, from token {self.least} on",
            **{name: _shown(estimate) for name, estimate in self.probe.metrics.items()},
        }
        named = f"{self.probe.task or 'no task'} ({self.probe.poles[0]}) at {self.site}"
        return "\n".join([named, *(f"  {name:<18} {value}" for name, value in rows.items())])

    def __repr__(self) -> str:
        watched = f"{self.probe.task} ({self.probe.poles[0]})" if self.probe.task else "no task"
        stream = "" if self.stream_threshold is None else f", {self.stream_threshold:.3g} after every token"
        return (
            f"<Monitor of {watched} at {self.site}: {self.probe.kind}, {self.calibration.kind}, flags above "
            f"{self.threshold:.3g} ({self.false_positive_rate:.0%} of negatives){stream}>"
        )


@dataclass(frozen=True, eq=False, repr=False)
class GroupReport(Content):
    """One group of examples: how many there are, the share of their sides on the right side of the threshold, and the
    share of positive sides found and of negative ones flagged."""

    group: str
    n: int
    balanced_accuracy: float
    true_positive_rate: float
    false_positive_rate: float


@dataclass(frozen=True, eq=False, repr=False)
class MonitorReport(Saved):
    """What a monitor is worth on a task's examples, which it has not seen.

    `positive` and `negative` (example) are the margins of the two sides, `auroc` the probability that a positive side
    lies above a negative one, whichever examples they are of. `ece` is the expected calibration error over `bins`
    equally wide bins of probability, and `ece_if_calibrated` what it would be on average in so many examples if every
    probability were right: it is never 0. `balanced_accuracy`, `true_positive_rate` and `false_positive_rate` are of
    whole texts at the monitor's threshold, `stream_true_positive_rate` and `stream_false_positive_rate` of texts that
    are looked at after every token and flagged anywhere. Intervals go by whole groups; `by_group` has each group alone.
    """

    KIND: ClassVar[str] = "monitor report"

    monitor: str
    task: str
    positive: np.ndarray
    negative: np.ndarray
    auroc: Estimate
    ece: Estimate
    ece_if_calibrated: float
    balanced_accuracy: Estimate
    true_positive_rate: Estimate
    false_positive_rate: Estimate
    stream_true_positive_rate: Estimate
    stream_false_positive_rate: Estimate
    by_group: tuple[GroupReport, ...]
    bins: int
    groups: tuple[str, ...]
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            margins = np.array(getattr(self, name), dtype=np.float64)
            if margins.shape != (len(self.groups),):
                raise TrimtabError(f"{name} has a margin for each of {len(self.groups)} examples, got {margins.shape}")
            margins.setflags(write=False)
            object.__setattr__(self, name, margins)

    @property
    def worst(self) -> GroupReport:
        """The group of lowest balanced accuracy."""
        return min(self.by_group, key=lambda part: part.balanced_accuracy)

    def plot(self) -> Figure:
        """The ROC curve with the rates at both thresholds, the margins of both sides, and each group alone."""
        from trimtab.values.monitor_figures import report_figure

        return report_figure(self)

    def _repr_html_(self) -> str:
        return self.plot().with_details("The numbers", f"<pre>{escape(str(self))}</pre>")

    def __str__(self) -> str:
        return (
            f"{self.monitor} on {self.task}, {len(self.groups)} examples in {len(self.by_group)} groups:\n"
            f"  AUROC                {_shown(self.auroc)}\n"
            f"  balanced accuracy    {_shown(self.balanced_accuracy)}, worst group {self.worst.group}: "
            f"{self.worst.balanced_accuracy:.2f}\n"
            f"  true positive rate   {_shown(self.true_positive_rate)}\n"
            f"  false positive rate  {_shown(self.false_positive_rate)}\n"
            f"  after every token    {_shown(self.stream_true_positive_rate)} true, "
            f"{_shown(self.stream_false_positive_rate)} false positives\n"
            f"  calibration error    {_shown(self.ece)}, {self.ece_if_calibrated:.3f} if calibrated"
        )

    def __repr__(self) -> str:
        return f"<MonitorReport {self.task}: AUROC {_shown(self.auroc)}, {len(self.groups)} examples>"


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def auroc(positive: Float[np.ndarray, "p"], negative: Float[np.ndarray, "n"]) -> float:
    """The probability that a positive value lies above a negative one, ties half.

    >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    below = np.sort(negative)
    less, at_most = (np.searchsorted(below, positive, side=side) for side in ("left", "right"))
    return float((less + at_most).sum() / (2 * len(positive) * len(negative)))


def calibration_error(probability: Float[np.ndarray, "row"], labels: Int[np.ndarray, "row"], bins: int = 10) -> float:
    """Σ over equally wide bins of their share of rows times |mean probability − share of label 1| (Naeini et al. 2015).

    >>> calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0]))
    0.25
    """
    where = bins_of(probability, bins)
    gaps = np.bincount(where, weights=probability - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(where))


def bins_of(probability: Float[np.ndarray, "*any"], bins: int) -> Int[np.ndarray, "*any"]:
    """The number of each probability's bin, of equally wide ones."""
    return np.minimum((np.asarray(probability) * bins).astype(int), bins - 1)
