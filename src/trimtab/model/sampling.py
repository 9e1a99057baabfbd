"""Sampling: the next token of each row from its logits.

Logits are warped by transformers' own processors, and each row draws from a generator of its own, so what a row says
does not depend on the rows beside it. It knows nothing of models, caches or texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trimtab.errors import EditError, PromptError

COLDEST = 1e-6
"""The lowest temperature above 0: logits divided by less may be too large to be numbers."""
PENALTIES = (1e-3, 1e3)
"""The range of repetition penalties, for the same reason."""
NOTHING_TO_DRAW = (
    "the model's logits are too large to draw from at this temperature and repetition penalty: an edit is too strong "
    "for it"
)


@dataclass(frozen=True)
class Sampling:
    """How a token is picked: a temperature of 0 takes the likeliest one; None leaves a rule out.

    `check` raises `PromptError` for a number that is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None

    def check(self) -> None:
        """`PromptError` for a number out of range."""
        top_k, top_p, penalty = self.top_k, self.top_p, self.repetition_penalty
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise PromptError(
                f"temperature must be 0 (the likeliest token) or at least {COLDEST:g} and finite, "
                f"got {self.temperature}"
            )
        if top_k is not None and top_k < 0:
            raise PromptError(f"top_k is a number of tokens, 0 for all of them, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise PromptError(f"top_p is a share of probability, above 0 and at most 1, got {top_p}")
        least, most = PENALTIES
        if penalty is not None and not least <= penalty <= most:
            raise PromptError(
                f"repetition_penalty divides logits and must be from {least:g} to {most:g} (1 changes nothing), "
                f"got {penalty}"
            )

    @property
    def plain(self) -> bool:
        """Whether the token is simply the likeliest one."""
        return self.temperature == 0 and self.repetition_penalty is None

    @cached_property
    def processors(self) -> LogitsProcessorList:
        """Transformers' warpers, in its own order."""
        made = LogitsProcessorList()
        if self.repetition_penalty is not None:
            made.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature != 0:
            made.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                made.append(TopKLogitsWarper(self.top_k))
            if self.top_p is not None and self.top_p < 1:
                made.append(TopPLogitsWarper(self.top_p))
        return made

    def pick(
        self,
        said: Int[Tensor, "batch pos"],
        logits: Float[Tensor, "batch vocab"],
        generators: Sequence[torch.Generator],
    ) -> Int[Tensor, "batch"]:
        """The next token of every row; `said` are its tokens so far, which only a repetition penalty looks at.

        Raises `EditError` where there is nothing to draw from in one of them.
        """
        tokens = self.draw(said, logits, generators)
        if bool((tokens < 0).any()):
            raise EditError(NOTHING_TO_DRAW)
        return tokens

    def draw(
        self,
        said: Int[Tensor, "batch pos"],
        logits: Float[Tensor, "batch vocab"],
        generators: Sequence[torch.Generator],
    ) -> Int[Tensor, "batch"]:
        """Like `pick`, with -1 for a row whose logits are too large for its probabilities to be numbers."""
        if self.processors:
            logits = self.processors(said, logits.float())  # pyright: ignore[reportArgumentType]
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits.float(), -1).cpu()
        tokens = torch.full((len(probabilities),), -1)
        for row in probabilities.isfinite().all(-1).nonzero()[:, 0].tolist():
            tokens[row] = torch.multinomial(probabilities[row], 1, generator=generators[row])[0]
        return tokens
