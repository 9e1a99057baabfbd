"""Capability items as a measure: those that a model's tokenizer knows, and those that are for searching."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import edits
from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.errors import TrimtabError
from trimtab.evaluate import texts
from trimtab.evaluate.capabilities import capabilities, measured_items, measured_search_items
from trimtab.evaluate.side_effects import capability
from trimtab.evaluate.texts import Item
from trimtab.values.edit import Intervention

LM = lm_of("llama", torch.float64)
ITEMS = tuple(Item(words(20 + i, 5, 30 + i), f" w{70 + i}", f" w{80 + i}", f"kind {i % 3}") for i in range(9))
LONG = Item(words(5, 6), " w70 w71", " w72", "long")


def test_many_interventions_are_each_alone():
    variants = [Intervention.of(edit) for edit in edits()]
    found = capabilities(LM, variants, ITEMS)
    for values, variant in zip(found.values, variants, strict=True):
        np.testing.assert_array_equal(values, capability(LM, ITEMS, variant))
    np.testing.assert_array_equal(found.base, capability(LM, ITEMS))


def test_words_of_several_tokens_are_left_out():
    assert measured_items(LM, (LONG, *ITEMS)).groups == tuple(item.kind for item in ITEMS)
    with pytest.raises(TrimtabError, match="none of the 1 capability items has words that are single tokens"):
        measured_items(LM, [LONG])


def test_a_model_of_other_words_has_no_items_of_ours_and_may_have_its_own(monkeypatch):
    monkeypatch.setattr(texts, "capability", lambda which: (LONG,) if which == "search" else ITEMS)
    assert measured_search_items(LM, None, 0) is None
    assert len(measured_search_items(LM, ITEMS, 0)) == len(ITEMS)
    with pytest.raises(TrimtabError, match="give items of your own"):
        measured_search_items(LM, [LONG], 0)


def test_our_items_are_those_to_search_by(monkeypatch):
    monkeypatch.setattr(texts, "capability", lambda which: ITEMS if which == "search" else ())
    assert measured_search_items(LM, None, 0).groups == tuple(item.kind for item in ITEMS)
