"""Untrained twins: the same architecture, other weights, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from tests.model.tinies import RAGGED, lm_of, untouched
from tests.tiny import FAMILIES
from trimtab.errors import ModelError
from trimtab.model.untrained import untrained


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm = lm_of(family)
    state = torch.get_rng_state()
    with untouched(lm):
        twin = untrained(lm, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert twin.hash == untrained(lm, seed=1).hash
    assert len({twin.hash, untrained(lm, seed=2).hash, lm.hash}) == 3
    assert twin.sites("L*.head") == lm.sites("L*.head")
    assert twin.dtype == lm.dtype
    assert not twin.hf.training
    assert twin.run(RAGGED).logits.isfinite().all()


def test_a_model_that_is_quantised_is_refused(monkeypatch):
    lm = lm_of("gpt2")
    monkeypatch.setattr(lm.hf, "is_quantized", True, raising=False)
    with pytest.raises(ModelError, match="floating point"):
        untrained(lm)
