"""Irrelevant text in front of a prompt: what is lost, by hand."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import lm_of
from trimtab.errors import TaskError
from trimtab.locate.text_noise import text_noise
from trimtab.tasks.measure import measure

module = import_module("trimtab.locate.text_noise")


@pytest.fixture(autouse=True)
def known_words(monkeypatch):
    """Passages in the words of the tiny tokenizer."""
    passages = tuple(module.Passage(f"kind {i}", " ".join(f"w{20 + 7 * i + j}" for j in range(6))) for i in range(4))
    monkeypatch.setattr(module, "part", lambda which: passages)
    return passages


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_the_loss_is_that_of_prompts_with_the_passage_in_front(known_words, on):
    lm, task = lm_of("llama", torch.float64), twins(4)
    found = text_noise(lm, task, passages=2, words=3, on=on, seed=1)
    order = np.random.default_rng(1).permutation(4)[:2]
    after = []
    for which in order:
        front = " ".join(known_words[which].text.split()[:3]) + "\n\n"
        moved = [
            e.with_(clean=front + e.clean, corrupt=front + e.corrupt, spans={}, corrupt_spans={}) for e in task.examples
        ]
        after.append(numbers(lm, task.of(moved), on))
    np.testing.assert_allclose(found.array, numbers(lm, task, on) - np.mean(after, 0), atol=1e-9)
    assert (found.dims, found.groups, found.unit) == (("example",), task.groups, measure(lm, task).unit)
    assert found.mean().shape == ()
    assert np.abs(found.array).max() > 1e-4


def test_questions_too_and_what_has_none_is_refused():
    lm = lm_of("llama", torch.float64)
    assert np.isfinite(text_noise(lm, pairs(4)).array).all()
    with pytest.raises(TaskError, match="asks no question"):
        text_noise(lm, pairs(4, question=False))


@pytest.mark.parametrize(("options", "told"), [({"passages": 9}, "from 1 to 4"), ({"words": 0}, "at least 1")])
def test_bad_options_are_refused(options, told):
    with pytest.raises(TaskError, match=told):
        text_noise(lm_of("llama"), twins(2), **options)
