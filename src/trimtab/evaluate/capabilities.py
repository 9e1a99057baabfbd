"""Accuracy on unrelated items under many interventions at once, by the engine: what a search holds against an effect.

`side_effects.capability` asks the same of one intervention in plain passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.evaluate import texts
from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.texts import Item
from trimtab.tasks.measure import Measure, answer_tokens
from trimtab.tasks.metrics import Choice, accuracy
from trimtab.values.edit import Intervention

if TYPE_CHECKING:
    from trimtab.model.lm import LM


def measured_items(lm: LM, items: Sequence[Item]) -> Measure:
    """Items as a measure: 1 where the right next word is likelier than the wrong one, else 0; grouped by kind.

    Items whose words are not single tokens of this model are left out. TrimtabError where none is left.
    """
    words = [answer_tokens(lm, (item.answer, item.distractor)) for item in items]
    usable = [(item, pair) for item, pair in zip(items, words, strict=True) if pair is not None]
    if not usable:
        raise TrimtabError(
            f"none of the {len(items)} capability items has words that are single tokens of {lm.name}: give items of "
            "your own, or leave capability out"
        )
    read = accuracy(Choice.of([[pair[0]] for _, pair in usable]), Choice.of([[pair[1]] for _, pair in usable]))
    prompts = lm.prompts([item.prompt for item, _ in usable])
    return Measure(prompts, read, np.arange(len(usable)), tuple(item.kind for item, _ in usable))


def measured_search_items(lm: LM, items: Sequence[Item] | None, seed: int) -> Measure | None:
    """Items as a measure, by default some of ours to search by, drawn with `seed`.

    None where a model's tokenizer knows none of our words, which are English; TrimtabError for such items of one's own.
    """
    try:
        return measured_items(lm, texts.search_items(items, seed))
    except TrimtabError:
        if items is not None:
            raise
        return None


def capabilities(
    lm: LM,
    variants: Iterable[Intervention],
    items: Sequence[Item] | Measure,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Effects:
    """Whether each item is right, without (item) and with (variant item) each intervention; `groups` are their kinds.

    >>> capabilities(lm, [vector], texts.capability("test")).changes.mean()  # doctest: +SKIP
    """
    measured = items if isinstance(items, Measure) else measured_items(lm, items)
    return effects(lm, measured, variants, progress=progress)
