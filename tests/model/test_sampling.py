"""What can be drawn from and what cannot, row by row."""

from __future__ import annotations

import pytest
import torch

from trimtab.errors import EditError, PromptError
from trimtab.model.sampling import COLDEST, PENALTIES, Sampling

SAID = torch.tensor([[0, 1], [0, 1]])
LOGITS = torch.tensor([[1e37, -1e37, 3.0], [100.0, -100.0, 99.0]])


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


def test_a_row_that_is_too_large_is_told_apart():
    cold = Sampling(temperature=COLDEST)
    assert cold.draw(SAID, LOGITS, generators()).tolist() == [-1, 0]
    assert cold.draw(SAID[1:], LOGITS[1:], generators()[1:]).tolist() == [0]
    with pytest.raises(EditError, match="too large to draw from"):
        cold.pick(SAID, LOGITS, generators())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_logits_of_a_model_stay_numbers_at_every_limit(penalty):
    """Thousands are more than any model says."""
    coldest = Sampling(temperature=COLDEST, repetition_penalty=penalty, top_p=0.5)
    coldest.check()
    assert int(coldest.pick(SAID, 100 * LOGITS[1:].expand(2, -1), generators())[0]) in (0, 2)


@pytest.mark.parametrize(
    "beyond",
    [{"temperature": COLDEST / 2}, {"repetition_penalty": PENALTIES[0] / 2}, {"repetition_penalty": PENALTIES[1] * 2}],
)
def test_beyond_a_limit(beyond):
    with pytest.raises(PromptError, match=next(iter(beyond))):
        Sampling(**beyond).check()
