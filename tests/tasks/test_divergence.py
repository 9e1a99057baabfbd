"""KL to the clean run: what plain passes over both prompts give, with its sign, and as a metric of locating methods."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.tinies import lm_of
from tests.tasks.test_measure import FILMS, PAIRS
from trimtab import locate
from trimtab.errors import TaskError
from trimtab.evaluate.effect import effects
from trimtab.tasks.divergence import kl_to_clean
from trimtab.tasks.measure import measure


def expected(lm):
    """KL(clean ‖ corrupt) at the last token, of each pair, from prompts run alone."""
    found = []
    for example in PAIRS.examples:
        clean, corrupt = (
            torch.log_softmax(lm.run(text).logits[0, -1], -1) for text in (example.clean, example.corrupt)
        )
        found.append(float((clean.exp() * (clean - corrupt)).sum()))
    return found


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_minus_the_kl_to_what_the_model_says_after_the_clean_prompt(family, batch_size):
    lm = lm_of(family, torch.float64)
    near = kl_to_clean(lm, PAIRS, batch_size)
    for on, numbers in (("corrupt", [-x for x in expected(lm)]), ("clean", [0.0, 0.0])):
        made = measure(lm, PAIRS.with_(metric=near), on)
        logits = lm.run(made.prompts).logits[:, -1:]
        found = made.per_example(made.readout.of(logits, torch.arange(2)))
        np.testing.assert_allclose(found, numbers, rtol=1e-7, atol=1e-10)
        turned = made.per_example(made.readout.of(logits.flip(0), torch.tensor([1, 0])))
        np.testing.assert_allclose(turned, found[::-1], rtol=1e-7, atol=1e-10)
    assert (made.unit, made.readout.name) == ("nat", "kl_to_clean")


def test_patching_the_whole_last_layer_brings_the_clean_run_back():
    lm = lm_of("llama", torch.float64)
    task = PAIRS.with_(metric=kl_to_clean(lm, PAIRS))
    scores = locate.patching(lm, task, "L1.resid_post", spans="end")
    np.testing.assert_allclose(scores.array.ravel(), expected(lm), rtol=1e-6)
    slopes = locate.attribution_patching(lm, task, "L*.resid_post")
    assert np.isfinite(slopes.array).all()
    assert np.any(slopes.array)


def test_it_is_of_these_examples_and_of_one_prompt_each():
    lm = lm_of("llama", torch.float64)
    near = PAIRS.with_(metric=kl_to_clean(lm, PAIRS))
    part, told = near.only([1]), "kl_to_clean was made for 2 examples, and these are 1: make it again for this part"
    for work in (
        lambda: measure(lm, part, "clean"),
        lambda: effects(lm, part, [()]),
        lambda: effects(lm, PAIRS.only([1]), [()], metric=near.metric),
        lambda: locate.patching(lm, part, "L1.resid_post", spans="end"),
    ):
        with pytest.raises(TaskError, match=told):
            work()
    with pytest.raises(TaskError, match=r"kl_to_clean was made for 2 examples, and these are 4: .*read one of the two"):
        measure(lm, near, "gap")
    with pytest.raises(TaskError, match="films has contrast examples, and KL is read against clean prompts"):
        kl_to_clean(lm, FILMS)


def test_made_again_for_a_part_it_is_of_that_part():
    lm = lm_of("llama", torch.float64)
    part = PAIRS.with_(metric=kl_to_clean(lm, PAIRS)).only([1])
    again = part.with_(metric=kl_to_clean(lm, part))
    np.testing.assert_allclose(effects(lm, measure(lm, again, "clean"), [()]).base, [0.0], atol=1e-10)
    np.testing.assert_allclose(effects(lm, again, [()]).base, [-expected(lm)[1]], rtol=1e-6)


def test_it_is_one_metric_in_every_process_and_another_one_of_other_examples():
    """A digest that went by places in memory would be another one each time, and no stage of a study taken over."""
    made = """
import torch
from tests.model.tinies import lm_of
from tests.tasks.test_measure import PAIRS
from trimtab.tasks.divergence import kl_to_clean
lm = lm_of("llama", torch.float64)
for task in (PAIRS, PAIRS, PAIRS.only([1, 0])):
    print(PAIRS.with_(metric=kl_to_clean(lm, task)).digest)
"""
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    run, root = [sys.executable, "-c", made], Path(__file__).parents[2]
    runs = [
        subprocess.Popen(run, cwd=root, env={**own, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        for seed in ("1", "2")
    ]
    (one, again, other), found = (run.communicate()[0].decode().split() for run in runs)
    assert found == [one, again, other]
    assert one == again
    assert one != other
