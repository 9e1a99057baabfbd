"""LAPE against gates counted by hand and a hand-made matrix of activation probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of
from tests.tiny import words
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.language_entropy import activation_probability, entropy, language_entropy, language_neurons
from trimtab.values.scores import Scores

LM = lm_of("llama", torch.float64)
TEXTS = {
    "one": [words(5, 6, 7), words(8, 9, 10, 11, 12)],
    "two": [words(40, 41), words(42, 43, 44, 45), words(46)],
    "three": [words(70, 71, 72, 73, 74, 75)],
}


def made(p, languages):
    p = np.asarray(p, float)[:, None]
    return Scores(
        p,
        ("example", "layer", "neuron"),
        {"layer": (2,)},
        "L{layer}.neuron[{neuron}]",
        method="activation_probability",
        groups=languages,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "falcon", "gemma2"])
def test_probabilities_are_shares_of_open_gates(family):
    lm = lm_of(family)
    found = activation_probability(lm, TEXTS)
    assert found.groups == tuple(TEXTS)
    for i, texts in enumerate(TEXTS.values()):
        opened = torch.cat([lm.run(text, "L1.gate_pre")["L1.gate_pre"][0] > 0 for text in texts]).double()
        np.testing.assert_allclose(found.array[i, 1], opened.mean(0).numpy(), atol=1e-12)
        if family == "opt":  # ReLU: open where the neuron is not 0
            active = torch.cat([lm.run(text, "L1.neuron")["L1.neuron"][0] > 0 for text in texts]).double()
            np.testing.assert_allclose(found.array[i, 1], active.mean(0).numpy(), atol=1e-12)
    one = activation_probability(lm, TEXTS, batch_size=1)
    np.testing.assert_allclose(one.array, found.array, atol=1e-12)


def test_entropy_of_known_shares():
    p = [[0.5, 0.8, 0.0, 0.1], [0.5, 0.0, 0.0, 0.3]]
    found = entropy(made(p, ("a", "b"))).array[0, 0]
    mixed = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(found, [np.log(2), 0.0, np.nan, mixed], atol=1e-12)


def test_the_screen_is_the_entropy_of_the_probabilities():
    found = language_entropy(LM, TEXTS)
    np.testing.assert_array_equal(found.array, entropy(activation_probability(LM, TEXTS)).array)
    assert found.array.shape == (1, 2, 40)
    assert np.nanmax(found.array) <= np.log(3) + 1e-12
    assert found.method == "language_entropy"
    lowest = min(value for value in found.array.ravel() if value == value)
    assert found.sel(**found.ranking(1)[0][0]).array[0] == lowest, "a neuron of few languages comes first"


def test_a_planted_neuron_is_found():
    """Of a hundred neurons, 7 opens in "b" alone, 8 in "b" alone but hardly ever, 9 in "a" and "c"."""
    p = np.full((3, 100), 0.3)
    p[:, 7], p[:, 8], p[:, 9] = [0.0, 0.9, 0.0], [0.0, 0.01, 0.0], [0.8, 0.0, 0.8]
    scores = made(p, ("a", "b", "c"))
    chosen = {name: [str(site) for site in sites] for name, sites in language_neurons(scores).items()}
    assert chosen == {"a": [], "b": ["L2.neuron[7]"], "c": []}
    chosen = {name: [str(site) for site in sites] for name, sites in language_neurons(scores, lowest=0.02).items()}
    assert chosen == {"a": ["L2.neuron[9]"], "b": ["L2.neuron[7]"], "c": ["L2.neuron[9]"]}


def test_a_task_names_its_languages_by_their_answers():
    task = pairs(6)
    found = activation_probability(LM, task)
    assert found.groups == ("w8", "w9")
    both = {"w8": [e.positive for e in task.examples], "w9": [e.negative for e in task.examples]}
    np.testing.assert_array_equal(found.array, activation_probability(LM, both).array)
    for task in (pairs(4, question=False), twins(3)):
        with pytest.raises(TaskError, match="mapping of language to texts"):
            activation_probability(LM, task)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TaskError, match="two languages or more"):
        language_entropy(LM, {"one": ["w5"]})
    with pytest.raises(SiteError, match="map of neurons"):
        language_entropy(LM, TEXTS, "L*.head")
    with pytest.raises(SiteError, match="mixture of experts"):
        language_entropy(lm_of("mixtral"), TEXTS)
    with pytest.raises(TrimtabError, match="chooses by activation_probability"):
        language_neurons(entropy(activation_probability(LM, TEXTS)))
    with pytest.raises(TrimtabError, match="a share of the neurons"):
        language_neurons(activation_probability(LM, TEXTS), lowest=2.0)
