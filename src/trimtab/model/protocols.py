"""What the model room needs to know of dictionaries, metrics and the runs that edits take values from, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trimtab.errors import EditError, PromptError
from trimtab.model.prompts import Prompts
from trimtab.values.scope import Scope
from trimtab.values.site import Site


@runtime_checkable
class Dictionary(Protocol):
    """Sparse features of a site: `decode(encode(x))` is the part of x that the features explain.

    `encode` takes (… d) to (… feature), `decode` takes (… feature) to (… d).
    """

    def encode(self, x: Tensor) -> Tensor:
        """Features (… feature) of x (… d)."""
        ...

    def decode(self, features: Tensor) -> Tensor:
        """The part of x (… d) that features (… feature) explain."""
        ...


class Source(Protocol):
    """What an edit needs of another run: its prompts and its activations at a site (batch pos …)."""

    @property
    def prompts(self) -> Prompts:
        """What was run."""
        ...

    def whole(self, site: Site) -> Tensor:
        """A whole site, (batch pos unit …)."""
        ...


LAST = Scope("index", index=-1)


@dataclass(frozen=True)
class Readout:
    """What is read off the logits: at which positions, of which tokens, and the number that is made of them.

    `function(logits, rows)` gets logits (batch pos token), where pos are the positions of `where` and token the entries
    of `tokens` (the whole vocabulary when None), and the row of the prompts of each batch row; it gives (batch) or
    (batch …), one entry per row, each from that row's logits alone. `tokens` is (token) for all rows or (rows token).
    """

    function: Callable[[Tensor, Tensor], Tensor]
    where: Scope = LAST
    tokens: Tensor | None = None
    name: str = "readout"
    unit: str = ""
    rows: int | None = None
    """How many rows it was made for; None for any number."""
    ragged: bool = False
    """Rows may have different numbers of positions: a short row repeats its last one, for `function` to ignore."""
    differentiable: bool = True
    """Whether a gradient of it says anything."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens.ndim == 2:
            object.__setattr__(self, "rows", len(self.tokens))

    def of(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The number(s) of each row from logits of the whole vocabulary at the read positions (batch pos vocab)."""
        if self.tokens is None:
            return self.value(logits, rows)
        tokens = self.tokens.to(logits.device)
        if tokens.ndim == 1:
            return self.value(logits[..., tokens], rows)
        return self.value(logits.gather(-1, tokens[rows][:, None].expand(-1, logits.shape[1], -1)), rows)

    def of_rows(self, which: Sequence[int]) -> Readout:
        """The same readout for prompts that are only these rows of those it was made for."""
        at, inner = torch.tensor(list(which)), self.function
        tokens = self.tokens if self.tokens is None or self.tokens.ndim == 1 else self.tokens[at]
        return replace(
            self,
            function=lambda logits, rows: inner(logits, at.to(rows.device)[rows]),
            tokens=tokens,
            rows=None if self.rows is None else len(at),
        )

    def value(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The number(s) of each row from the logits that are read (batch pos token); `EditError` for another shape."""
        value = self.function(logits, rows)
        if value.shape[:1] != (len(rows),):
            raise EditError(
                f"{self.name}: a readout must give one entry for each of {len(rows)} rows, from that row's logits; "
                f"got shape {tuple(value.shape)}"
            )
        return value

    def columns(self, prompts: Prompts) -> Tensor:
        """(batch pos) absolute columns that are read; every row must have equally many, or the readout be `ragged`."""
        if self.rows not in (None, prompts.batch):
            raise PromptError(f"{self.name} was made for {self.rows} rows, and the prompts have {prompts.batch} rows")
        positions = prompts.positions(self.where)
        counts = {len(p) for p in positions}
        if self.ragged and min(counts):
            return torch.tensor([[*p, *[p[-1]] * (max(counts) - len(p))] for p in positions], dtype=torch.long)
        if len(counts) != 1:
            raise PromptError(
                f"{self.name} reads {self.where}, {min(counts)} to {max(counts)} tokens in different rows; read "
                'one position ("-1") or a span with the same number of tokens in every row'
            )
        return torch.tensor(positions, dtype=torch.long)


def logit_diff(
    answers: Sequence[int] | Tensor, distractors: Sequence[int] | Tensor, where: str | Scope = "last"
) -> Readout:
    """logit(answer) − logit(distractor) at one position, for each row.

    `answers`, `distractors`: token ids (rows). Unit: logits.
    """
    tokens = torch.stack(_ids(answers, distractors), dim=-1)
    return Readout(
        lambda z, rows: (z[..., 0] - z[..., 1]).squeeze(-1), Scope.parse(where), tokens, "logit_diff", "logit"
    )


def log_prob(answers: Sequence[int] | Tensor, where: str | Scope = "last") -> Readout:
    """log p(answer) at one position, for each row. `answers`: token ids (rows). Unit: nats."""
    (ids,) = _ids(answers)

    def function(logits: Tensor, rows: Tensor) -> Tensor:
        logp = torch.log_softmax(logits.float() if logits.dtype.itemsize < 4 else logits, dim=-1)
        at = ids.to(logits.device)[rows.to(logits.device)]
        return logp.squeeze(1).gather(-1, at[:, None]).squeeze(-1)

    return Readout(function, Scope.parse(where), None, "log_prob", "nat", len(ids))


def _ids(*rows: Sequence[int] | Tensor) -> list[Tensor]:
    """One token id for each row, several times over."""
    found = []
    for ids in rows:
        if isinstance(ids, str) or any(isinstance(token, str) for token in ids):
            raise PromptError(
                f"tokens are given by id, one for each row, got {ids!r}; lm.token(text) gives a word's id"
            )
        tensor = torch.as_tensor(ids)
        if tensor.ndim != 1 or tensor.is_floating_point() or bool((tensor < 0).any()):
            raise PromptError(
                f"one token id, 0 or more, is needed for each row, got {ids!r}; a word of several tokens has no single "
                "logit: take its first token on purpose, or choose another word (lm.token tells)"
            )
        found.append(tensor)
    if len({len(ids) for ids in found}) > 1:
        raise PromptError(f"answers and distractors must be as many, got {[len(ids) for ids in found]}")
    return found


def all_logits(where: str | Scope = "last") -> Readout:
    """The logits themselves (batch pos vocab) at the positions of `where`."""
    return Readout(lambda logits, rows: logits, Scope.parse(where), None, "logits", "logit")
