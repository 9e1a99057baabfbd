"""The lens over a task: the last layer is the model, heads add up, and every number is the one of a single prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.largest import Largest
from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import MOE, exact, lm_of, tolerance, untouched
from tests.tiny import FAMILIES, words
from trimtab.errors import ModelError, SiteError, TaskError
from trimtab.locate import lens_scores, vocabulary
from trimtab.locate.lens import logit_lens
from trimtab.locate.lens_scores import first_layer, logit_lens_scores
from trimtab.tasks.measure import measure, sides
from trimtab.tasks.task import Task
from trimtab.values.scores import Scores
from trimtab.values.tuned_lens import TunedLens

LM = lm_of("llama", torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [twins(), pairs(), pairs(question=False)], ids=["twins", "questions", "texts"])
def test_at_the_last_layer_it_is_what_the_model_says(family, task):
    lm = lm_of(family) if family in MOE else exact(family, padded=True)
    with untouched(lm):
        scores = logit_lens_scores(lm, task)
    expected = numbers(lm, task, on="clean")
    np.testing.assert_allclose(scores.array[:, -1, 0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert scores.coords["layer"] == (0, 1)
    assert scores.groups == task.groups
    assert np.isfinite(scores.array).all()


@pytest.mark.parametrize("quantity", ["rank", "prob", "entropy", "kl"])
def test_its_numbers_are_those_of_the_lens_of_each_prompt(quantity):
    task = twins()
    prompts = sides(LM, task).positive
    scores = logit_lens_scores(LM, task, ["embed", "L0.resid_mid", "L1.resid_post"], quantity=quantity)
    assert scores.unit == {"rank": "rank", "prob": "probability", "entropy": "nat", "kl": "nat"}[quantity]
    assert scores.order == ("abs" if quantity == "prob" else "low")
    for row, example in enumerate(task.examples):
        one = logit_lens(
            LM,
            prompts.rows([row], trim=True),
            answer=example.answers[0],
            sites=["embed", "L0.resid_mid", "L1.resid_post"],
        )
        expected = getattr(one, {"prob": "probability"}.get(quantity, quantity))[:, -1]
        np.testing.assert_allclose(scores.array[row], expected, rtol=1e-8, atol=1e-10)


def test_a_task_measured_in_ranks_has_the_layer_first_that_puts_its_answers_highest():
    """Of a task's own metric more is better, so it is minus the rank; the quantity "rank" counts from 1."""
    own, ranks = (logit_lens_scores(LM, twins(metric="rank"), quantity=quantity) for quantity in ("metric", "rank"))
    np.testing.assert_array_equal(own.array, -ranks.array)
    assert (own.order, ranks.order) == ("high", "low")
    assert own.top(1)[0] == ranks.top(1)[0]
    first_layer(ranks)
    with pytest.raises(TaskError, match='quantity="rank"'):
        first_layer(own)


def test_a_task_measured_in_log_probabilities_has_its_likeliest_layer_first():
    scores = logit_lens_scores(LM, twins(metric="log_prob"))
    assert scores.order == "high"
    assert scores.mean().ravel()[[s == scores.top(1)[0] for s in scores.sites()]] == scores.mean().max()


def test_spans_are_means_over_their_positions():
    task = twins()
    prompts = sides(LM, task).positive
    scores = logit_lens_scores(LM, task, quantity="entropy", spans=["subject", "0:2", "end"])
    assert scores.coords["span"] == ("subject", "0:2", "end")
    for row in range(len(task)):
        one = logit_lens(LM, prompts.rows([row], trim=True))
        subject = prompts.spans["subject"][row]
        by_hand = [one.entropy[:, list(at)].mean(1) for at in (subject, (0, 1), (-1,))]
        np.testing.assert_allclose(scores.array[row], np.stack(by_hand, -1), rtol=1e-10)


@pytest.mark.parametrize("family", ["llama", "llama-bias", "gemma2", "olmo2", "gpt2", "falcon", "gptj"])
def test_what_heads_write_adds_up_to_what_attention_writes(family):
    """With the post-norm's scale and without biases, which no head writes."""
    lm = exact(family, padded=True)
    prompts = lm.prompts([words(5, 6, 7, 8), words(9, 10)])
    site = lm.sites("L1.head")[0]
    run = lm.run(prompts, [*vocabulary.needed([site]), "L1.attn_out"], logits=False)
    rows, columns = prompts.mask.nonzero(as_tuple=True)
    with torch.no_grad():
        each = vocabulary.vectors(lm, run, site, rows, columns)
        silent = lm.run(prompts, "L1.attn_out", "L1.head scale 0", logits=False)
        block = lm.anatomy.blocks[1]
        nothing = silent.whole(lm.sites("L1.attn_out")[0])[rows, columns]
        expected = run.whole(lm.sites("L1.attn_out")[0])[rows, columns]
        if block.attn_post is None:
            expected = expected - nothing
        np.testing.assert_allclose(each.sum(1), expected, atol=tolerance(lm) * float(expected.abs().max()))
        some = vocabulary.vectors(lm, run, site.with_(index=(1, 3)), rows, columns)
    torch.testing.assert_close(some[:, 0], each[:, [1, 3]].sum(1))


def test_heads_and_sublayers_have_their_axes():
    task = twins()
    scores = logit_lens_scores(LM, task, "L*.head", quantity="log_prob")
    assert (scores.dims, scores.array.shape) == (("example", "layer", "head", "span"), (6, 2, 4, 1))
    named = logit_lens_scores(LM, task, ["L1.head[2]", "L0.mlp_out@subject"], quantity="log_prob")
    np.testing.assert_allclose(named.array[:, 0], scores.array[:, 1, 2, 0])
    measured = measure(LM, task, on="clean", metric="log_prob")
    run = LM.run(measured.prompts, "L0.mlp_out")
    columns = torch.tensor(measured.prompts.positions("subject"))
    with torch.no_grad():
        x = run["L0.mlp_out"][torch.arange(6)[:, None], columns]
        by_hand = measured.per_example(measured.readout.of(LM.unembed(LM.final(x)), torch.arange(6)))
    np.testing.assert_allclose(named.array[:, 1], by_hand, rtol=1e-8)


def test_batches_and_blocks_make_no_difference(monkeypatch):
    for task, quantity in ((twins(), "rank"), (pairs(question=False), "metric"), (pairs(), "kl")):
        whole = logit_lens_scores(LM, task, quantity=quantity)
        monkeypatch.setattr(lens_scores, "AT_ONCE", 3 * LM.anatomy.vocab)
        calls = []
        parts = logit_lens_scores(
            LM,
            task,
            quantity=quantity,
            batch_size=2,
            progress=lambda *done: calls.append(done),  # noqa: B023
        )
        monkeypatch.undo()
        np.testing.assert_allclose(whole.array, parts.array, rtol=1e-8, atol=1e-10)
        assert calls[-1][0] == calls[-1][1] == len(measure(LM, task, on="clean").prompts)


def test_layers_times_positions_times_vocabulary_is_never_held(monkeypatch):
    """Nor positions times vocabulary: blocks of logits are as large as they may be and no larger."""
    most = 8 * LM.anatomy.vocab
    monkeypatch.setattr(lens_scores, "AT_ONCE", most)
    with Largest() as seen:
        logit_lens_scores(LM, twins(14), quantity="kl", spans="all", batch_size=8)
    weights = max(parameter.numel() for parameter in LM.hf.parameters())
    assert seen.entries <= max(most, weights)
    tokens = int(measure(LM, twins(14), on="clean").prompts.lengths.sum())
    assert tokens * LM.anatomy.vocab > 2 * max(most, weights)


def test_an_identity_lens_is_the_logit_lens_and_another_is_not():
    task = twins()
    lens = TunedLens.identity(["L0.resid_post", "L1.resid_post"], 32, model_hash=LM.hash)
    plain = logit_lens_scores(LM, task)
    np.testing.assert_array_equal(logit_lens_scores(LM, task, lens=lens).array, plain.array)
    moved = logit_lens_scores(LM, task, lens=lens.with_(bias=[[5.0] + [0.0] * 31, [0.0] * 32]))
    assert (np.abs(moved.array[:, 0] - plain.array[:, 0]) > 1e-3).all()
    np.testing.assert_array_equal(moved.array[:, 1], plain.array[:, 1])
    assert moved.options["lens"] != plain.options["lens"] is None
    with pytest.raises(ModelError, match="other weights than llama has now"):
        logit_lens_scores(LM, task, lens=lens.with_(model_hash=""))
    with pytest.raises(ModelError, match="width 4"):
        logit_lens_scores(LM, task, lens=TunedLens.identity(["L0.resid_post"], 4, model_hash=LM.hash))
    with pytest.raises(SiteError, match=r"L0\.head"):
        logit_lens_scores(LM, task, "L*.head", lens=lens)
    with pytest.raises(SiteError, match="no translator"):
        logit_lens_scores(LM, task, "L*.resid_mid", lens=lens)


def test_the_first_layer_at_which_the_answer_stays():
    ranks = np.array([[4, 1, 3, 1, 1], [1, 1, 1, 1, 1], [9, 9, 9, 1, 2]])[..., None]
    scores = Scores(ranks, ("example", "layer", "span"), {"span": ("end",)}, "L{layer}.resid_post@{span}", unit="rank")
    np.testing.assert_array_equal(first_layer(scores)[:, 0], [3, 0, np.nan])
    np.testing.assert_array_equal(first_layer(scores, rank=3)[:, 0], [1, 0, 3])
    with pytest.raises(TaskError, match='quantity="rank"'):
        first_layer(scores.with_(unit="nat"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quantity": "entrpy"}, TaskError, 'unknown quantity "entrpy".*did you mean'),
        ({"on": "gap"}, TaskError, 'unknown on "gap"'),
        ({"sites": "L*.neuron"}, SiteError, "as wide as the residual stream"),
        ({"sites": "L0.resid_post[3]"}, SiteError, "whole vectors"),
        ({"spans": "nobody"}, Exception, "nobody"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        logit_lens_scores(LM, twins(), **options)


def test_whole_texts_have_no_other_positions():
    task = pairs(question=False)
    with pytest.raises(TaskError, match="leave spans out"):
        logit_lens_scores(LM, task, spans="end")
    assert logit_lens_scores(LM, task, quantity="entropy").array.min() > 0
    assert isinstance(task, Task)
