"""Features of dictionaries: the identity dictionary's are channels, and formulas hold for any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions
from tests.model.tinies import IDS, RAGGED, lm_of, off
from tests.tiny import words
from trimtab.errors import EditError, SiteError, TrimtabError
from trimtab.model.protocols import Dictionary
from trimtab.steer.features import (
    add_feature,
    clamp_feature,
    feature_difference,
    feature_direction,
    largest_activations,
)
from trimtab.steer.vectors import difference_of_means
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
SITE = "L0.resid_post"
TEXTS = [words(40, 41, 42, 43), words(50, 51)]


class Identity:
    """Every channel is a feature."""

    def encode(self, x):
        return x

    def decode(self, features):
        return features


class Sparse:
    """A random autoencoder: ReLU(x W + b) and back, with a bias, which explains some of x."""

    def __init__(self, width=32, features=50, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.into = torch.randn(width, features, generator=generator, dtype=torch.float64) / width**0.5
        self.back = torch.randn(features, width, generator=generator, dtype=torch.float64) / features**0.5
        self.bias = torch.randn(width, generator=generator, dtype=torch.float64)

    def encode(self, x):
        return torch.relu((x - self.bias.to(x.dtype)) @ self.into.to(x.dtype))

    def decode(self, features):
        return features @ self.back.to(features.dtype) + self.bias.to(features.dtype)


SAE = Sparse()
ALL = {"id": Identity(), "sae": SAE}


def feature(name, *units, site=SITE):
    return f"{site}.feature@{name}[{','.join(map(str, units))}]"


def state(edit=None, prompts=IDS):
    return LM.run(prompts, SITE, edit=edit, dictionaries=ALL)[SITE]


def test_the_test_dictionaries_are_dictionaries():
    assert isinstance(SAE, Dictionary)
    assert isinstance(Identity(), Dictionary)


def test_a_direction_is_a_column_of_the_decoder():
    np.testing.assert_allclose(feature_direction(LM, feature("sae", 7), ALL), SAE.back[7], atol=1e-12)
    np.testing.assert_array_equal(feature_direction(LM, feature("id", 7), ALL), np.eye(32)[7])
    heads = feature_direction(LM, feature("id", 9, site="L1.head"), ALL)
    assert heads.shape == (4, 8)
    assert heads[1, 1] == heads.sum() == 1


def test_the_largest_activation_is_that_of_any_token_but_the_first():
    sites = [Site.parse(feature("sae", 3)), Site.parse(feature("sae", 8))]
    found = largest_activations(LM, TEXTS, feature("sae", 3, 8), ALL)
    for site in sites:
        each = [SAE.encode(LM.run(text, SITE)[SITE])[0, 1:, site.index[0]].max() for text in TEXTS]
        assert found[site] == pytest.approx(float(max(each)), rel=1e-6)


def test_the_largest_activation_is_not_the_smallest_one_without_its_sign():
    """Of a channel that is −9 somewhere and 2 at most, it is 2; where all are below zero, the one nearest to it."""

    states = torch.cat([LM.run(text, SITE)[SITE][0, 1:] for text in TEXTS])
    channel = int(torch.where(states.amax(0) > 0, -states.amin(0) - states.amax(0), -1.0).argmax())
    most, least = float(states[:, channel].max()), float(states[:, channel].min())
    assert 0 < most < -least, "the test's own: further below zero than above"
    found = largest_activations(LM, TEXTS, feature("id", channel), ALL)
    assert found == {Site.parse(feature("id", channel)): pytest.approx(most)}
    made = clamp_feature(LM, TEXTS, feature("id", channel), dictionaries=ALL)
    torch.testing.assert_close(state(made)[..., channel], torch.full((2, 7), most, dtype=torch.float64))

    class Below(Identity):
        def encode(self, x):
            return x - most - 1

    found = largest_activations(LM, TEXTS, feature("below", channel), {"below": Below()})
    assert found == {Site.parse(feature("below", channel)): pytest.approx(-1, abs=1e-6)}


@pytest.mark.parametrize("make", [add_feature, clamp_feature])
def test_positions_on_a_feature_are_where_it_acts(make):
    options = {"dictionaries": ALL, "max_act": 1.5}
    made = make(LM, None, f"{feature('sae', 3)}@-1", **options)
    assert [str(edit.where) for edit in made] == ["-1"]
    assert made == make(LM, None, feature("sae", 3), where="-1", **options)
    assert made == make(LM, None, f"{feature('sae', 3)}@-1", where="last", **options)
    x, y = state(), state(made)
    assert torch.equal(y[:, :-1], x[:, :-1])
    assert off(y[:, -1], x[:, -1]) > 1e-2
    two = make(LM, None, [f"{feature('sae', 3)}@0", f"{feature('sae', 3)}@2:"], **options)
    assert [str(edit.where) for edit in two] == ["0", "2:"]
    with pytest.raises(EditError, match="names the positions -1 and also 2"):
        make(LM, None, f"{feature('sae', 3)}@-1", where="2", **options)


def test_positions_make_no_difference_to_sizes():
    placed = f"{feature('sae', 3)}@-1"
    assert largest_activations(LM, TEXTS, placed, ALL) == largest_activations(LM, TEXTS, feature("sae", 3), ALL)
    (one,), (other,) = (add_feature(LM, TEXTS, site, dictionaries=ALL) for site in (placed, feature("sae", 3)))
    np.testing.assert_array_equal(one.value, other.value)


@pytest.mark.parametrize("prompts", [IDS, RAGGED])
def test_adding_needs_no_dictionary_and_adds_the_direction(prompts):
    made = add_feature(LM, TEXTS, feature("sae", 3), dictionaries=ALL, strength=0.5)
    size = largest_activations(LM, TEXTS, feature("sae", 3), ALL)[Site.parse(feature("sae", 3))]
    wanted = state(prompts=prompts) + 0.5 * size * SAE.back[3]
    found = LM.run(prompts, SITE, edit=made)[SITE]
    real = LM.prompts(prompts).mask.bool()
    assert off(found[real], wanted[real]) < 1e-6
    assert torch.equal(LM.run(prompts, edit=0 * made).logits, LM.run(prompts).logits)


def test_sizes_may_be_given_or_found_on_a_task():
    (edit,) = add_feature(LM, None, feature("id", 4), dictionaries=ALL, max_act=2.5)
    np.testing.assert_array_equal(edit.value, 2.5 * np.eye(32)[4])
    (found,) = add_feature(LM, questions(4), feature("sae", 4), dictionaries=ALL)
    texts = [text for e in questions(4).examples for text in (e.positive, e.negative)]
    size = largest_activations(LM, texts, feature("sae", 4), ALL)[Site.parse(feature("sae", 4))]
    np.testing.assert_allclose(found.value, size * SAE.back[4], rtol=1e-5)


def test_several_features_are_added_together():
    made = add_feature(LM, None, [feature("id", 4, 6)], dictionaries=ALL, max_act=2.0)
    assert len(made) == 2
    moved = state(made) - state()
    assert moved[..., [4, 6]].flatten().tolist() == pytest.approx([2.0] * moved[..., [4, 6]].numel())
    assert float(moved.sum()) == pytest.approx(2.0 * moved[..., 0].numel() * 2)


@pytest.mark.parametrize("level", [0.0, 1.0, -2.0])
def test_a_clamped_feature_stays_where_it_is_put(level):
    """h + (α·max_act − f)·d, and what the dictionary misses stays as it is."""
    plain = state()
    made = clamp_feature(LM, None, feature("sae", 3), dictionaries=ALL, level=level, max_act=1.5)
    f = SAE.encode(plain)[..., 3:4]
    assert off(state(made), plain + (level * 1.5 - f) * SAE.back[3]) < 1e-10
    (edit,) = clamp_feature(LM, None, feature("id", 3), dictionaries=ALL, level=level, max_act=1.5)
    moved = state(edit)
    torch.testing.assert_close(moved[..., 3], torch.full_like(moved[..., 3], level * 1.5))
    others = [i for i in range(32) if i != 3]
    torch.testing.assert_close(moved[..., others], plain[..., others])


def test_half_of_a_clamp_goes_half_of_the_way():
    made = clamp_feature(LM, None, feature("id", 3), dictionaries=ALL, strength=0.5, max_act=2.0)
    torch.testing.assert_close(state(made)[..., 3], 0.5 * state()[..., 3] + 1.0)


def test_taking_out_needs_no_size():
    (edit,) = clamp_feature(LM, None, feature("sae", 3), dictionaries=ALL, level=0)
    assert edit.value == 0.0


def test_the_difference_of_all_channels_is_the_difference_of_means():
    task = questions(8)
    (edit,) = feature_difference(LM, task, f"{SITE}.feature@id", dictionaries=ALL, strength=2.0, where="-1:")
    (wanted,) = difference_of_means(LM, task, SITE, strength=2.0, where="-1:")
    np.testing.assert_allclose(edit.value, wanted.value, atol=1e-6)
    assert edit.with_(value=wanted.value) == wanted


def test_the_difference_of_features_is_decoded():
    task = questions(8)
    (edit,) = feature_difference(LM, task, f"{SITE}.feature@sae", dictionaries=ALL)
    sides = []
    for text in ([e.positive for e in task.examples], [e.negative for e in task.examples]):
        rows = [SAE.encode(LM.run(one, SITE)[SITE])[0, 1:].mean(0) for one in text]
        sides.append(torch.stack(rows).mean(0))
    gap = sides[0] - sides[1]
    np.testing.assert_allclose(edit.value, gap @ SAE.back, atol=1e-5)
    (few,) = feature_difference(LM, task, f"{SITE}.feature@sae", dictionaries=ALL, top=3)
    kept = gap.abs().argsort(descending=True)[:3]
    np.testing.assert_allclose(few.value, gap[kept] @ SAE.back[kept], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: add_feature(LM, TEXTS, SITE, dictionaries=ALL), SiteError, "names no feature"),
        (lambda: add_feature(LM, TEXTS, feature("sae", 99), dictionaries=ALL), SiteError, "out of range"),
        (lambda: add_feature(LM, None, feature("sae", 99), dictionaries=ALL, max_act=1), SiteError, "features 0 to 49"),
        (
            lambda: add_feature(LM, None, feature("no", 1), dictionaries=ALL, max_act=1),
            SiteError,
            "dictionaries: id, sae",
        ),
        (lambda: add_feature(LM, None, feature("sae", 1), dictionaries=ALL), TrimtabError, "or max_act"),
        (lambda: add_feature(LM, None, feature("sae", 1), dictionaries=ALL, max_act=np.inf), TrimtabError, "finite"),
        (lambda: feature_difference(LM, questions(4), SITE, dictionaries=ALL), SiteError, "all features"),
        (
            lambda: feature_difference(LM, questions(4), f"{SITE}.feature@sae", dictionaries=ALL, top=0),
            TrimtabError,
            "at least 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_feature_that_never_fires_has_no_size():
    silent = Sparse()
    silent.into[:, 2] = 0.0
    with pytest.raises(TrimtabError, match=r"never active \(above 0\) on these texts"):
        add_feature(LM, TEXTS, feature("silent", 2), dictionaries={"silent": silent})


def test_a_clamp_without_its_dictionary_says_so():
    made = clamp_feature(LM, None, feature("sae", 3), dictionaries=ALL, level=0)
    with pytest.raises(EditError, match='no dictionary named "sae"'):
        LM.run(IDS, edit=made)


@pytest.mark.parametrize("make", [add_feature, clamp_feature])
def test_they_keep_the_weights_and_the_texts(make):
    task, site = questions(6), feature("id", 3)
    made = [make(LM, texts, site, dictionaries=ALL, max_act=2.0).provenance for texts in (None, TEXTS, TEXTS[:1], task)]
    assert [each.model_hash for each in made] == [LM.hash] * 4
    assert [each.method for each in made] == [make.__name__] * 4
    assert (made[0].data_hash, made[3].data_hash) == (None, task.digest)
    assert len({each.data_hash for each in made}) == 4
    assert [each.options.get("task") for each in made] == [None, None, None, task.name]
    assert all("texts" not in each.options and each.options["max_act"] == 2.0 for each in made)
