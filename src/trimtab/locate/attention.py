"""Where heads look: scores of attention patterns, one for each example and head.

A pattern says where a head takes from, not what it takes nor whether anything comes of it: `copying_score` and
`ablation` say that. Induction, previous-token and duplicate-token heads follow Elhage et al. 2021, "A mathematical
framework for transformer circuits", Olsson et al. 2022 (arXiv 2209.11895) and Wang et al. 2022 (arXiv 2211.00593),
sinks Xiao et al. 2023 (arXiv 2309.17453).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import TaskError
from trimtab.locate.pairing import alone
from trimtab.locate.patterns import (
    Baseline,
    Examples,
    Look,
    Pairs,
    Progress,
    Side,
    averaged,
    duplicate_pairs,
    entropies,
    examples_of,
    head_scores,
    induction_pairs,
    layers_of,
    looked_at,
    previous_pairs,
    row_ids,
    sink_pairs,
    span_pairs,
    summed,
)
from trimtab.locate.plans import planned_by
from trimtab.locate.plans_reading import plan_side
from trimtab.locate.units import Places, Spans, places
from trimtab.model.prompts import Prompts
from trimtab.tasks.measure import tokens_of
from trimtab.values.scope import Scope
from trimtab.values.scores import Scores

if TYPE_CHECKING:
    from trimtab.model.lm import LM, Reads

UNIT = "attention"


@alone
@planned_by(plan_side)
def attention_mass(
    lm: LM,
    task: Examples,
    sites: Reads = "L*.head",
    *,
    spans: Spans = "end",
    keys: str | Scope = "text",
    words: tuple[str, ...] = (),
    baseline: Baseline = "none",
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """How much attention heads pay from one span to another: the mean over queries of Σ_key a(query, key).

    Args:
        task: its texts of one `side` are read; with None, repeated random tokens.
        sites: a map of heads, or a list of them.
        spans: where the queries are. "end" is the last token.
        keys: where the keys are: a span ("IO"), "text", a slice (":4"), `tokens{12,55}`.
        words: only keys that hold one of these texts, with or without a leading space: `("sorry", "cannot")`. A text
            of several tokens is looked for as all of them in a row, and then all of them are keys.
        baseline: "uniform" subtracts what attention spread evenly over all that a query sees would give, so that long
            key spans have no advantage.
        side: of the positive (clean) texts, or of the negative (corrupt) ones.
        batch_size: prompts that go through the model together, fewer where their patterns would not fit.

    Returns:
        `Scores` (example, layer, head, span), a share of attention, 0 to 1 without a baseline; queries that see no
        such key are left out, and an example without any other is NaN (`options["undefined"]` counts these).

    Raises PromptError for a span that the prompts lack, TaskError where no prompt has any of the keys.

    >>> attention_mass(lm, ioi, spans="end", keys="IO").top(3)  # doctest: +SKIP
    """
    chosen, prompts = examples_of(lm, task, side)
    where = places(lm, sites, spans, mapped="end", alone="end")
    key_columns = prompts.positions(Scope.parse(keys))
    if words:
        held = _holding(lm, prompts, words)
        key_columns = [[k for k in row if k in here] for row, here in zip(key_columns, held, strict=True)]
    if not any(key_columns):
        raise TaskError(f'no prompt of {chosen.name} has a key at "{keys}" {f"with {list(words)}" if words else ""}')
    scopes = {str(block.at): prompts.positions(block.at or Scope("all")) for block in where.blocks}

    def pairs(row: int, name: str) -> Pairs:
        return span_pairs(prompts, row, scopes[name][row], key_columns[row])

    found = _masses(lm, prompts, where, list(scopes), pairs, baseline, batch_size, progress)
    options = {"spans": list(scopes), "keys": str(keys), "words": list(words), "baseline": baseline, "side": side}
    return head_scores(where, found, lm, chosen, prompts, "attention_mass", UNIT, options)


@alone
@planned_by(plan_side)
def attention_entropy(
    lm: LM,
    task: Examples = None,
    sites: Reads = "L*.head",
    *,
    spans: Spans = "all",
    normalised: bool = False,
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """How widely heads spread their attention: the mean over queries of −Σ a ln a, in nats.

    0 for a head that looks at one token, ln(pos + 1) for one that looks at all evenly. With `normalised` each query's
    entropy is divided by that, so that late queries count as early ones. A row's first token sees one key only and is
    left out. The rest as in `attention_mass`.
    """
    chosen, prompts = examples_of(lm, task, side)
    where = places(lm, sites, spans, mapped="all")
    scopes = {str(block.at): prompts.positions(block.at or Scope("all")) for block in where.blocks}

    def weights(row: int, name: str) -> np.ndarray:
        at = np.array([c - int(prompts.start[row]) for c in scopes[name][row]], dtype=int)
        at = at[at > 0]
        each = np.zeros(len(prompts.tokens[row]))
        each[at] = 1 / len(at) / (np.log(at + 1.0) if normalised else 1.0) if len(at) else 0.0
        return each if len(at) else each * np.nan

    def prepare(rows: list[int], part: Prompts) -> list[Look]:
        return [entropies([weights(row, name) for row in rows], part) for name in scopes]

    numbers = looked_at(lm, prompts, layers_of(where), prepare, batch_size, progress)
    found = dict(zip(scopes, numbers, strict=True))
    unit = "share of the most" if normalised else "nat"
    options = {"spans": list(scopes), "normalised": normalised, "side": side}
    return head_scores(where, found, lm, chosen, prompts, "attention_entropy", unit, options).with_(order="low")


@alone
@planned_by(plan_side)
def induction_score(
    lm: LM,
    task: Examples = None,
    sites: Reads = "L*.head",
    *,
    baseline: Baseline = "none",
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """Attention from a token to what followed the same token earlier (prefix matching), averaged over such tokens.

    On repeated random tokens (`task=None`, or a `RepeatedTokens`) every token of the second round has one such key,
    `length` − 1 before it; on a task's texts, tokens that occurred before. An induction head then also
    copies what it finds there: see `copying_score`. Olsson et al. 2022 (arXiv 2209.11895).

    Returns:
        `Scores` (example, layer, head, span "all"), a share of attention; NaN for a text in which nothing recurs. The
        rest as in `attention_mass`.

    >>> induction_score(lm).top(5)  # doctest: +SKIP
    """
    return _by_token(lm, task, sites, induction_pairs, "induction_score", baseline, side, batch_size, progress)


@alone
@planned_by(plan_side)
def duplicate_token_score(
    lm: LM,
    task: Examples = None,
    sites: Reads = "L*.head",
    *,
    baseline: Baseline = "none",
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """Attention from a token to the same token earlier, averaged over tokens that occurred before.

    Wang et al. 2022 (arXiv 2211.00593). The rest as in `induction_score`.
    """
    return _by_token(lm, task, sites, duplicate_pairs, "duplicate_token_score", baseline, side, batch_size, progress)


@alone
@planned_by(plan_side)
def previous_token_score(
    lm: LM,
    task: Examples = None,
    sites: Reads = "L*.head",
    *,
    baseline: Baseline = "none",
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """Attention from each token to the one before it, averaged over all tokens but a row's first.

    The second token's previous one is the row's first, to which many heads look anyway. The rest as in
    `induction_score`.
    """
    return _by_token(lm, task, sites, previous_pairs, "previous_token_score", baseline, side, batch_size, progress)


@alone
@planned_by(plan_side)
def sink_mass(
    lm: LM,
    task: Examples = None,
    sites: Reads = "L*.head",
    *,
    tokens: int = 1,
    baseline: Baseline = "none",
    side: Side = "positive",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scores:
    """Attention from all later tokens to the first `tokens` of their row, BOS included: what a head does with attention
    that it has no use for.

    Xiao et al. 2023 (arXiv 2309.17453). The rest as in `induction_score`.
    """
    if tokens < 1:
        raise TaskError(f"tokens is how many of a row's first tokens are the sink, at least 1, got {tokens}")

    def pairs(ids: np.ndarray) -> Pairs:
        return sink_pairs(ids, tokens)

    return _by_token(lm, task, sites, pairs, "sink_mass", baseline, side, batch_size, progress, tokens=tokens)


def _by_token(
    lm: LM,
    task: Examples,
    sites: Reads,
    pairs: Callable[[np.ndarray], Pairs],
    method: str,
    baseline: Baseline,
    side: Side,
    batch_size: int,
    progress: Progress | None,
    **options: object,
) -> Scores:
    """The attention on pairs that a row's tokens determine, at the span "all"."""
    chosen, prompts = examples_of(lm, task, side)
    where = places(lm, sites, "all", mapped="all")
    if placed := [site for site in where.blocks if str(site.at) != "all"]:
        raise TaskError(f"{placed[0]}: a {method} is over a whole text; leave out the positions, or use attention_mass")

    def of_row(row: int, name: str) -> Pairs:
        return pairs(row_ids(prompts, row))

    found = _masses(lm, prompts, where, ["all"], of_row, baseline, batch_size, progress)
    known = {**options, "baseline": baseline, "side": side}
    return head_scores(where, found, lm, chosen, prompts, method, UNIT, known)


def _masses(
    lm: LM,
    prompts: Prompts,
    where: Places,
    names: Sequence[str],
    pairs: Callable[[int, str], Pairs],
    baseline: Baseline,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """(example layer head) for each name: attention on the pairs of each row."""

    def prepare(rows: list[int], part: Prompts) -> list[Look]:
        return [summed([averaged(pairs(row, name), baseline) for row in rows], part) for name in names]

    numbers = looked_at(lm, prompts, layers_of(where), prepare, batch_size, progress)
    return dict(zip(names, numbers, strict=True))


def _holding(lm: LM, prompts: Prompts, words: tuple[str, ...]) -> list[set[int]]:
    """(row) the columns of each prompt that hold one of the words, with or without a leading space.

    A form of several tokens counts where all of them follow one another: its pieces are pieces of other words too.
    """
    words = (words,) if isinstance(words, str) else words
    forms = [form for word in words for form in (word, " " + word.lstrip())]
    sought = {tuple(ids) for ids in tokens_of(lm, forms).values() if ids}
    found = []
    for row, start in enumerate(prompts.start.tolist()):
        ids = row_ids(prompts, row).tolist()
        starts = [(i, len(some)) for some in sought for i in range(len(ids)) if tuple(ids[i : i + len(some)]) == some]
        found.append({start + i + j for i, n in starts for j in range(n)})
    return found
