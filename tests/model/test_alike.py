"""Edits of single units together: bit by bit what they are one by one, and the naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.tinies import IDS, RAGGED, close, lm_of, untouched
from trimtab.errors import SiteError
from trimtab.model import wavefront
from trimtab.model.protocols import logit_diff
from trimtab.values.edit import Edit, Ref
from trimtab.values.site import Site

READOUT = logit_diff([3, 4], [5, 6])


def apart(monkeypatch, lm, ids, variants, **options):
    """The sweep with every edit made ready alone."""
    with monkeypatch.context() as patch:
        patch.setattr(wavefront, "alike", lambda edits, compiler: ([], set()))
        return lm.counterfactuals(ids, variants, READOUT, **options)


def maps(lm):
    """Zero, set, mean, scaled, resampled and added maps of single units, at the last position and everywhere."""
    means = np.linspace(-1, 1, 40, dtype=np.float32)
    neurons = [Site("neuron", layer, (n,)) for layer in range(2) for n in (0, 3, 17, 39)]
    heads = [Site("head", layer, (h,)) for layer in range(2) for h in range(4)]
    return {
        "zero": [Edit(s, "set", 0.0, where="last") for s in neurons],
        "everywhere": [Edit(s, "set", 0.0) for s in heads],
        "mean": [Edit(s, "set", means[list(s.index)], where="last") for s in neurons],
        "scale": [Edit(s, "scale", -1.0, where="1:", strength=0.5) for s in [*neurons, *heads]],
        "resample": [Edit(s, "set", Ref("o")) for s in [*neurons, *heads]],
        "add": [Edit(s, "add", Ref("o"), where="last", strength=(0.5, 1.0)) for s in heads],
        "pairs": [[Edit(s, "set", 0.0, where="last"), Edit(s, "add", 1.0, where="last", rows=(1,))] for s in neurons],
        "channels": [Edit(f"L1.resid_pre[{c}]", "set", 0.3) for c in (0, 5, 31)],
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon", "opt", "phi3"])
def test_together_is_one_by_one(family, monkeypatch):
    lm = lm_of(family)
    prompts = lm.prompts(RAGGED)
    other = lm.prompts([[token + 30 for token in row] for row in RAGGED])
    runs = {"o": lm.run(other, ["L*.neuron", "L*.head"])}
    for name, variants in maps(lm).items():
        fast = lm.counterfactuals(prompts, variants, READOUT, runs=runs)
        alone = apart(monkeypatch, lm, prompts, variants, runs=runs)
        assert torch.equal(fast.values, alone.values), name
        assert torch.equal(fast.computed, alone.computed), name
        naive = lm.counterfactuals(prompts, variants, READOUT, runs=runs, exact="naive")
        close(lm, fast.values, naive.values, name)


def test_every_neuron_of_the_last_token():
    lm = lm_of("llama", torch.float64)
    variants = [Edit(Site("neuron", layer, (n,)), "set", 0.0, where="last") for layer in range(2) for n in range(40)]
    with untouched(lm):
        fast = lm.counterfactuals(RAGGED, variants, READOUT)
    assert fast.plan.exact == "fast"
    naive = lm.counterfactuals(RAGGED, variants, READOUT, exact="naive")
    close(lm, fast.values, naive.values)
    assert float(fast.effects.abs().max()) > 1e-3


def test_a_unit_that_is_not_there_is_named():
    lm = lm_of("llama")
    for variants in (["L0.neuron[39] scale 0", "L0.neuron[40] scale 0"], ["L0.head[1] scale 0", "L0.head[4] scale 0"]):
        with pytest.raises(SiteError, match="out of range"):
            lm.counterfactuals(IDS, variants, READOUT)
        with pytest.raises(SiteError, match="out of range"):
            lm.plan(IDS, variants, READOUT)
