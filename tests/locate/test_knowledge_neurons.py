"""Integrated gradients of neurons against their sum, a loop of whole passes and attributions made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import lm_of
from tests.tiny import DENSE
from trimtab.errors import ModelError, SiteError, TaskError, TrimtabError
from trimtab.locate.knowledge_neurons import knowledge_neurons, shared_neurons
from trimtab.locate.slopes import entries
from trimtab.model.onward import Onward
from trimtab.tasks.measure import measure
from trimtab.values.edit import Edit
from trimtab.values.scores import Scores

LM = lm_of("llama", torch.float64)
TASK = twins(4)
PLAIN = [family for family in DENSE if family not in ("gemma2", "gemma3", "olmo2")]
"""Those without a norm behind the MLP."""


def zeroed(lm, task, layer):
    """p(answer) less what it is with the last token's neurons of one layer at 0."""
    edits = [Edit(f"L{layer}.neuron@-1", "set", 0.0)]
    return numbers(lm, task, "clean") - numbers(lm, task, "clean", lambda row: edits)


@pytest.mark.parametrize("family", PLAIN)
def test_attributions_of_a_layer_sum_to_what_its_neurons_change(family):
    lm, task = lm_of(family, torch.float32), TASK.with_(metric="log_prob")
    scores = knowledge_neurons(lm, task, metric="log_prob", steps=200)
    assert scores.dims == ("example", "layer", "neuron", "span")
    for layer in range(2):
        change = zeroed(lm, task, layer)
        largest = max(1.0, float(np.abs(change).max()))
        limit = 2e-2 if family == "opt-350m" else 2e-3  # its norm of the whole stream bends the path most
        np.testing.assert_allclose(scores.array[:, layer].sum((1, 2)), change, atol=limit * largest)


@pytest.mark.parametrize("family", PLAIN)
def test_the_last_token_alone_gives_what_whole_passes_give(family):
    lm = lm_of(family, torch.float32)
    fast, naive = (knowledge_neurons(lm, TASK, steps=3, exact=way).array for way in ("fast", "naive"))
    assert np.abs(fast).max() > 0
    np.testing.assert_allclose(fast, naive, atol=2e-5 * np.abs(naive).max())


def test_more_steps_leave_a_smaller_error_and_it_is_the_sums_own():
    errors = [knowledge_neurons(LM, TASK, steps=m).options["completeness_error"] for m in (2, 64)]
    assert all(fine < coarse for coarse, fine in zip(*errors, strict=True))
    scores = knowledge_neurons(LM, TASK, steps=2)
    apart = np.abs(scores.array[:, 1].sum((1, 2)) - zeroed(LM, TASK.with_(metric="prob"), 1)).max()
    np.testing.assert_allclose(errors[0][1], apart, atol=1e-9)


def test_two_steps_by_hand():
    measured = measure(LM, TASK, on="clean", metric="prob")
    prompts, readout = measured.prompts.rows([1], trim=True), measured.readout.of_rows([1])
    w = LM.run(prompts, "L1.neuron@-1")["L1.neuron@-1"][0]
    slopes = [
        LM.gradients(prompts, readout, "L1.neuron", edit=[Edit("L1.neuron@-1", "scale", a)]).gradients["L1.neuron"][
            0, -1
        ]
        for a in (0.25, 0.75)
    ]
    scores = knowledge_neurons(LM, TASK, "L1.neuron", steps=2)
    np.testing.assert_allclose(scores.array[1, 0, :, 0], (w * (slopes[0] + slopes[1]) / 2).numpy(), atol=1e-12)


def test_batches_make_no_difference_and_candidates_are_sums():
    grid = knowledge_neurons(LM, TASK, steps=4)
    np.testing.assert_allclose(knowledge_neurons(LM, TASK, steps=4, batch_size=1).array, grid.array, atol=1e-10)
    few = knowledge_neurons(LM, TASK, ["L0.neuron[3,5]", "L1.neuron[7]"], steps=4)
    expected = [grid.array[:, 0, [3, 5], 0].sum(1), grid.array[:, 1, 7, 0]]
    np.testing.assert_allclose(few.array, np.stack(expected, 1), atol=1e-12)


@pytest.mark.parametrize("way", ["fast", "naive"])
def test_rows_of_a_pass_are_those_that_fit(way, monkeypatch):
    """A whole pass holds every token of its prompt, the fast way one token and the keys and values that it sees."""
    rows, real = [], Onward.gradient

    def counted(onward, layer, which, values, readout):
        rows.append((len(which), onward.prompts.width, onward.numbers))
        return real(onward, layer, which, values, readout)

    monkeypatch.setattr(Onward, "gradient", counted)
    whole = knowledge_neurons(LM, TASK, "L1.neuron", steps=4, exact=way).array
    memory = 8.0 * 5 * max(held for _, _, held in rows)
    rows.clear()
    small = knowledge_neurons(LM, TASK, "L1.neuron", steps=4, exact=way, memory=memory)
    widest = max(width for _, width, _ in rows)
    assert max(n for n, width, _ in rows if width == widest) == 5  # shorter prompts go more at once
    assert all(n * held * 8 <= memory for n, _, held in rows)
    token = entries(LM, ())
    for _, width, held in rows:
        assert held == width * token if way == "naive" else token < held < width * token
    np.testing.assert_allclose(small.array, whole, atol=1e-10)


def test_blocks_that_cannot_be_cut_take_whole_passes(monkeypatch):
    def refuse(*_, **__):
        raise ModelError("a block was called with something that cannot be cut")

    naive = knowledge_neurons(LM, TASK, steps=3, exact="naive").array
    monkeypatch.setattr("trimtab.model.onward.base_run", refuse)
    np.testing.assert_array_equal(knowledge_neurons(LM, TASK, steps=3).array, naive)


def test_questions_are_read_after_themselves():
    task = pairs(4)
    np.testing.assert_allclose(
        knowledge_neurons(LM, task, "L1.neuron", steps=200, metric="log_prob").array.sum((1, 2, 3)),
        zeroed(LM, task.with_(metric="log_prob"), 1),
        atol=1e-3,
    )


def made(array, groups):
    array = np.asarray(array, float)[:, None]
    return Scores(array, ("example", "layer", "neuron"), {"layer": (3,)}, "L{layer}.neuron[{neuron}]", groups=groups)


def test_shared_neurons_of_a_hand_made_map():
    array = [[1.0, 0.2, 0.19, -1.0], [0.5, 0.0, 0.1, 0.0], [0.9, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
    scores = made(array, ("a", "a", "a", "b"))
    found = {fact: [str(site) for site in sites] for fact, sites in shared_neurons(scores).items()}
    assert found == {"a": ["L3.neuron[0]"], "b": ["L3.neuron[3]"]}  # neuron 1 counts for two of three, 2 for one
    wider = shared_neurons(scores, share=2 / 3)
    assert [str(site) for site in wider["a"]] == ["L3.neuron[0]", "L3.neuron[1]"]
    split = shared_neurons(scores, facts=[0, 0, 1, 1], share=1.0)
    assert [str(site) for site in split[0]] == ["L3.neuron[0]"]
    assert split[1] == []


def test_an_example_in_which_nothing_makes_for_the_answer_has_no_neurons():
    assert shared_neurons(made([[-1.0, 0.0, -2.0]], ("a",))) == {"a": []}


def test_what_does_not_fit_is_refused():
    with pytest.raises(SiteError, match="takes L"):
        knowledge_neurons(LM, TASK, "L*.head")
    with pytest.raises(SiteError, match="last position alone"):
        knowledge_neurons(LM, TASK, "L*.neuron@subject")
    with pytest.raises(SiteError, match="mixture of experts"):
        knowledge_neurons(lm_of("mixtral"), TASK)
    with pytest.raises(ModelError, match="norms what its MLPs write"):
        knowledge_neurons(lm_of("gemma2"), TASK)
    with pytest.raises(TrimtabError, match="one step or more"):
        knowledge_neurons(LM, TASK, steps=0)
    with pytest.raises(TaskError):
        knowledge_neurons(LM, pairs(4, question=False))
    with pytest.raises(TrimtabError, match="shares above 0"):
        shared_neurons(made([[1.0]], ("a",)), share=0.0)
