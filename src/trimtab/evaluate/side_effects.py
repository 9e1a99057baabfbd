"""What an intervention does to text that has nothing to do with it: KL per token and perplexity.

Every passage is cut at `prompt` tokens and the rest is its continuation, read with the text given (teacher forcing): an
intervention "from the last prompt token on" acts from the cut on, one of all positions acts everywhere, and both are
measured over the continuation, its first token included, which the last prompt token predicts. So the scope is that
of the intervention, and numbers of different scopes compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.evaluate.effect import memory
from trimtab.evaluate.forced import forced
from trimtab.evaluate.texts import Item, Passage
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout
from trimtab.tasks.measure import answer_tokens
from trimtab.tasks.metrics import Choice, accuracy
from trimtab.values.edit import Intervention
from trimtab.values.scope import Scope

if TYPE_CHECKING:
    from trimtab.model.lm import LM

PROMPT = 16
"""Tokens of a passage that count as its prompt."""
HELD = 1 << 25
"""Logits that are held at a time: 130 MB, 4 passages of 150 positions and 50,000 tokens."""


@dataclass(frozen=True, eq=False)
class SideEffects:
    """KL(unedited ‖ edited) (variant source) in nats per token; negative log-likelihood per token without (source) and
    with (variant source) each intervention; over `tokens` tokens in all."""

    kl: Float[np.ndarray, "variant source"]
    base_nll: Float[np.ndarray, "source"]
    nll: Float[np.ndarray, "variant source"]
    tokens: int
    sources: tuple[str, ...]

    def perplexity(self, variant: int = 0) -> tuple[float, float]:
        """Without and with one intervention; every token counts the same."""
        return float(np.exp(self.base_nll.mean())), float(np.exp(self.nll[variant].mean()))


def side_effects(
    lm: LM,
    variants: Iterable[Intervention],
    passages: Sequence[Passage],
    *,
    length: int = 160,
    prompt: int = PROMPT,
    progress: Callable[[int, int], None] | None = None,
) -> SideEffects:
    """KL per token and perplexity of each intervention on passages, the first `length` tokens of each.

    Raises TrimtabError without passages, for a passage shorter than that, and for an intervention on what no passage
    has: a named span, rows, a position beyond the prompt.
    """
    listed = [Intervention.of(variant) for variant in variants]
    _check_rows(listed)
    if not 0 < prompt < length:
        raise TrimtabError(f"prompt must be between 1 and length − 1 = {length - 1} tokens, got {prompt}")
    read = passage_prompts(lm, passages, length)
    rows = read.batch
    kl, nll, base = np.zeros((len(listed), rows)), np.zeros((len(listed), rows)), np.zeros(rows)
    together = max(1, HELD // (length * lm.anatomy.vocab))
    for start in range(0, rows, together):
        part = slice(start, start + together)
        prompts = read.rows(part)
        prompts, here = forced(prompts, [prompt] * prompts.batch, listed)
        base[part], kl[:, part], nll[:, part] = _compared(lm, prompts, here, prompt)
        if progress is not None:
            progress(min(start + together, rows), rows)
    return SideEffects(kl, base, nll, rows * (length - prompt), tuple(p.source for p in passages))


def passage_prompts(lm: LM, passages: Sequence[Passage], length: int) -> Prompts:
    """The first `length` tokens of each passage, one row each.

    Raises TrimtabError without passages and for one that is shorter.
    """
    if not passages:
        raise TrimtabError("no passages were given to measure on: texts.part has neutral ones")
    rows = []
    for passage in passages:
        ids = lm.prompts([passage.text]).ids[0, :length]
        if len(ids) < length:
            raise TrimtabError(
                f'the passage "{passage.source}" has {len(ids)} tokens, and {length} are read: ask for fewer'
            )
        rows.append(ids.tolist())
    return lm.prompts(rows, mask=torch.ones(len(rows), length, dtype=torch.long))


def _compared(
    lm: LM, prompts: Prompts, listed: Sequence[Intervention], prompt: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Negative log-likelihood (row), then KL and negative log-likelihood (variant row), means over the continuation."""
    logits = lm.run(prompts).logits
    assert logits is not None
    where = Scope("slice", start=prompt - 1, stop=-1)
    clean = torch.log_softmax(_wide(logits[:, prompt - 1 : -1]), -1)
    target = prompts.ids[:, prompt:, None]
    del logits

    def compare(logits: Tensor, rows: Tensor) -> Tensor:
        """(batch 2): KL and negative log-likelihood; row by row, as several tensors of a whole vocabulary are made."""
        return torch.stack([_costs(z, clean[row], target[row]) for z, row in zip(logits, rows.tolist(), strict=True)])

    base = -clean.gather(-1, target)[..., 0].mean(-1)
    if len(listed) == 1:  # one pass is cheaper than a base run and a suffix
        edited = lm.run(prompts, edit=listed[0]).logits
        assert edited is not None
        found = compare(edited[:, prompt - 1 : -1], torch.arange(prompts.batch))[None]
    else:
        readout = Readout(compare, where, None, "side effects", "nat")
        found = lm.counterfactuals(prompts, listed, readout, memory=memory(lm, prompts, readout)).values
    base, found = base.double().cpu().numpy(), found.double().cpu().numpy()
    return base, found[..., 0], found[..., 1]


def _costs(
    logits: Float[Tensor, "pos vocab"], ours: Float[Tensor, "pos vocab"], target: Int[Tensor, "pos 1"]
) -> Float[Tensor, "2"]:
    """KL(ours ‖ logits) and the negative log-likelihood of `target`, means over positions; `ours` are log p.

    KL is summed as q − p + p log(p / q): no term is below zero, so what rounding adds to a small KL is as small.
    """
    theirs = torch.log_softmax(_wide(logits), -1)
    p, q = ours.exp(), theirs.exp()
    gap = torch.where(p > 0, p * (ours - theirs), 0.0) + (q - p)
    return torch.stack([gap.sum(-1).mean().clamp(min=0), -theirs.gather(-1, target).mean()])


def _check_rows(interventions: Iterable[Intervention]) -> None:
    """TrimtabError for edits that go by the number of a row."""
    for edit in (edit for intervention in interventions for edit in intervention):
        if edit.rows is not None or isinstance(edit.strength, tuple):
            raise TrimtabError(f'"{edit}" names rows of other prompts: leave out rows and a strength for each of them')


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits


def capability(
    lm: LM,
    items: Sequence[Item],
    edit: Intervention | None = None,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "item"]:
    """1 for each item whose right next word is likelier than the wrong one, else 0; NaN where a word is not a single
    token of this model. `batch_size` items are run at a time, or fewer where their logits would not fit."""
    _check_rows([Intervention.of(edit)])
    words = [answer_tokens(lm, (item.answer, item.distractor)) for item in items]
    right = np.full(len(items), np.nan)
    usable = sorted((i for i, ids in enumerate(words) if ids is not None), key=lambda i: len(items[i].prompt))
    done = 0
    while done < len(usable):
        prompts = lm.prompts([items[i].prompt for i in usable[done : done + batch_size]])
        prompts = prompts.rows(slice(max(1, HELD // (prompts.width * lm.anatomy.vocab))))
        part = usable[done : done + prompts.batch]
        pairs = [words[i] or [] for i in part]
        read = accuracy(Choice.of([[a] for a, _ in pairs]), Choice.of([[d] for _, d in pairs]))
        run = lm.run(prompts, edit=edit)
        assert run.logits is not None
        right[part] = read.of(run.logits[:, -1:], torch.arange(len(part))).double().cpu().numpy()
        done += len(part)
        if progress is not None:
            progress(done, len(usable))
    return right
