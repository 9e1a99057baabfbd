"""The lens over a task: what each layer's stream, or what a head or a sublayer writes, says of the task's answer.

Logit lens (nostalgebraist 2020) and, with a trained one, tuned lens (Belrose et al. 2023, arXiv 2303.08112); heads and
sublayers are read as if what they write were the whole stream. It reads and does not intervene: that the answer can
be read at a layer does not say that later layers read it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import TaskError, nearest
from trimtab.locate.pairing import alone
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_lens
from trimtab.locate.units import Places, Spans, places
from trimtab.locate.vocabulary import (
    AT_ONCE,
    STREAM,
    WRITTEN,
    Translator,
    cell_numbers,
    check_readable,
    log_probabilities,
    needed,
    vectors,
)
from trimtab.model.memory import held
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.model.run import Run
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure
from trimtab.tasks.metrics import BY_NAME, counted
from trimtab.tasks.task import Task
from trimtab.values.scores import Order, Scores
from trimtab.values.site import Site
from trimtab.values.tuned_lens import TunedLens

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

Progress = Callable[[int, int], None]
Numbers = Callable[[Tensor, Tensor | None, Tensor], Tensor]
Quantity = Literal[
    "metric", "logit_diff", "log_prob_diff", "log_prob", "prob", "prob_diff", "rank", "accuracy", "entropy", "kl"
]
OWN = ("entropy", "kl")
"""Quantities of the whole distribution, which know of no answer."""
ON = ("clean", "corrupt")


@alone
@planned_by(plan_lens)
def logit_lens_scores(
    lm: LM,
    task: Task,
    sites: Reads = "L*.resid_post",
    *,
    quantity: Quantity = "metric",
    spans: Spans | None = None,
    on: Literal["clean", "corrupt"] = "clean",
    lens: TunedLens | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """What a task's answers look like when a site is read through the final norm and the unembedding.

    Args:
        sites: residual streams ("L*.resid_mid"), heads ("L*.head", through the output projection, without its bias) or
            what sublayers write ("L*.mlp_out", "L*.attn_out").
        quantity: "metric", the task's own; another metric by name; or of the whole distribution "entropy" and "kl", the
            divergence KL(model's output ‖ site's), in nats.
        spans: positions at which the site is read, the number's mean over them; by default those where the task is
            measured, after its prompt. A task of whole texts has no others.
        on: which prompts of a counterfactual task.
        lens: translators of residual streams, from `train_tuned_lens`.
        batch_size: prompts in a pass.
        progress: called with prompts done and prompts in all.

    Returns:
        `Scores` over layers (heads) and spans, in the quantity's own unit; at the last `resid_post` they are what the
        model itself says. Heads named in the site are read as one, by the sum of what they write.

    Raises:
        SiteError: a site that writes no vector to the stream. TaskError: an unknown quantity, or spans for a task of
        whole texts.

    >>> ranks = logit_lens_scores(lm, task, quantity="rank")  # doctest: +SKIP
    >>> first_layer(ranks)  # doctest: +SKIP
    array([[24.], [22.]])
    """
    check_choice("quantity", quantity, ("metric", *BY_NAME, *OWN))
    check_choice("on", on, ON)
    metric = None if quantity in ("metric", *OWN) else quantity
    measured = measure(lm, task, on=on, metric=metric)
    measured = measured if metric is None else replace(measured, readout=counted(measured.readout))
    where = places(lm, sites, spans, mapped=str(measured.readout.where), alone=str(measured.readout.where))
    kinds = STREAM if lens is not None else (*STREAM, *WRITTEN)
    check_readable([block.with_(at=None) for block in where.blocks], kinds)
    reader = Reader(lm, measured, where, lens, own=quantity == "kl")
    if measured.readout.ragged and any(block.at != measured.readout.where for block in where.blocks):
        raise TaskError(
            f"{task.name} is read as the log-likelihood of whole texts, at the positions before each of their tokens: "
            "leave spans out"
        )

    def numbers(logits: Tensor, own: Tensor | None, rows: Tensor) -> Tensor:
        if quantity not in OWN:
            return measured.readout.value(logits, rows)
        logp = log_probabilities(logits)
        return cell_numbers(logp.flatten(0, 1), (logp if own is None else own).flatten(0, 1))[quantity]

    share = quantity in OWN
    columns = reader.columns(numbers, joint=not share, few=not share, batch_size=batch_size, progress=progress)
    array = where.array(per_example(measured, column[..., 0], mean=share) for column in columns)
    unit = "nat" if share else measured.unit
    options = {"quantity": quantity, "on": on, "lens": None if lens is None else lens.digest}
    order = order_of_metric(measured.readout.name) if quantity == "metric" else order_of(quantity)
    return where.scores(array, lm, task, measured.prompts, "logit_lens_scores", unit, options).with_(order=order)


def order_of(quantity: str) -> Order:
    """Which values of a quantity that is read, not changed, are the strongest: the answer is first, or near certain."""
    if quantity in ("rank", "entropy", "kl"):
        return "low"
    return "high" if quantity in ("log_prob", "log_odds", "sequence_log_prob") else "abs"


def order_of_metric(name: str) -> Order:
    """As `order_of` of a task's own metric, of which more is always better: "rank" is minus the rank."""
    return "high" if name == "rank" else order_of(name)


def first_layer(ranks: Scores, rank: float = 1.0) -> np.ndarray:
    """(example …) the first layer from which on the answer's rank is at most `rank` up to the last layer there is.

    `ranks`: of `logit_lens_scores(…, quantity="rank")`. NaN where the last layer itself does not reach it.
    """
    if "layer" not in ranks.dims or ranks.unit != "rank":
        raise TaskError(
            f'first_layer takes ranks over layers: quantity="rank" and sites such as "L*.resid_post", got '
            f"{ranks.unit} over {', '.join(ranks.places)}"
        )
    axis = ranks.dims.index("layer")
    reached = np.moveaxis(ranks.array, axis, -1) <= rank
    stays = np.flip(np.logical_and.accumulate(np.flip(reached, -1), axis=-1), -1)
    layers = np.array(ranks.coords["layer"], dtype=float)
    return np.where(stays[..., -1], layers[stays.argmax(-1)], np.nan)


class Reader:
    """Logits of every place of a task, a few cells at a time, handed to whoever makes numbers of them."""

    def __init__(self, lm: LM, measured: Measure, where: Places, lens: TunedLens | None, *, own: bool) -> None:
        self.lm, self.measured, self.where = lm, measured, where
        self.translated = Translator(lm, lens, [block.with_(at=None) for block in where.blocks] if lens else [])
        self.last = Site("resid_post", lm.anatomy.n_layers - 1)
        self.own = own

    def columns(
        self, numbers: Numbers, *, joint: bool, few: bool, batch_size: int, progress: Progress | None, width: int = 1
    ) -> list[np.ndarray]:
        """Of each block (row unit width): `numbers(logits, own, rows)`, which gives (cell) or (cell width); rows are
        those of all prompts.

        `logits` are (cell pos token), `own` the model's own log-probabilities (cell pos vocab) where they were asked
        for. `joint`: a readout of several positions gets them in one cell; else every cell is one position, and the
        number is the mean over a row's. `few`: only the readout's tokens are unembedded where it names some.
        """
        prompts, units = self.measured.prompts, self.where.units or 1
        found = [np.full((len(prompts), units, width), np.nan) for _ in self.where.blocks]
        wanted = needed([*self.where.blocks, *([self.last] if self.own else [])])
        entries = sum(int(np.prod(self.lm.shape(site))) for site in wanted)
        done = 0
        for rows in batches(prompts, entries, batch_size):
            part = prompts.rows(rows, trim=True)
            run = self.lm.run(part, wanted, logits=False)
            readout, whole = self.measured.readout.of_rows(rows), torch.tensor(rows)
            with torch.no_grad():
                for block, column in zip(self.where.blocks, found, strict=True):
                    total, count = np.zeros(column[rows].shape), np.zeros((len(rows), 1, 1))
                    for at, columns in self._cells(part, block, readout, joint, few):
                        np.add.at(count, at.numpy(), 1.0)
                        for unit, logits, own in self._logits(run, block, readout, at, columns, few):
                            values = numbers(logits, own, whole[at].to(logits.device)).double().cpu().numpy()
                            np.add.at(total[:, unit], at.numpy(), values.reshape(len(at), width))
                    column[rows] = total / count
            done += len(rows)
            if progress is not None:
                progress(done, len(prompts))
        return found

    def _logits(
        self, run: Run, block: Site, readout: Readout, rows: Tensor, columns: Tensor, few: bool
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Of each unit of a block: its logits (cell pos token) at some cells, and the model's own."""
        flat = rows.repeat_interleave(columns.shape[1])
        x = vectors(self.lm, run, block, flat, columns.flatten())
        own = None
        if self.own:
            stream = vectors(self.lm, run, self.last, flat, columns.flatten())[:, 0]
            own = log_probabilities(self.lm.unembed(self.lm.final(stream))).unflatten(0, columns.shape)
        tokens = readout.tokens if few else None
        tokens = tokens[rows] if tokens is not None and tokens.ndim == 2 else tokens
        for unit in range(x.shape[1]):
            final = self.lm.final(self.translated(block.with_(at=None), x[:, unit]))
            yield unit, self.lm.unembed(final.unflatten(0, columns.shape), tokens), own

    def _cells(
        self, prompts: Prompts, block: Site, readout: Readout, joint: bool, few: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (cell) and columns (cell pos) that are read together."""
        assert block.at is not None
        if readout.ragged and joint:
            columns = readout.columns(prompts)
            rows = torch.arange(len(prompts))
        else:
            positions = prompts.columns(block.at)
            if not bool(positions.any(1).all()):
                row = int(positions.any(1).int().argmin())
                text = " ".join(prompts.tokens[row])[:80]
                raise TaskError(f'"{block.at}" covers no token of {text!r}: read another span')
            rows, columns = positions.cpu().nonzero(as_tuple=True)
            columns = columns[:, None]
        wide = readout.tokens.shape[-1] if few and readout.tokens is not None else self.lm.anatomy.vocab
        vector = (self.where.units or 1) * self.lm.anatomy.d_model
        size = max(1, held(AT_ONCE) // (max(2 * wide, vector) * columns.shape[1]))
        for start in range(0, len(rows), size):
            yield rows[start : start + size], columns[start : start + size]


def per_example(measured: Measure, column: np.ndarray, *, mean: bool = False) -> np.ndarray:
    """(example unit) from (row unit): the sum over an example's rows, as of a metric, or their mean."""
    summed = measured.per_example(torch.from_numpy(np.ascontiguousarray(column.T))).T
    if not mean:
        return summed
    return summed / np.bincount(measured.owner, minlength=len(measured))[:, None]


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """A `TaskError` for a value that is not among those known."""
    if value not in known:
        raise TaskError(f'unknown {name} "{value}"{nearest(str(value), known)}: there are {", ".join(known)}')
