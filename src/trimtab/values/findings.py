"""What each stage of a study found, as plain values: candidates, checks, search points, the evaluation and the verdict.

A study writes them and a report reads them; neither a model nor torch is needed to. Arrays of effects keep every
example, so that any other summary can be made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.values.content import Content
from trimtab.values.estimate import Estimate
from trimtab.values.outcome import Outcome
from trimtab.values.propensity import share_below
from trimtab.values.provenance import Provenance
from trimtab.values.saved import Saved
from trimtab.values.scores import Scores
from trimtab.values.search import Point, Search

__all__ = [
    "STAGES",
    "Candidate",
    "Check",
    "Control",
    "Entangled",
    "Estimate",
    "Evaluation",
    "Findings",
    "Point",
    "Sample",
    "Screening",
    "Search",
    "Validation",
    "Verdict",
]


@dataclass(frozen=True, eq=False, repr=False)
class Candidate(Content):
    """A place that the screen proposes: its address with unit and positions, what it is, and why.

    `score` is in the unit of the method that proposed it; `rank` is 1 for the first of its kind.
    """

    site: str
    kind: str
    method: str
    score: float
    rank: int


@dataclass(frozen=True, eq=False, repr=False)
class Check(Content):
    """What intervening at one candidate did, against random places of the same kind and layer (or kind alone).

    `effect` and `control` are in the task's unit, the controls turned so that their own means are positive. `works`
    when the effect's interval excludes zero and the paired difference from the controls' mean does too.
    """

    candidate: Candidate
    effect: Estimate
    control: Estimate
    difference: Estimate
    works: bool


@dataclass(frozen=True, eq=False, repr=False)
class Screening(Saved):
    """Stage 1: scores of all places looked at, and the candidates, the best of each kind first."""

    KIND: ClassVar[str] = "screening"

    scores: tuple[Scores, ...]
    candidates: tuple[Candidate, ...]
    examples: int


@dataclass(frozen=True, eq=False, repr=False)
class Validation(Saved):
    """Stage 2: every candidate put to the test by intervention.

    `how` says in words what was done to a site; `gap` is the clean − corrupt (or unedited) effect for scale.
    """

    KIND: ClassVar[str] = "validation"

    checks: tuple[Check, ...]
    how: str
    unit: str
    examples: int

    @property
    def working(self) -> tuple[Check, ...]:
        """The candidates that did something, the largest effect first."""
        return tuple(sorted((c for c in self.checks if c.works), key=lambda c: -abs(c.effect.mean)))

    @property
    def false_positives(self) -> float:
        """The fraction of candidates that did nothing beyond their controls; NaN without candidates."""
        return 1 - len(self.working) / len(self.checks) if self.checks else float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class Control(Content):
    """Interventions that should do nothing, treated like the picked one as `about` says, and how far it beats them.

    `effects` (draw, example) are changes of the task's number on the test part, `kl` (draw) nats per token.
    `difference` is the paired difference between the picked intervention's change and the mean control's; `p` the
    share of draws (the picked one counted in) that reach its mean effect. `beaten` when the interval excludes zero on
    the right side, and p ≤ 0.05 where there are draws enough to tell.
    """

    name: str
    about: str
    effects: np.ndarray
    kl: np.ndarray
    difference: Estimate
    p: float
    beaten: bool

    def __post_init__(self) -> None:
        for name, axes in (("effects", ("draw", "example")), ("kl", ("draw",))):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != len(axes) or len(values) != len(self.effects):
                raise TrimtabError(f"{name} of a control must have shape ({' '.join(axes)}), got {values.shape}")
            values.setflags(write=False)
            object.__setattr__(self, name, values)


@dataclass(frozen=True, eq=False, repr=False)
class Sample(Content):
    """A continuation before and after."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, eq=False, repr=False)
class Entangled(Content):
    """The effect of the picked intervention on another task: in its unit, and in standard deviations of its examples'
    unedited values."""

    task: str
    outcome: Outcome
    standardised: Estimate


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Saved):
    """Stage 4: the picked intervention on the test part, which no earlier stage has seen.

    `outcome` is the task's number before and after, `wrong_way` the share of examples that moved against the aim. `kl`
    (nats per token) is estimated over the sources of the neutral text, `perplexity` on the same text; `capability` is
    1 or 0 for each item. `prompt_only` is the same task with an instruction in place of the intervention, where one is
    known, else `no_prompt` says why there is none. `left_out` gives for each other task that was not measured the
    reason. `figures` gives further named numbers, such as the balanced accuracy of a probe on held-out groups.
    """

    KIND: ClassVar[str] = "evaluation"

    outcome: Outcome
    effect: Estimate
    wrong_way: float
    kl: Estimate
    neutral_tokens: int
    neutral_sources: int
    perplexity: tuple[float, float]
    capability: Outcome
    controls: tuple[Control, ...]
    entangled: tuple[Entangled, ...]
    samples: tuple[Sample, ...]
    prompt_only: Outcome | None = None
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    no_prompt: str = ""

    @property
    def moved_wrong(self) -> Estimate:
        """`wrong_way` with its interval over groups (`shares.share_of`), of the examples that have a number.

        Whether the number was to be raised or lowered is told by which of the two `wrong_way` is the share of.
        """
        change, groups = self.outcome.after - self.outcome.before, self.outcome.groups
        down, up = (share_below(change * aim, groups) for aim in (-1, 1))
        return down if abs(down.mean - self.wrong_way) < abs(up.mean - self.wrong_way) else up


@dataclass(frozen=True, eq=False, repr=False)
class Verdict(Saved):
    """Stage 5: a few sentences made from the numbers, the first of which is the answer.

    `outcome`: "found" when the effect beats every control, "not beaten" when it does not, "not found" when no
    intervention qualified, or nothing validated.
    """

    KIND: ClassVar[str] = "verdict"

    outcome: Literal["found", "not beaten", "not found"]
    sentences: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.outcome not in ("found", "not beaten", "not found"):
            raise TrimtabError(f'a verdict is "found", "not beaten" or "not found", got {self.outcome!r}')
        object.__setattr__(self, "sentences", tuple(self.sentences))

    @property
    def found(self) -> bool:
        """Whether an effect was found that beats every control."""
        return self.outcome == "found"

    def __str__(self) -> str:
        return " ".join([f"{self.outcome.capitalize()}.", *self.sentences])


STAGES = ("screen", "validate", "steer", "evaluate", "verdict")


@dataclass(frozen=True, eq=False, repr=False)
class Findings(Content):
    """A whole study, as far as it has come: what was asked, what each stage found, and how to do it again.

    `settings` is the resolved configuration, `seconds` the time of each stage by its name in `STAGES`; a stage that has
    not finished is None. `command` and `python` do the study again (`no_command` says why they cannot be written),
    `reuse` is Python that applies the intervention.
    """

    name: str
    about: str
    task: str
    poles: tuple[str, str]
    examples: Mapping[str, int]
    model: str
    settings: Mapping[str, object]
    command: str
    python: str
    reuse: str
    created: str
    seconds: Mapping[str, float]
    provenance: Provenance | None = None
    screening: Screening | None = None
    validation: Validation | None = None
    search: Search | None = None
    evaluation: Evaluation | None = None
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()
    no_command: str = ""
