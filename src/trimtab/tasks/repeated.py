"""Repeated random tokens: sequences in which nothing but their own first half says what comes next.

Heads that copy from earlier in a text are measured on them, because ordinary text gives them the same answer by
meaning (Olsson et al. 2022, arXiv 2209.11895: "in-context learning and induction heads"). Sequences of the same tokens
without the repetition are the null. It knows nothing of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import TaskError
from trimtab.model.prompts import Prompts
from trimtab.values.content import Content

if TYPE_CHECKING:
    from trimtab.model.lm import LM


@dataclass(frozen=True, eq=False, repr=False)
class RepeatedTokens(Content):
    """`sequences` random sequences of `length` different tokens, each `times` times in a row.

    Tokens are drawn evenly from the model's own vocabulary without its special and added tokens, and none occurs twice
    within a sequence. A sequence stands for an example, in a group of its own, so intervals are over sequences.
    `bos`: whether the tokenizer's BOS goes before each; None does what the tokenizer does with a text.

    >>> RepeatedTokens(length=4, sequences=2)
    RepeatedTokens(length=4, times=2, sequences=2, seed=0, bos=None)
    """

    length: int = 25
    times: int = 2
    sequences: int = 16
    seed: int = 0
    bos: bool | None = None

    name = "repeated random tokens"

    def __post_init__(self) -> None:
        for field, least in (("length", 2), ("times", 2), ("sequences", 1)):
            if getattr(self, field) < least:
                raise TaskError(f"{field} of repeated tokens is at least {least}, got {getattr(self, field)}")

    def __len__(self) -> int:
        return self.sequences

    @property
    def groups(self) -> tuple[str, ...]:
        """Each sequence is a group of its own."""
        return tuple(f"sequence {i}" for i in range(self.sequences))

    def prompts(self, lm: LM) -> Prompts:
        """The sequences as this model's prompts: (sequence) rows of `length`·`times` tokens, and the BOS if any."""
        return self._prompts(lm, [row[: self.length] * self.times for row in self._drawn(lm)])

    def unrelated(self, lm: LM) -> Prompts:
        """The same first `length` tokens, and after them others, none of which was there before: the null.

        Every position has a counterpart in `prompts`, so that attention between the same positions can be compared.
        """
        return self._prompts(lm, self._drawn(lm))

    def _drawn(self, lm: LM) -> list[list[int]]:
        """For each sequence `length`·`times` different tokens."""
        pool, needed = vocabulary(lm), self.length * self.times
        if len(pool) < needed:
            raise TaskError(
                f"{lm.name} has {len(pool)} tokens to draw from, and {needed} different ones are needed: "
                f"give a length of at most {len(pool) // self.times}"
            )
        return [
            np.random.default_rng([self.seed, i]).choice(pool, needed, replace=False).tolist()
            for i in range(self.sequences)
        ]

    def _prompts(self, lm: LM, rows: list[list[int]]) -> Prompts:
        bos = self.bos
        if bos is None and lm.tokenizer is not None:
            token = lm.tokenizer.bos_token_id
            bos = token is not None and list(lm.tokenizer("", verbose=False)["input_ids"])[:1] == [token]
        return lm.prompts(rows, bos=True) if bos else lm.prompts(rows)


def vocabulary(lm: LM) -> np.ndarray:
    """(token) ids of the model's ordinary tokens: those that the tokenizer knows, without special and added ones."""
    if lm.tokenizer is None:
        return np.arange(lm.anatomy.vocab)
    known = min(lm.anatomy.vocab, len(lm.tokenizer))
    apart = {*lm.tokenizer.all_special_ids, *lm.tokenizer.added_tokens_decoder}
    return np.array([token for token in range(known) if token not in apart])
