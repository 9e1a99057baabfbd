"""The subject of each prompt, blurred: where it is, how much noise it is given, and what the model says without any.

It draws noise and reads clean prompts; what is restored afterwards is `tracing`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import TaskError, TrimtabError, nearest
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.model.run import Run
from trimtab.model.spans import RELATIVE, relative
from trimtab.tasks.means import batches
from trimtab.tasks.measure import Measure, measure_alone, tokens_of
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Ref
from trimtab.values.scope import Scope
from trimtab.values.site import Site

if TYPE_CHECKING:
    from trimtab.model.lm import LM

Known = Literal["top", "rather", "all"]

EMBED = Site("embed")
KNOWN: tuple[Known, ...] = ("top", "rather", "all")


@dataclass(frozen=True, eq=False)
class Subject:
    """The clean prompts of a task with the spans around their subjects, and the noise that these are given.

    `sigma` is the noise's standard deviation in the units of `embed`, `clean` (example) the metric without noise,
    `top` and `rather` which examples the model gets right by either rule, `spans` where states are restored by default.
    """

    lm: LM
    measured: Measure
    name: str
    sigma: float
    samples: int
    seed: int
    clean: Float[np.ndarray, "example"]
    top: np.ndarray
    rather: np.ndarray
    spans: tuple[str, ...]
    options: Mapping[str, object]

    @classmethod
    def of(
        cls,
        lm: LM,
        task: Task,
        name: str,
        *,
        noise: float,
        samples: int,
        seed: int,
        metric: str,
        batch_size: int,
    ) -> Subject:
        """One forward pass over the clean prompts. TaskError where they have no such span, or it has no tokens."""
        if not noise >= 0 or samples < 1:
            raise TrimtabError(
                f"noise is 0 or more standard deviations, in 1 or more samples, got {noise!r} and {samples!r}"
            )
        measured = measure_alone(lm, task, metric)
        prompts = measured.prompts
        if name not in prompts.spans or name in ("end", "text"):
            have = [span for span in prompts.spans if span not in ("end", "text")]
            raise TaskError(
                f'{task.name} has no span "{name}"{nearest(name, have)} whose embeddings could be corrupted: it has '
                f"{', '.join(have) or 'none that every prompt has'}; give subject= one of these, or examples with "
                'spans={"subject": …}'
            )
        if empty := [row for row, tokens in enumerate(prompts.spans[name]) if not tokens]:
            raise TaskError(f'"{name}" covers no token of {task.examples[empty[0]]!r}')
        around = _around(prompts, name)
        measured = Measure(prompts.with_spans(**around), measured.readout, measured.owner, measured.groups)
        clean, top, rather = _said(lm, task, measured, batch_size)
        deviation = _deviation(lm, prompts, name, batch_size)
        options = {"subject": name, "noise": noise, "sigma": noise * deviation, "samples": samples, "seed": seed}
        spans = (*around, "end")
        return cls(
            lm,
            measured,
            name,
            noise * deviation,
            samples,
            seed,
            clean,
            top,
            rather,
            spans,
            options | {"metric": metric},
        )

    @property
    def prompts(self) -> Prompts:
        """The clean prompts."""
        return self.measured.prompts

    @property
    def unit(self) -> str:
        """Of the metric."""
        return self.measured.unit

    @property
    def edit(self) -> Edit:
        """What corrupts a run: it takes the noise from the run named "noise"."""
        return Edit(EMBED, "add", Ref("noise"), Scope.parse(self.name))

    def readout(self, rows: Sequence[int]) -> Readout:
        """The metric of some rows."""
        return self.measured.readout.of_rows(rows)

    def counted(self, known: Known) -> list[int]:
        """The examples that count. TaskError where none does."""
        if known not in KNOWN:
            raise TrimtabError(
                f'known is "top", "rather" or "all", got {known!r}{nearest(str(known), KNOWN)}: examples that count'
            )
        right = {"top": self.top, "rather": self.rather, "all": np.ones(len(self.top), bool)}[known]
        if not right.any():
            ways = {"top": "likeliest of all tokens", "rather": "likelier than its distractor"}[known]
            raise TaskError(
                f"{self.lm.name} knows none of these {len(right)} answers (each would have to be the {ways}), so there "
                'is no recall to trace: give prompts that it gets right, or known="rather" or "all"'
            )
        return right.nonzero()[0].tolist()

    def drawn(self, rows: Sequence[int], many: Prompts) -> Run:
        """The noise at the subjects of some rows, each as often in `many` as there are samples: a run made by hand.

        It depends on the seed, the prompt's tokens and the sample: not on padding, batches or the other examples.
        """
        d = self.lm.anatomy.d_model
        values = np.zeros((*many.ids.shape, d), np.float32)
        places = many.positions(self.name)
        for i, row in enumerate(rows):
            rng = np.random.default_rng([self.seed, crc32(repr(self.prompts.tokens[row]).encode())])
            at = places[i * self.samples]
            rows_ = slice(i * self.samples, (i + 1) * self.samples)
            values[rows_, at] = self.sigma * rng.standard_normal((self.samples, len(at), d), np.float32)
        return Run(many, None, {EMBED: torch.as_tensor(values).to(self.lm.device, self.lm.dtype)})


def _around(prompts: Prompts, name: str) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Spans relative to the subject's: its first, middle and last token, the next one, and those up to the last."""
    rows = list(zip(prompts.tokens, prompts.spans[name], strict=True))
    return {
        f"{name}_{part}": tuple(relative(part, places, len(tokens)) for tokens, places in rows) for part in RELATIVE
    }


def _said(lm: LM, task: Task, measured: Measure, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The metric (example) without noise, where the likeliest token is an answer, where answers beat distractors."""
    words = [(e.answers, e.distractors) for e in task.examples]
    tokens = tokens_of(lm, (word for pair in words for side in pair for word in side))
    clean, top, rather = np.zeros(len(words)), np.zeros(len(words), bool), np.zeros(len(words), bool)
    for rows in batches(measured.prompts, lm.anatomy.d_model, batch_size):
        run = lm.run(measured.prompts.rows(rows, trim=True), "final@last", logits=False)
        with torch.no_grad():
            logits = lm.unembed(run["final@last"][:, None])
        values = measured.readout.of(logits, torch.tensor(rows, device=logits.device))
        clean[rows] = values.double().cpu().numpy()
        for row, said in zip(rows, logits[:, 0], strict=True):
            answers, distractors = ([tokens[word][0] for word in side] for side in words[row])
            top[row] = int(said.argmax()) in answers
            rather[row] = bool(said[answers].max() > said[distractors].max())
    return clean, top, rather


def _deviation(lm: LM, prompts: Prompts, name: str, batch_size: int) -> float:
    """The standard deviation of the entries of all subject tokens' embeddings, those of positions apart."""
    count, total, squares = 0, 0.0, 0.0
    for rows in batches(prompts, lm.anatomy.d_model, batch_size):
        part = prompts.rows(rows, trim=True)
        embedded = _embedded(lm, part)
        entries = embedded[part.columns(name).to(embedded.device)].double()
        count, total, squares = (
            count + entries.numel(),
            total + float(entries.sum()),
            squares + float((entries**2).sum()),
        )
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


@torch.no_grad()
def _embedded(lm: LM, prompts: Prompts) -> Float[Tensor, "batch pos d_model"]:
    """Token embeddings as they enter block 0, scaled as they are there, without what a table of positions adds."""
    anatomy = lm.anatomy
    if not anatomy.family.position_table:
        return lm.run(prompts, EMBED, logits=False).whole(EMBED)
    embedded = anatomy.embedding(prompts.ids.to(lm.device))
    return embedded if anatomy.project_in is None else anatomy.project_in(embedded)
