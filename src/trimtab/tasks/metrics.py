"""Metrics as readouts: the number that is made of the logits of each row.

Each takes the words that the behaviour calls for (`Choice` of answers) and those it does not (distractors), one set
for each row, and gives a `Readout` whose `differentiable` says whether gradients of it mean anything. Of every metric
more is better: whatever searches takes what raises it. A new metric is a function here; its name is the metric's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trimtab.errors import TaskError, nearest
from trimtab.model.protocols import Readout
from trimtab.values.scope import Scope

Function = Callable[[Tensor, Tensor], Tensor]
Metric = str | Function | Readout
"""A name (`NAMES`), a function of logits and rows, or a readout made beforehand."""


@dataclass(frozen=True, eq=False)
class Choice:
    """For each row a set of token ids: `ids` (row choice), of which those in `real` (row choice) count."""

    ids: Int[Tensor, "row choice"]
    real: Bool[Tensor, "row choice"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Choice:
        """From the token ids of each row, of which there may be different numbers."""
        most = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[row[0]] * (most - len(row))] for row in rows])
        return cls(ids, torch.arange(most) < torch.tensor([len(row) for row in rows])[:, None])


def logit_diff(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """Mean logit of the answers minus mean logit of the distractors, in logits."""

    def function(z: Tensor, rows: Tensor) -> Tensor:
        a, d = _both(z, rows, answers, distractors)
        return _mean(a) - _mean(d)

    return _of_tokens(function, answers, distractors, where, "logit_diff", "logit")


def log_prob_diff(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """log p(any answer) − log p(any distractor), in nats: the log odds between the two sets."""

    def function(z: Tensor, rows: Tensor) -> Tensor:
        a, d = _both(z, rows, answers, distractors)
        return a.logsumexp(-1) - d.logsumexp(-1)

    return _of_tokens(function, answers, distractors, where, "log_prob_diff", "nat")


def log_prob(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """log p(any answer), in nats."""
    return _of_all(lambda logp, a, d: a.logsumexp(-1), answers, distractors, where, "log_prob", "nat")


def prob(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """p(any answer)."""
    return _of_all(lambda logp, a, d: a.logsumexp(-1).exp(), answers, distractors, where, "prob", "probability")


def prob_diff(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """p(any answer) − p(any distractor)."""

    def function(logp: Tensor, a: Tensor, d: Tensor) -> Tensor:
        return a.logsumexp(-1).exp() - d.logsumexp(-1).exp()

    return _of_all(function, answers, distractors, where, "prob_diff", "probability")


def log_odds(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """log p(any answer) − log p(anything else), in nats: the refusal score of Arditi et al. 2024 (arXiv 2406.11717)."""

    def function(logp: Tensor, a: Tensor, d: Tensor) -> Tensor:
        inside = a.logsumexp(-1)
        return inside - torch.log(-torch.expm1(inside.clamp(max=-1e-12)))

    return _of_all(function, answers, distractors, where, "log_odds", "nat")


def rank(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """Minus the best rank of an answer in the vocabulary, −1 being the top; of no use to gradients."""

    def function(logp: Tensor, a: Tensor, d: Tensor) -> Tensor:
        return -(logp > a.amax(-1, keepdim=True)).sum(-1).to(logp.dtype) - 1

    return _of_all(function, answers, distractors, where, "rank", "ranks", differentiable=False)


def accuracy(answers: Choice, distractors: Choice, where: str | Scope = "last") -> Readout:
    """1 where the likeliest of all answers and distractors is an answer, else 0; of no use to gradients."""

    def function(z: Tensor, rows: Tensor) -> Tensor:
        a, d = _both(z, rows, answers, distractors)
        return (a.amax(-1) > d.amax(-1)).to(z.dtype)

    return _of_tokens(function, answers, distractors, where, "accuracy", "share", differentiable=False)


def counted(metric: Readout) -> Readout:
    """What is shown of a metric as a quantity: a rank counts from 1, the metric is minus that; others stay."""
    if metric.name != rank.__name__:
        return metric
    return replace(metric, function=lambda logits, rows: -metric.function(logits, rows), unit="rank")


BY_NAME = {f.__name__: f for f in (log_prob_diff, logit_diff, log_prob, prob, prob_diff, log_odds, rank, accuracy)}


DEFAULT = log_prob_diff.__name__
"""What a task is measured by that names nothing else."""
SEQUENCE = "sequence_log_prob"
"""The name of the log-likelihood of whole texts, which `tasks.measure` makes of the texts of contrast examples."""
NAMES = (*BY_NAME, SEQUENCE)
"""The metrics that a task can name."""


def name_of(metric: Metric) -> str:
    """What a metric is called."""
    if isinstance(metric, str):
        return metric
    return metric.name if isinstance(metric, Readout) else getattr(metric, "__name__", "metric")


def check_name(metric: str) -> None:
    """TaskError for a name that no metric bears."""
    if metric == "kl":
        raise TaskError(
            'a task cannot name "kl": it is read against the unedited model on the clean prompts, which have to be run '
            "first. In Python give a readout that has been, task.with_(metric=kl_to_clean(lm, task)) with "
            f"trimtab.tasks.divergence.kl_to_clean; by name there are {', '.join(NAMES)}"
        )
    if metric not in NAMES:
        raise TaskError(f'unknown metric "{metric}"{nearest(metric, NAMES)}: there are {", ".join(NAMES)}')


def has_gradient(metric: Metric) -> bool:
    """Whether a gradient of a metric says anything: not of one that moves in steps. TaskError for an unknown name."""
    if isinstance(metric, str):
        check_name(metric)
        if metric == SEQUENCE:
            return True
    if isinstance(metric, Readout):
        return metric.differentiable
    return readout(metric, Choice.of([[0]]), Choice.of([[1]])).differentiable


def readout(metric: Metric, answers: Choice, distractors: Choice) -> Readout:
    """The readout of a metric, given by name, as a function of the last logits (batch pos vocab) and rows (batch) that
    gives (batch), or as a readout, which stays as it is.

    A readout that was made for its rows (`Readout.rows`) is of just these in their order. Their number is compared with
    that of the rows of `answers`; that other examples, as many, or the same ones in another order are read is not seen.

    A function that moves in steps says so by an attribute, `function.differentiable = False`; others count as
    differentiable.

    Raises TaskError for an unknown name, for the one of whole texts, which has no answers of one token, and for a
    readout made for another number of examples.
    """
    if isinstance(metric, Readout):
        if metric.rows not in (None, len(answers.ids)):
            raise TaskError(
                f"{metric.name} was made for {metric.rows} examples, and these are {len(answers.ids)}: make it again "
                "for this part of the task (the gap of clean and corrupt prompts has each example twice: read one of "
                f"the two, or give a metric by name, such as {DEFAULT})"
            )
        return metric
    if callable(metric):
        return Readout(
            metric,
            name=name_of(metric),
            rows=len(answers.ids),
            differentiable=getattr(metric, "differentiable", True) is not False,
        )
    check_name(metric)
    if metric not in BY_NAME:
        raise TaskError(
            f"{metric} reads whole texts, and answers of one token after a prompt are read by one of "
            f"{', '.join(BY_NAME)}: choose one of these, or give contrast examples"
        )
    return BY_NAME[metric](answers, distractors)


def sequence_log_prob(
    targets: Choice, where: str | Scope, weight: Float[Tensor, "row"], name: str, unit: str = "nat"
) -> Readout:
    """weight · Σ log p(target): of each row the log-likelihood of the tokens `targets` (row token), in nats.

    `where` names the positions that predict them, as many as the row has targets; `weight` (row) signs or averages it.
    """

    def function(logits: Tensor, rows: Tensor) -> Tensor:
        n = min(logits.shape[1], targets.ids.shape[1])
        at, real = (part.to(logits.device)[rows, :n] for part in (targets.ids, targets.real))
        picked = torch.log_softmax(_wide(logits[:, :n]), -1).gather(-1, at[..., None])[..., 0]
        return torch.where(real, picked, 0.0).sum(-1) * weight.to(picked)[rows]

    return Readout(function, Scope.parse(where), None, name, unit, len(targets.ids), ragged=True)


def kl(clean: Float[Tensor, "row pos vocab"], real: Bool[Tensor, "row pos"], where: str | Scope = "last") -> Readout:
    """KL(clean ‖ read) at each position of each row (row pos), in nats per token; NaN where `real` is not.

    `clean` are log-probabilities of the unedited model at the positions of `where`.
    """

    def function(logits: Tensor, rows: Tensor) -> Tensor:
        n = logits.shape[1]
        ours = clean.to(logits.device)[rows, :n]
        apart = ours - torch.log_softmax(_wide(logits), -1)
        gap = torch.where(ours > -torch.inf, ours.exp() * apart, 0.0).sum(-1)  # what is impossible weighs nothing
        return torch.where(real.to(logits.device)[rows, :n], gap, torch.nan)

    return Readout(function, Scope.parse(where), None, "kl", "nat", len(clean), ragged=True)


def _both(z: Tensor, rows: Tensor, answers: Choice, distractors: Choice) -> tuple[Tensor, Tensor]:
    """The read logits (batch pos answers+distractors) parted at the one position; those that do not count at −inf."""
    z, cut = z.squeeze(1), answers.ids.shape[1]
    real = torch.cat([answers.real, distractors.real], 1).to(z.device)[rows]
    z = z.masked_fill(~real, -torch.inf)
    return z[:, :cut], z[:, cut:]


def _mean(z: Tensor) -> Tensor:
    there = z > -torch.inf
    return torch.where(there, z, 0.0).sum(-1) / there.sum(-1)


def _of_tokens(
    function: Function,
    answers: Choice,
    distractors: Choice,
    where: str | Scope,
    name: str,
    unit: str,
    differentiable: bool = True,
) -> Readout:
    """A readout of the logits of answers and distractors alone."""
    tokens = torch.cat([answers.ids, distractors.ids], 1)
    return Readout(function, Scope.parse(where), tokens, name, unit, differentiable=differentiable)


def _of_all(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    answers: Choice,
    distractors: Choice,
    where: str | Scope,
    name: str,
    unit: str,
    differentiable: bool = True,
) -> Readout:
    """A readout of the whole distribution: `function` gets log-probabilities (batch vocab), of answers, of
    distractors."""

    def read(logits: Tensor, rows: Tensor) -> Tensor:
        logp = torch.log_softmax(_wide(logits.squeeze(1)), -1)
        parts = [
            logp.gather(-1, c.ids.to(logp.device)[rows]).masked_fill(~c.real.to(logp.device)[rows], -torch.inf)
            for c in (answers, distractors)
        ]
        return function(logp, *parts)

    return Readout(read, Scope.parse(where), None, name, unit, len(answers.ids), differentiable=differentiable)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits
