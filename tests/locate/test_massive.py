"""Massive activations that were planted are found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import twins
from tests.model.tinies import fresh, lm_of
from trimtab.errors import SiteError, TrimtabError
from trimtab.locate.massive import massive_activations
from trimtab.tasks.measure import sides
from trimtab.values.massive import MassiveActivations


def test_what_was_planted_is_found(tmp_path):
    lm = fresh("llama", torch.float32)
    with torch.no_grad():
        lm.hf.model.embed_tokens.weight[7, 11] = 5000.0
    prompts = lm.prompts([[5, 6, 7, 8], [9, 7, 10], [5, 6, 8]])
    found = massive_activations(lm, prompts, "L*.resid_pre", batch_size=2)
    frame = found.to_frame()
    assert set(zip(frame["example"], frame["position"], frame["channel"], frame["token"], strict=True)) == {
        (0, 2, 11, "w7"),
        (1, 1, 11, "w7"),
    }
    assert set(frame["site"]) == {"L0.resid_pre", "L1.resid_pre"}
    np.testing.assert_allclose(frame["value"][frame["site"] == "L0.resid_pre"], 5000.0)
    assert found.by_channel()["channel"].tolist() == [11]
    assert found.by_channel()["first_tokens"].tolist() == [0.0]
    found.save(tmp_path / "found")
    assert MassiveActivations.load(tmp_path / "found") == found
    assert len(massive_activations(lm, prompts, "L*.resid_pre", absolute=10_000.0)) == 0
    few = massive_activations(lm, prompts, "L*.resid_pre", most=1)
    assert len(few) == len(found) == 4
    assert len(few.to_frame()) == 1


def test_the_largest_are_listed_and_not_the_first():
    lm = fresh("llama", torch.float32)
    with torch.no_grad():
        for token, size in ((7, 3000.0), (8, 9000.0), (9, 6000.0)):
            lm.hf.model.embed_tokens.weight[token, 11] = size
    prompts = lm.prompts([[5, 6, 10, 7, 11], [12, 8, 10, 13, 5], [5, 9, 6, 10, 11]])
    for most, values in ((0, []), (1, [9000]), (2, [9000, 6000]), (9, [9000, 6000, 3000])):
        found = massive_activations(lm, prompts, "L0.resid_pre", most=most, batch_size=1)
        assert found.found == 3
        assert found.to_frame()["value"].round().tolist() == values


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "opt-350m", "bloom", "qwen2_moe"])
def test_scores_are_the_largest_over_the_median(family):
    lm, task = lm_of(family), twins()
    got = massive_activations(lm, task).scores
    prompts = sides(lm, task).positive
    for row in range(len(task)):
        one = prompts.rows([row], trim=True)
        run = lm.run(one, "L*.resid_post", logits=False)
        for layer in (0, 1):
            size = run[f"L{layer}.resid_post"][0].abs()
            np.testing.assert_allclose(got.array[row, layer, 0], float(size.max() / size.median()), rtol=1e-4)
    assert got.groups == task.groups


def test_refusals():
    lm = lm_of("llama")
    for sites in ("L*.head", "L*.neuron", ["L0.resid_post@1"], "L0.pattern"):
        with pytest.raises(SiteError):
            massive_activations(lm, twins(), sites)
    with pytest.raises(TrimtabError, match="not negative"):
        massive_activations(lm, twins(), ratio=-1)
