"""Probes: near one for what is planted, near chance for every control, never trained on what they are tested on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, planted, twins
from tests.model.tinies import lm_of
from tests.tiny import FAMILIES, words
from trimtab.errors import TaskError, TrimtabError
from trimtab.locate.classifiers import KINDS, Linear, fit
from trimtab.locate.folds import Labels, balanced, crossed, group_split, true_labels
from trimtab.locate.probing import _together, probe, selectivity
from trimtab.tasks.example import Contrast
from trimtab.tasks.means import mean_difference
from trimtab.tasks.task import Task
from trimtab.values.bootstrap import mean_interval
from trimtab.values.site import Site

TASK = pairs(24, groups=8)
NUMBERED = pairs(40, groups=20)
SMALL = {"hidden": 4, "folds": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_read_and_shuffled_labels_are_not(kind):
    lm = planted()
    true = probe(lm, TASK, "L*.resid_post", kind=kind, **SMALL)
    assert true.mean().min() > 0.9
    assert set(np.unique(true.array)) <= {0.0, 0.5, 1.0}
    null = probe(lm, TASK, "L*.resid_post", kind=kind, control="shuffled", draws=4, **SMALL)
    assert np.abs(null.mean() - 0.5).max() < 0.15
    assert (selectivity(true, null).interval().low > 0.1).all()


def test_intervals_of_shuffled_controls_have_the_scatter_between_draws_in_them():
    """What shuffled labels score is ½ on average over draws: the interval says so 95 times in 100."""
    covered, wrong = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        u = rng.standard_normal(8)  # the sides do differ, so that every example of a draw errs the same way
        x = rng.standard_normal((2, 40, 1, 8)) + 2 * u * np.array([1, -1])[:, None, None, None]
        labels = Labels(NUMBERED, None, "shuffled", 2, 5, seed)
        draws = [_together(x, made, "difference", 0.1, 1, 0, "correct") for made in labels.of(Site("embed"))]
        low, high = mean_interval(np.mean(draws, 0), groups=labels.parts.tolist())
        covered.append(low[0] <= 0.5 <= high[0])
        low, high = mean_interval(draws[0], groups=NUMBERED.groups)
        wrong.append(low[0] <= 0.5 <= high[0])
    assert np.mean(covered) > 0.9


def test_parts_are_whole_groups_of_one_fold_and_are_drawn_for_apart():
    labels = Labels(NUMBERED, None, "shuffled", 1, 5, 3)
    parts = labels.parts
    assert len(set(parts)) == 10
    assert len(set(zip(NUMBERED.groups, parts, strict=True))) == 20
    (made,) = labels.of(Site("embed"))
    tested = np.concatenate([test for drawn in made for _, test in drawn.split])
    assert sorted(tested.tolist()) == list(range(40))
    for train, test in ((train, test) for drawn in made for train, test in drawn.split):
        assert not {NUMBERED.groups[i] for i in train} & {NUMBERED.groups[i] for i in test}
    assert len({drawn.taught.tobytes() for drawn in made}) == 10


def test_drawn_labels_weigh_alike_however_often_each_was_drawn():
    asked = np.array([[1, 1, 1, -1], [1, 0, -1, -1]])
    x = np.zeros((2, 4, 1, 1))
    split = [(np.arange(4), np.arange(4))]
    for answer in (1.0, -1.0):
        same = Linear(np.zeros((1, 1)), np.array([answer]))
        found = crossed(x, asked, asked, split, lambda r, y, same=same: same, "correct", balanced(asked))
        assert np.nanmean(found) == pytest.approx(0.5), "always the same answer"
        assert np.isnan(found[3]).all()
    assert np.isnan(balanced(np.ones((2, 3), dtype=int))).all()


def test_labels_drawn_for_uneven_types_are_no_easier():
    """Most examples are of one group: saying its label is right for 70 % and still worth ½."""
    lm, odd = planted(), pairs(40, groups=40, name="odd")
    odd = odd.of([e.with_(group="most" if i < 28 else f"other {i % 4}") for i, e in enumerate(odd.examples)])
    scores = probe(lm, odd, "L1.resid_post", control="groups", kind="difference", draws=8)
    assert abs(scores.mean()[0, 0] - 0.5) < 0.12
    more = odd.of([e.with_(group="most" if i < 35 else e.group) for i, e in enumerate(odd.examples)])
    with pytest.raises(TaskError, match="one group has 88%"):
        probe(lm, more, "L1.resid_post", control="groups")


def test_shuffled_controls_are_probes_of_shuffled_labels():
    """By hand, with scikit-learn's folds: trained on swapped sides, anew for each part, asked for the true ones."""
    lm = planted()
    means = mean_difference(lm, TASK, "L1.resid_post")
    x = np.stack([side[:, None] for side in means.sides("L1.resid_post")])
    ours = probe(lm, TASK, "L1.resid_post", kind="difference", control="shuffled", draws=3, seed=4)
    rng, found = np.random.default_rng(4), []
    parts = [[i for i, own in enumerate(ours.groups) if own == f"part {part}"] for part in range(8)]
    for _ in range(3):
        correct = np.empty(24)
        for part in parts:
            flip = rng.permutation(np.arange(24) % 2 == 0)
            ((train, _),) = [(train, test) for train, test in group_split(TASK, 5, 4) if part[0] in test]
            sides = np.where(flip[:, None, None], x[::-1], x)[:, train]
            made = fit(np.concatenate(list(sides)), np.repeat([1, 0], len(train)), "difference")
            right, wrong = (made.margins(side[part])[:, 0] > 0 for side in x)
            correct[part] = (1.0 + right - wrong) / 2
        found.append(correct)
    np.testing.assert_allclose(ours.array[:, 0, 0], np.mean(found, axis=0))


def memorable(n=40, types=4):
    """Sides that end in one of a few words, which has nothing to do with the side or the group."""
    rng = np.random.default_rng(7)
    examples = []
    for i in range(n):
        rest = rng.integers(40, 97, 3).tolist()
        ends = rng.integers(0, types, 2).tolist()
        sides = [words(*rest, token, 20 + end) for end, token in zip(ends, (5, 6), strict=True)]
        examples.append(Contrast(*sides, group=f"group {i % 4}"))
    return Task("memorable", tuple(examples), read="last")


def test_what_a_probe_can_memorise():
    """The last token's label is drawn, and read off its own embedding by a probe that has seen that token."""
    lm, task = planted(), memorable()
    tokens = probe(lm, task, "embed", control="tokens", kind="logistic", C=10.0)
    assert tokens.mean().max() > 0.95
    truth = probe(lm, task, "embed", kind="logistic", C=10.0)
    assert abs(truth.mean().max() - 0.5) < 0.25
    assert selectivity(truth, tokens).mean().max() < -0.2
    groups = probe(lm, task, "embed", control="groups", kind="logistic", C=10.0)
    assert abs(groups.mean().max() - 0.5) < 0.3


def test_tokens_that_were_in_no_training_example_are_undefined():
    lm, task = planted(), memorable(12, types=4)
    odd = task.of([*task.examples, Contrast(words(50, 51, 5, 90), words(50, 51, 6, 91), group="group 0")])
    scores = probe(lm, odd, "embed", control="tokens", folds=12)
    assert np.isnan(scores.array[-1]).all()
    assert not np.isnan(scores.array[:-1]).any()
    assert scores.options["undefined"] == 1


def test_an_untrained_twin_reads_the_words_and_no_more():
    """What training planted (far apart embeddings of two tokens) is not in a twin, whose words differ all the same."""
    lm = planted()
    # the stream has the words in both; the neuron that was made to read them reads nothing in a twin
    sites = ["L1.resid_post", "L1.neuron[7]"]
    true, twin = (probe(lm, TASK, sites, kind="difference", control=c) for c in (None, "untrained"))
    assert (true.mean() > 0.9).all()
    assert twin.mean()[0] > 0.8
    assert twin.mean()[1] < 0.8
    assert selectivity(true, twin).mean()[1] > 0.2
    assert selectivity(true, twin).groups == TASK.groups
    again = probe(lm, TASK, sites, kind="difference", control="untrained")
    np.testing.assert_array_equal(twin.array, again.array)


def test_margins_by_hand():
    x = np.array([[[[2.0]], [[4.0]], [[3.0]], [[7.0]]], [[[-2.0]], [[-4.0]], [[-3.0]], [[1.0]]]])
    split = [(np.array([0, 1]), np.array([2, 3]))]
    found = crossed(x, true_labels(4), true_labels(4), split, lambda r, y: fit(r, y, "difference"), "margin")
    # direction 6, border 0; training margins ±12, ±24 have deviation 18.97
    np.testing.assert_allclose(found[2:, 0], np.array([(18 + 18) / 2, (42 - 6) / 2]) / np.std([12, 24, -12, -24]))
    assert np.isnan(found[:2]).all()
    assert probe(planted(), TASK, "L1.resid_post", score="margin").unit == "sd"


def test_maps_of_units_and_spans_have_a_probe_each():
    scores = probe(planted(), TASK, "L1.neuron", kind="difference")
    assert scores.dims == ("example", "layer", "neuron", "span")
    assert scores.mean()[0, 7, 0] > 0.9
    heads = probe(planted(), TASK, "L*.head")
    alone = probe(planted(), TASK, ["L1.head[2]"])
    np.testing.assert_allclose(alone.array[:, 0], heads.array[:, 1, 2, 0])
    where = probe(planted(), TASK, "L*.resid_post", read=("text", "last", "1"), kind="difference")
    assert where.mean()[0, 2] < 0.7 < where.mean()[0, 0], "the second word comes before what tells the sides apart"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm = lm_of(family)
    scores = probe(lm, TASK, "L*.resid_post", kind="difference")
    assert scores.mean().min() > 0.5
    assert probe(lm, twins(), "L1.mlp_out", kind="ridge").array.shape == (6, 1, 1)


def test_batches_and_padding_make_no_difference():
    lm = lm_of("llama", torch.float64)
    one, single = (probe(lm, TASK, "L*.resid_post", kind="difference", batch_size=b).array for b in (16, 1))
    np.testing.assert_allclose(one, single)


def test_errors():
    lm = planted()
    with pytest.raises(TaskError, match="1 group"):
        probe(lm, pairs(4, groups=1), "L0.resid_post")
    with pytest.raises(TrimtabError, match='did you mean "logistic"'):
        probe(lm, TASK, "L0.resid_post", kind="logistics")
    with pytest.raises(TrimtabError, match='did you mean "shuffled"'):
        probe(lm, TASK, "L0.resid_post", control="shuffle")
    with pytest.raises(TrimtabError, match="score is one of"):
        probe(lm, TASK, "L0.resid_post", score="both")
    with pytest.raises(TrimtabError, match="draws"):
        probe(lm, TASK, "L0.resid_post", control="shuffled", draws=0)
    with pytest.raises(TaskError, match="one last token"):
        probe(lm, memorable(8, types=1), "embed", control="tokens")
    means = mean_difference(lm, TASK, "L0.resid_post")
    with pytest.raises(TrimtabError, match="untrained"):
        probe(lm, TASK, "L0.resid_post", control="untrained", differences=means)
    with pytest.raises(TrimtabError, match="differ in coords"):
        selectivity(probe(lm, TASK, ["L0.resid_post"]), probe(lm, TASK, ["L1.resid_post"]))
