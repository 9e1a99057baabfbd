"""Verification: effects are those of exact patching and shift, what is planted works and what is not does not, and the
audit counts what it should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from tests.locate.tinytasks import numbers, pairs, planted, twins
from tests.model.tinies import exact, lm_of
from tests.tiny import FAMILIES, words
from trimtab.errors import PromptError, SiteError, TaskError, TrimtabError
from trimtab.evaluate.verify import check, verify
from trimtab.locate.ablation import ablation
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.audit import audit_scores
from trimtab.locate.gradients import gradient_input
from trimtab.locate.patching import patching
from trimtab.locate.shift import shift
from trimtab.locate.tracing import causal_tracing
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit
from trimtab.values.findings import Candidate
from trimtab.values.scores import Scores
from trimtab.values.site import Site
from trimtab.values.verification import Verification

TWINS, PAIRS = twins(), pairs(8)


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_and_controls_are_those_of_patching(family):
    lm = lm_of(family)
    everything = patching(lm, TWINS, "L*.head", spans="subject")
    found = verify(lm, TWINS, everything, k=2, controls=2, audit=3)
    assert [c.candidate.site for c in found.checks] == [str(site) for site in everything.top(2)]
    exact_ = dict(zip(map(str, everything.sites()), everything.mean().ravel(), strict=True))
    size = max(map(abs, exact_.values()))
    for tested in found.checks:
        assert tested.effect.mean == pytest.approx(exact_[tested.candidate.site], abs=1e-4 * size)
    assert found.audit.sampled == 3
    for site, effect in zip(found.audit.sites, found.audit.effects, strict=True):
        assert effect == pytest.approx(exact_[site], abs=1e-4 * size)
        assert site not in {c.candidate.site for c in found.checks}
    assert found.audit.missed == ()  # the scores are the exact effects: nothing outside them is larger
    assert found.rank_correlation == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["L1.neuron", "L*.resid_post", "L0.k"])
def test_fast_is_naive(direction, site):
    lm = exact("llama", padded=True)
    scores = attribution_patching(lm, TWINS, site, direction=direction)
    made = [verify(lm, TWINS, scores, k=2, audit=2, exact=how) for how in ("fast", "naive")]
    assert made[0].direction == direction
    for a, b in zip(*(m.checks for m in made), strict=True):
        np.testing.assert_allclose([a.effect.mean, a.control.mean], [b.effect.mean, b.control.mean], atol=1e-8)


def test_random_directions_are_as_large_as_what_is_put_there():
    """The stream of one layer has no other units: by hand, one prompt at a time, for the one draw of this seed."""
    lm = exact("llama", padded=True)
    scores = patching(lm, TWINS, ["L0.resid_post@subject"])
    found = verify(lm, TWINS, scores, k=1, controls=1, seed=5)
    both = sides(lm, TWINS)
    v = np.random.default_rng(5).standard_normal((1, 32))[0]
    v /= np.linalg.norm(v)

    def edits(row):
        clean, corrupt = (
            lm.run(side.rows([row], trim=True), "L0.resid_post@subject")["L0.resid_post@subject"] for side in both
        )
        size = float((clean - corrupt).norm())
        return Edit("L0.resid_post@subject", "add", size * v)

    by_hand = numbers(lm, TWINS, edits=edits) - numbers(lm, TWINS)
    assert found.checks[0].control.mean == pytest.approx(abs(by_hand.mean()), rel=1e-4)


def test_contrast_tasks_are_shifted():
    lm = exact("llama", padded=True)
    source = pairs(8, start=60, name="source")
    scores = shift(lm, PAIRS, ["L0.resid_post", "L1.head[2]"], source=source)
    found = verify(lm, PAIRS, scores, source=source, k=2, controls=2)
    assert (found.how, found.direction) == ("shift", None)
    effects = dict(zip(map(str, scores.sites()), scores.mean(), strict=True))
    for tested in found.checks:
        site = tested.candidate.site.removesuffix("@all")
        assert tested.effect.mean == pytest.approx(effects[site], rel=1e-5)
    mapped = verify(lm, TWINS, patching(lm, TWINS, "L*.mlp_out"), method="shift", k=1, controls=1)
    assert mapped.how == "shift"


def traced():
    """Subjects of two tokens in prompts of four, and twins of as many tokens: what tracing and patching both take."""
    examples = []
    for i in range(4):
        clean, corrupt = words(10 + i, 20 + i), words(30 + i, 35 + i)
        text = "w50 {} " + words(60 + i, 70 + i, 80 + i)
        spans = {"subject": clean}, {"subject": corrupt}
        examples.append(
            Counterfactual(text.format(clean), text.format(corrupt), (f"w{3 + i}",), (f"w{9 + i}",), f"g{i}", *spans)
        )
    return Task("traced", tuple(examples))


@pytest.mark.parametrize("site", ["L*.resid_post", "L*.mlp_out"])
def test_causal_tracing_is_tested_at_its_own_spans_and_in_its_own_windows(site):
    lm, task = exact("llama", padded=True), traced()
    scores = causal_tracing(lm, task, site, known="all", samples=2)
    window = scores.options["window"]
    found = verify(lm, task, scores, k=4, controls=2)
    assert found.window == window == (10 if site == "L*.mlp_out" else 1)
    assert ("windows of 10 layers" in str(found)) is (window == 10)
    both = sides(lm, task)
    columns = {"subject_first": 1, "subject_last": 2, "subject_next": 3, "subject_further": 4, "end": 5}
    for tested in found.checks:
        place = Site.parse(tested.candidate.site)
        at, layers = columns[str(place.at)], range(2) if window == 10 else [place.layer]

        def edits(row, at=at, layers=layers, name=place.name):
            run = lm.run(both.positive.rows([row], trim=True), f"L*.{name}")
            return [Edit(f"L{layer}.{name}@{at}", "set", run[f"L{layer}.{name}"][0, at]) for layer in layers]

        by_hand = numbers(lm, task, edits=edits) - numbers(lm, task)
        assert tested.effect.mean == pytest.approx(by_hand.mean(), abs=1e-8)
    naive = verify(lm, task, scores, k=4, controls=2, exact="naive")
    for one, other in zip(found.checks, naive.checks, strict=True):
        assert one.control.mean == pytest.approx(other.control.mean, abs=1e-8)
    if window == 1:
        assert len(audit_scores(lm, task, scores, k=3, sample=2).top.coords["site"]) == 3
    else:
        with pytest.raises(TrimtabError, match=r"windows of 10 layers.*evaluate\.verify"):
            audit_scores(lm, task, scores)


def test_windows_that_scores_claim_of_heads_are_refused():
    scores = attribution_patching(lm_of("llama"), TWINS, "L*.head")
    claimed = scores.with_(options={**scores.options, "window": 10})
    with pytest.raises(SiteError, match="a window of 10 layers is of what whole sublayers give"):
        verify(lm_of("llama"), TWINS, claimed, k=1)


def test_without_twins_of_its_length_tracing_is_tested_by_ablation():
    lm, task = exact("llama", padded=True), traced()
    alone = task.of([e.with_(corrupt=e.corrupt + " w39") for e in task.examples])
    scores = causal_tracing(lm, alone, known="all", samples=1)
    with pytest.raises(PromptError, match='verify with method="ablation"'):
        verify(lm, alone, scores)
    found = verify(lm, alone, scores, method="ablation", k=2, controls=1)
    by_hand = dict(zip(*_by_site(ablation(lm, task, [str(site) for site in scores.top(2)])), strict=True))
    for tested in found.checks:
        assert tested.effect.mean == pytest.approx(by_hand[tested.candidate.site], abs=1e-8)


def test_what_was_computed_on_clean_prompts_is_tested_on_them():
    lm = exact("llama", padded=True)
    noise = dict(zip(*_by_site(patching(lm, TWINS, "L*.head", spans="subject", direction="noise")), strict=True))
    for made in (gradient_input(lm, TWINS, "L*.head", spans="subject"), _ablated(lm, "clean")):
        found = verify(lm, TWINS, made, k=2, controls=1)
        assert found.direction == "noise"
        for tested in found.checks:
            assert tested.effect.mean == pytest.approx(noise[tested.candidate.site], abs=1e-8)
    assert verify(lm, TWINS, _ablated(lm, "corrupt"), k=1, controls=1).direction == "denoise"
    assert verify(lm, TWINS, _ablated(lm, "clean"), k=1, controls=1, direction="denoise").direction == "denoise"


def _ablated(lm, on):
    return ablation(lm, TWINS, "L*.head", spans="subject", on=on)


def _by_site(scores):
    return map(str, scores.sites()), scores.mean().ravel()


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_ablation_tests_ablation_against_units_like_it(on):
    lm = exact("llama", padded=True)
    scores = _ablated(lm, on)
    exact_ = dict(zip(*_by_site(scores), strict=True))
    found = verify(lm, TWINS, scores, method="ablation", k=3, controls=2, audit=2)
    assert (found.how, found.direction) == ("ablation", None)
    for tested in found.checks:
        assert tested.effect.mean == pytest.approx(exact_[tested.candidate.site], abs=1e-8)
    for site, effect in zip(found.audit.sites, found.audit.effects, strict=True):
        assert effect == pytest.approx(exact_[site], abs=1e-8)
    stream = verify(lm, PAIRS, ablation(lm, PAIRS, ["L0.resid_post"]), method="ablation", k=1, controls=2)
    assert stream.checks[0].control.mean >= 0
    with pytest.raises(TrimtabError, match="no direction"):
        verify(lm, TWINS, scores, method="ablation", direction="noise")


def test_what_is_planted_works_and_a_place_where_nothing_is_does_not():
    """Only the patched token tells clean from corrupt: its embedding carries everything, a unit that is nowhere used
    nothing."""
    lm, task = planted(), twins(9)
    sites = ["L0.resid_pre@subject", "L1.neuron[0]@0"]
    scores = Scores(np.ones((9, 2)), ("example", "site"), {"site": tuple(sites)}, "{site}", method="made up")
    found = verify(lm, task, scores, controls=2)
    assert {c.candidate.site: c.works for c in found.checks}["L1.neuron[0]@0"] is False
    assert found.false_positive_fraction >= 0.5
    assert len(found.false_positives) + len(found.working) == found.k == 2
    assert "does no more than its controls" in str(found)


def test_a_check_needs_an_interval_off_zero_and_off_its_controls():
    candidate = Candidate("L0.head[1]", "head", "m", 1.0, 1)
    groups = tuple("abcdef")
    strong, weak = 5 + np.arange(6) / 10, np.array([1.0, -1, 1, -1, 1, -1])
    none = np.zeros((2, 6)) + weak / 10
    assert check(candidate, strong, none, groups).works
    assert check(candidate, -strong, none, groups).works
    assert not check(candidate, weak, none, groups).works
    assert not check(candidate, strong, np.stack([strong, -strong]), groups).works


def test_the_audit_counts_what_is_larger_than_the_last_candidate():
    lm = exact("llama", padded=True)
    everything = patching(lm, TWINS, "L*.head", spans="subject")
    turned = everything.with_(array=1 / (1e-9 + abs(everything.array)))  # the smallest come first
    found = verify(lm, TWINS, turned, k=2, audit=4, seed=1)
    sizes = {str(site): abs(v) for site, v in zip(everything.sites(), everything.mean().ravel(), strict=True)}
    last = min(sizes[c.candidate.site] for c in found.checks)
    assert set(found.audit.missed) == {site for site in found.audit.sites if sizes[site] > last}
    assert found.audit.rest == 6
    m = len(found.audit.missed)
    assert found.audit.fraction == m / 4
    assert found.audit.low == pytest.approx(beta.ppf(0.025, m, 5 - m) if m else 0)
    assert found.audit.high == pytest.approx(1 if m == 4 else beta.ppf(0.975, m + 1, 4 - m))
    whole = verify(lm, TWINS, turned, k=2, audit=100).audit
    assert (whole.sampled, whole.low, whole.high) == (6, whole.fraction, whole.fraction)


def test_controls_are_other_units_of_the_layer_at_the_same_place():
    """Of four heads three are candidates, so the fourth is every control."""
    lm = exact("llama", padded=True)
    everything = patching(lm, TWINS, "L1.head", spans="subject")
    found = verify(lm, TWINS, everything, k=3, controls=3)
    left = abs(everything.mean()[0, :, 0]).min()
    assert [c.control.mean for c in found.checks] == pytest.approx([left] * 3)
    again = verify(
        lm, TWINS, everything, k=4, controls=3
    )  # every head is a candidate: others are controls all the same
    assert again.k == 4


def test_save_and_load(tmp_path):
    lm = lm_of("llama")
    found = verify(lm, TWINS, patching(lm, TWINS, "L*.head", spans="subject"), k=2, audit=2)
    found.save(tmp_path / "v.safetensors")
    again = Verification.load(tmp_path / "v.safetensors")
    assert again == found
    assert str(again) == str(found)
    assert again.sites == found.sites
    assert again.provenance.method == "verify"


def test_errors():
    lm = lm_of("llama")
    scores = patching(lm, TWINS, ["L0.head[1]"])
    with pytest.raises(TaskError, match='method="shift"'):
        verify(lm, PAIRS, scores, method="patching")
    with pytest.raises(TrimtabError, match="method is"):
        verify(lm, TWINS, scores, method="patch")
    with pytest.raises(TrimtabError, match="direction is"):
        verify(lm, TWINS, scores, direction="both")
    with pytest.raises(TrimtabError, match="no direction"):
        verify(lm, PAIRS, scores, direction="noise")
    with pytest.raises(TrimtabError, match="at least 1"):
        verify(lm, TWINS, scores, k=0)
    with pytest.raises(TrimtabError, match="no place with a value"):
        verify(lm, TWINS, scores.with_(array=scores.array * np.nan))
    edges = Scores(np.ones((6, 1)), ("example", "edge"), {"edge": ("L0.head[1]->L1.head[0].q",)}, "{edge}")
    with pytest.raises(TrimtabError, match="of edges"):
        verify(lm, TWINS, edges)
