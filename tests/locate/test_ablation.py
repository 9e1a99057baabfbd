"""Ablations against hooks and values made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import lm_of
from trimtab.errors import TaskError, TrimtabError
from trimtab.locate.ablation import ablation, donors
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit

LM = lm_of("llama", torch.float64)
TASK = twins()
KINDS = ["resample", "mean", "zero", "noise"]


def test_zero_is_a_hook_that_zeroes():
    clean = numbers(LM, TASK, "clean")

    def zero(module, args):
        x = args[0].clone()
        x[..., 2 * 8 : 3 * 8] = 0
        return (x,)

    handle = LM.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(zero)
    ablated = numbers(LM, TASK, "clean")
    handle.remove()
    scores = ablation(LM, TASK, "L*.head", kind="zero")
    np.testing.assert_allclose(scores.array[:, 1, 2, 0], clean - ablated, atol=1e-10)
    assert scores.coords["span"] == ("all",)


def test_the_mean_is_that_of_all_tokens_and_first_ones_have_their_own():
    prompts = measure(LM, TASK, on="clean").prompts
    run = LM.run(prompts, "L0.mlp_out")
    rows = [run["L0.mlp_out"][i, c] for i, c in enumerate(prompts.positions("all"))]
    first = torch.stack([x[0] for x in rows]).mean(0)
    rest = torch.stack([x[1:].mean(0) for x in rows]).mean(0)
    edits = [Edit("L0.mlp_out@1:", "set", rest), Edit("L0.mlp_out@0", "set", first)]
    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", lambda row: edits)
    scores = ablation(LM, TASK, "L*.mlp_out", kind="mean")
    np.testing.assert_allclose(scores.array[:, 0, 0], lost, atol=1e-5)


def test_the_mean_of_a_span_is_taken_in_it():
    prompts = measure(LM, TASK, on="clean").prompts
    values = LM.run(prompts, "L0.head@subject")["L0.head@subject"][:, 0].mean(0)
    edit = Edit("L0.head[1]@subject", "set", values[1:2])
    measured = measure(LM, TASK, on="clean")

    def at(row):
        return edit.with_(where=measured.prompts.rows([row]).spans["subject"][0][0])

    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", at)
    scores = ablation(LM, TASK, "L0.head", kind="mean", spans=["end", "subject"])
    np.testing.assert_allclose(scores.array[:, 0, 1, 1], lost, atol=1e-5)


def test_resampling_takes_the_donors_tokens_counted_from_the_end():
    measured = measure(LM, TASK, on="clean")
    prompts = measured.prompts
    partner = donors(prompts, measured.groups, measured.owner, seed=3)

    def edits(row):
        mine, theirs = len(prompts.tokens[row]), len(prompts.tokens[partner[row]])
        run = LM.run(prompts.rows([partner[row]], trim=True), "L0.mlp_out")["L0.mlp_out"][0]
        at = [0] + [max(1, theirs - mine + p) for p in range(1, mine)]
        return [Edit(f"L0.mlp_out@{p}", "set", run[q]) for p, q in enumerate(at)]

    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", edits)
    scores = ablation(LM, TASK, "L0.mlp_out", kind="resample", seed=3)
    np.testing.assert_allclose(scores.array[:, 0, 0], lost, atol=1e-9)


def test_donors_are_of_other_groups_and_alike_in_length():
    task = pairs(12, groups=4)
    prompts = measure(LM, task).prompts
    found = donors(prompts, task.groups, np.arange(12), seed=0)
    assert all(task.groups[i] != task.groups[j] for i, j in enumerate(found))
    assert found == donors(prompts, task.groups, np.arange(12), seed=0)
    with pytest.raises(TaskError, match="no other example"):
        donors(prompts.rows([0]), ["a"], [0], seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [TASK, pairs(6), pairs(4, question=False)], ids=["twins", "questions", "texts"])
def test_batches_and_padding_make_no_difference_and_fast_is_naive(kind, task):
    one = ablation(LM, task, "L*.head", kind=kind)
    for options in ({"batch_size": 1}, {"exact": "naive", "batch_size": 4}):
        np.testing.assert_allclose(ablation(LM, task, "L*.head", kind=kind, **options).array, one.array, atol=1e-5)


def test_no_noise_is_no_change_and_noise_scales():
    assert not ablation(LM, TASK, "L*.head", kind="noise", sigma=0.0).array.any()
    small, twice = (ablation(LM, TASK, "L1.mlp_out", kind="noise", sigma=s).array for s in (1e-4, 2e-4))
    np.testing.assert_allclose(twice, 2 * small, rtol=0.05, atol=1e-6)


def test_candidates_equal_the_map():
    for kind in KINDS:
        grid = ablation(LM, TASK, "L*.head", kind=kind)
        alone = ablation(LM, TASK, ["L0.head[2]", "L1.head[3]"], kind=kind)
        np.testing.assert_allclose(alone.array, grid.array[:, [0, 1], [2, 3], 0], atol=1e-9)


def test_on_corrupt_prompts():
    scores = ablation(LM, TASK, ["L1.resid_post"], kind="zero", on="corrupt")
    assert scores.options["on"] == "corrupt"
    zeroed = ablation(LM, TASK, ["L1.resid_post"], kind="zero")
    np.testing.assert_allclose(
        numbers(LM, TASK, "clean") - zeroed.array[:, 0], numbers(LM, TASK, "corrupt") - scores.array[:, 0], atol=1e-9
    )


def test_unknown_kinds_are_refused():
    with pytest.raises(TrimtabError, match='did you mean "resample"'):
        ablation(LM, TASK, "L*.head", kind="resampled")
