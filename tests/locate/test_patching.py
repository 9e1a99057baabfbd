"""Patching: identities that hold exactly, both directions, and the share of the gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.deeper import deeper
from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import lm_of
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.patching import normalised, patching, total_effect
from trimtab.tasks.measure import sides
from trimtab.values.edit import Edit
from trimtab.values.scores import Scores

LM = lm_of("llama", torch.float64)
TASK = twins()


def test_the_gap_is_clean_minus_corrupt():
    gap = numbers(LM, TASK, "clean") - numbers(LM, TASK, "corrupt")
    np.testing.assert_allclose(total_effect(LM, TASK), gap, rtol=1e-9)
    np.testing.assert_allclose(total_effect(LM, TASK, batch_size=2), gap, rtol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_whole_stream_of_any_layer_is_the_whole_gap(family, direction):
    lm = lm_of(family, torch.float64)
    scores = patching(lm, TASK, "L*.resid_post", spans="all", direction=direction)
    gap = total_effect(lm, TASK)
    np.testing.assert_allclose(scores.array, np.broadcast_to(gap[:, None, None], scores.array.shape), rtol=1e-8)
    share = normalised(scores, gap)
    np.testing.assert_allclose(share.effect, 1, rtol=1e-8)
    np.testing.assert_allclose([share.interval.low, share.interval.high], 1, rtol=1e-8)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_cell_is_a_run_with_the_twins_value(direction):
    both = sides(LM, TASK)
    base, other = (both.negative, both.positive) if direction == "denoise" else (both.positive, both.negative)
    on = "corrupt" if direction == "denoise" else "clean"
    assert base.batch == other.batch

    def edit(row):
        prompts = other.rows([row], trim=True)
        (column,) = prompts.positions("subject")[0]
        return Edit(f"L1.head[2]@{column}", "set", LM.run(prompts, "L1.head")["L1.head"][0, column, 2:3])

    change = (numbers(LM, TASK, on, edit) - numbers(LM, TASK, on)) * (1 if direction == "denoise" else -1)
    scores = patching(LM, TASK, "L*.head", direction=direction)
    np.testing.assert_allclose(scores.array[:, 1, 2, 0], change, atol=1e-9)
    assert scores.coords["span"] == ("subject", "end")
    assert scores.direction == direction


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("window", "layers"), [(1, [2]), (2, [1, 2]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])])
def test_a_window_is_its_layers_together(direction, window, layers):
    lm = deeper("llama", 4)
    both, sites = sides(lm, TASK), [f"L{layer}.mlp_out@-1" for layer in layers]
    other, on, sign = (both.positive, "corrupt", 1) if direction == "denoise" else (both.negative, "clean", -1)

    def edits(row):
        run = lm.run(other.rows([row], trim=True), sites)
        return [Edit(site, "set", run[site][0]) for site in sites]

    expected = sign * (numbers(lm, TASK, on, edits) - numbers(lm, TASK, on))
    scores = patching(lm, TASK, "L*.mlp_out", spans="end", direction=direction, window=window)
    np.testing.assert_allclose(scores.array[:, 2, 0], expected, atol=1e-9)
    assert scores.options.get("window", 1) == window
    listed = patching(lm, TASK, ["L2.mlp_out@end"], direction=direction, window=window)
    np.testing.assert_allclose(listed.array, scores.array[:, 2], atol=1e-12)


@pytest.mark.parametrize(
    "sites",
    ["L*.head", "L*.resid_post", "L*.neuron", ["L1.mlp_out[3]"], "L*.attn_neuron", "embed", "L0.mlp_out.feature@d[1]"],
)
def test_windows_are_of_whole_sublayers(sites):
    """Head 3 of one layer has nothing to do with head 3 of the next, and the last of several streams undoes others."""
    listed = [sites] if "feature" in sites else sites
    with pytest.raises(SiteError, match="a window of 2 layers is of what whole sublayers give"):
        patching(LM, TASK, listed, window=2)


def test_windows_of_raw_outputs_are_those_of_what_is_added():
    for name in ("attn_raw", "mlp_raw"):
        out = patching(LM, TASK, f"L*.{name.replace('raw', 'out')}", window=2).array
        np.testing.assert_allclose(patching(LM, TASK, f"L*.{name}", window=2).array, out, atol=1e-12)


def test_fast_is_naive_and_batches_and_padding_make_no_difference():
    fast = patching(LM, TASK, "L*.head")
    for options in ({"exact": "naive"}, {"batch_size": 1}, {"batch_size": 4}):
        np.testing.assert_allclose(patching(LM, TASK, "L*.head", **options).array, fast.array, atol=1e-9)


def test_candidates_equal_the_map():
    grid = patching(LM, TASK, "L*.neuron")
    alone = patching(LM, TASK, ["L1.neuron[7]@end", "L0.neuron[3]@subject", "L1.resid_post"])
    np.testing.assert_allclose(alone.array[:, 0], grid.array[:, 1, 7, 1], atol=1e-10)
    np.testing.assert_allclose(alone.array[:, 1], grid.array[:, 0, 3, 0], atol=1e-10)
    np.testing.assert_allclose(alone.array[:, 2], total_effect(LM, TASK), rtol=1e-8)


def test_progress_reaches_the_end():
    told = []
    patching(LM, TASK, "L*.head", batch_size=4, progress=lambda *now: told.append(now))
    assert told[-1] == (16 * 6, 16 * 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_ratios_are_left_out_where_the_gap_is_small():
    array = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    scores = Scores(array, ("example", "layer"), {}, "L{layer}.mlp_out", groups=("a", "b", "b"))
    share = normalised(scores, np.array([10.0, 10.0, 0.01]))
    assert share.left_out == 1
    np.testing.assert_allclose(share.effect, array.sum(0) / 20.01)
    np.testing.assert_allclose(share.scores.array[:2], array[:2] / 10)
    assert np.isnan(share.scores.array[2]).all()
    assert (share.interval.low <= share.effect).all()
    assert (share.effect <= share.interval.high).all()
    with pytest.raises(TaskError, match="3 examples"):
        normalised(scores, np.ones(2))


def test_examples_without_an_effect_or_a_gap_are_in_neither_mean():
    array = np.array([[1.0, np.nan], [2.0, 3.0], [5.0, 1.0], [np.nan, np.nan], [7.0, 7.0]])
    scores = Scores(array, ("example", "layer"), {}, "L{layer}.mlp_out", groups=tuple("aabbc"))
    share = normalised(scores, np.array([4.0, 5.0, 6.0, 7.0, np.nan]))
    np.testing.assert_allclose(share.effect, [8 / 15, 4 / 11])
    assert share.left_out == 2
    assert np.isfinite([share.interval.low, share.interval.high]).all()
    alone = normalised(scores.with_(array=array[:3], groups=tuple("aab"), coords={}), np.array([4.0, 5.0, 6.0]))
    np.testing.assert_allclose([alone.effect[0], alone.interval.low[0]], [share.effect[0], share.interval.low[0]])
    assert repr(share) == "<Normalised : largest 0.53 of the gap, 2 of 5 examples without a ratio>"
    nothing = normalised(scores.with_(array=np.full_like(array, np.nan)), np.ones(5))
    assert (nothing.left_out, "no effect" in repr(nothing)) == (5, True)
    with pytest.raises(TaskError, match="NaN for all 5 examples"):
        normalised(scores, np.full(5, np.nan))


def test_one_group_has_no_interval():
    scores = Scores(np.ones((2, 1)), ("example", "layer"), {}, "L{layer}.mlp_out", groups=("a", "a"))
    assert np.isnan(normalised(scores, np.ones(2)).interval.low).all()


def test_errors():
    with pytest.raises(TaskError, match="use shift"):
        patching(LM, pairs(), "L*.head")
    with pytest.raises(TrimtabError, match='did you mean "noise"'):
        patching(LM, TASK, "L*.head", direction="nois")
    with pytest.raises(TrimtabError, match="window is how many layers are patched together, at least 1, got 0"):
        patching(LM, TASK, "L*.head", window=0)


def test_scores_survive_a_file(tmp_path):
    scores = patching(LM, TASK, ["L1.head[2]@subject", "L0.mlp_out"])
    scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    np.testing.assert_array_equal(again.array, scores.array)
    assert again.top(2) == scores.top(2)
    assert again.provenance.method == "patching"
