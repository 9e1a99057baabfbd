"""What batches may take: as a call, a block or the environment says, and no result depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab
from tests.locate.tinytasks import twins
from tests.model.tinies import lm_of
from trimtab import locate
from trimtab.errors import TrimtabError
from trimtab.locate import increases, lens_training, tuned_lens
from trimtab.model.memory import HELD, VARIABLE, budget, bytes_of, held, limit, memory_limit
from trimtab.tasks.means import batches


def test_a_limit_holds_for_a_block_and_inner_ones_go_first(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert limit() is None
    with memory_limit("2 GB"):
        assert limit() == 2e9
        with trimtab.memory_limit(1000):
            assert limit() == 1000
        assert limit() == 2e9
    assert limit() is None


def test_the_environment_limits_a_process_and_a_block_goes_before_it(monkeypatch):
    monkeypatch.setenv(VARIABLE, "3MiB")
    assert limit() == 3 * 2**20
    with memory_limit(5):
        assert limit() == 5


def test_what_a_call_says_goes_first():
    with memory_limit(1000):
        assert budget(None, 7) == 7
        assert budget(None, None) == 1000


@pytest.mark.parametrize("size", [0, -1, "two", "5 parsecs", "", float("nan"), float("inf"), "1.2.3"])
def test_what_is_no_amount_of_memory_is_refused(size):
    with pytest.raises(TrimtabError, match="amount of memory"):
        bytes_of(size, "memory_limit")


def test_batches_shrink_to_one_row_and_hold_every_row():
    prompts = lm_of("llama").prompts([[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]])
    with memory_limit(8 * 4 * 10):
        small = list(batches(prompts, 10, 16))
    assert len(small) > len(list(batches(prompts, 10, 16))) == 1
    assert sorted(row for rows in small for row in rows) == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["patching", "attribution_patching", "ablation", "magnitude_contrast"])
def test_scores_do_not_depend_on_it(method):
    lm, task = lm_of("llama"), twins()
    function = getattr(locate, method)
    free = function(lm, task, "L*.head")
    with memory_limit(20_000):
        tight = function(lm, task, "L*.head")
    np.testing.assert_allclose(tight.array, free.array, rtol=1e-5, atol=1e-4)


def test_fewer_logits_are_held_under_a_limit_with_the_same_result(monkeypatch):
    lm = lm_of("llama", torch.float64)
    assert held(1000) == 1000
    sizes, inner = [], lm.unembed
    monkeypatch.setattr(lm, "unembed", lambda x: sizes.append(x.shape[:-1].numel()) or inner(x))

    def seen(limit, function, *args, **options):
        sizes.clear()
        with memory_limit(limit):
            return function(*args, **options), max(sizes)

    prompt = [list(range(3, 12))]
    free, most = seen("1GB", locate.logit_lens, lm, prompt)
    tight, few = seen(2 * HELD * lm.anatomy.vocab, locate.logit_lens, lm, prompt)
    assert (most, few) == (9, 2)
    np.testing.assert_allclose(tight.top_probabilities, free.top_probabilities, rtol=1e-5)
    free, most = seen("1GB", locate.log_probability_increase, lm, twins(), "L1.neuron")
    tight, few = seen(2 * HELD * lm.anatomy.vocab, locate.log_probability_increase, lm, twins(), "L1.neuron")
    assert most > len(twins()) > few == 2
    np.testing.assert_allclose(tight.array, free.array, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(increases, "LOGITS", 2 * lm.anatomy.vocab)  # batches of all prompts, and two logits of them
    few_at_once, few = seen("1GB", locate.log_probability_increase, lm, twins(), "L1.neuron")
    assert few == 2
    np.testing.assert_allclose(few_at_once.array, free.array, rtol=1e-9, atol=1e-9)


def test_a_tuned_lens_is_judged_on_the_same_positions_under_a_limit(monkeypatch):
    """A few of their logits are held at once, and the pools that they are drawn from are as without it."""
    lm = lm_of("llama", torch.float64)
    rng = np.random.default_rng(0)
    texts, held_out = ([rng.integers(3, 97, 14).tolist() for _ in range(n)] for n in (8, 12))
    monkeypatch.setattr(lens_training, "POOL", 64 * 40)
    monkeypatch.setattr(tuned_lens, "AT_ONCE", 2 * 40 * lm.anatomy.vocab)
    sizes, inner = [], lm.unembed
    monkeypatch.setattr(lm, "unembed", lambda x: sizes.append(x.shape[:-1].numel()) or inner(x))

    def seen(limit):
        sizes.clear()
        with memory_limit(limit):
            lens = locate.train_tuned_lens(lm, texts, held_out=held_out, steps=1, tokens=3, check=60)
        return lens, max(sizes)

    free, most = seen("1GB")
    tight, few = seen(8 * HELD * lm.anatomy.vocab)
    assert (most, few) == (40, 4)
    assert tight.held_out == free.held_out == 60
    np.testing.assert_allclose((tight.before, tight.after), (free.before, free.after), rtol=1e-9)
