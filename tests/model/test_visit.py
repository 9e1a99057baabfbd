"""A pass that is looked at shows what a run reads, one tensor after the other, and leaves nothing behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.model.tinies import RAGGED, lm_of, untouched
from tests.tiny import FAMILIES
from trimtab.model.visit import visit


@pytest.mark.parametrize("family", FAMILIES)
def test_it_shows_what_a_run_reads(family):
    lm = lm_of(family)
    prompts = lm.prompts(RAGGED)
    sites = ["L*.pattern", "L*.resid_post", "L1.v"]
    run = lm.run(prompts, sites, logits=False)
    shown = {}
    with untouched(lm):
        visit(lm, prompts, sites, lambda site, x: shown.setdefault(site, x.clone()))
    assert set(shown) == set(run)
    for site, x in shown.items():
        assert torch.equal(x.nan_to_num(), run[site].nan_to_num()), site


def test_only_one_pattern_is_there_at_a_time():
    lm = lm_of("llama")
    alive = []

    def see(site, x):
        gc.collect()
        assert not [ref for ref in alive if ref() is not None], "a pattern shown earlier is still held"
        alive.append(weakref.ref(x.untyped_storage()))

    visit(lm, lm.prompts(RAGGED), "L*.pattern", see)
    assert len(alive) == 2


def test_it_ends_after_the_last_site_and_when_something_is_raised():
    lm = lm_of("gpt2")
    ran = []
    handle = lm.hf.transformer.h[1].register_forward_hook(lambda *_: ran.append(1))
    visit(lm, lm.prompts(RAGGED), "L0.pattern", lambda site, x: None)
    handle.remove()
    assert not ran

    def fail(site, x):
        raise KeyError(str(site))

    with untouched(lm), pytest.raises(KeyError, match=r"L0\.pattern"):
        visit(lm, lm.prompts(RAGGED), "L*.pattern", fail)
