"""Linear transport: planted maps are found again, and sides become one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.tinies import questions, twins
from tests.model.tinies import IDS, RAGGED, fresh, lm_of
from tests.tiny import FAMILIES
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.steer.transport import linear_transport, transport_line
from trimtab.tasks.example import Contrast
from trimtab.tasks.means import default_read, pooled
from trimtab.tasks.measure import sides
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit, Intervention
from trimtab.values.scope import Scope
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
RNG = np.random.default_rng(4)
SLOPE, OFFSET = RNG.uniform(0.3, 2.0, 32), RNG.standard_normal(32)
SOURCES, TARGETS = range(40, 46), range(50, 56)


@pytest.fixture(scope="module")
def planted():
    """A model in which each of six tokens is a linear map, entry by entry, of another one, where they are embedded."""
    lm = fresh("llama", torch.float64)
    with torch.no_grad():
        weight = lm.anatomy.embedding.weight
        for source, target in zip(SOURCES, TARGETS, strict=True):
            weight[target] = torch.as_tensor(SLOPE) * weight[source] + torch.as_tensor(OFFSET)
    return lm


def ending():
    heads = [" ".join(f"w{5 + (3 * i + k) % 30}" for k in range(2 + i % 3)) for i in range(6)]
    pairs = zip(heads, TARGETS, SOURCES, strict=True)
    return Task("ending", tuple(Contrast(f"{h} w{p}", f"{h} w{n}", f"g{i % 3}") for i, (h, p, n) in enumerate(pairs)))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_a_rising_line_is_recovered_whatever_the_order(seed, n):
    rng = np.random.default_rng(seed)
    x, slope, offset = rng.standard_normal((n, 4)), rng.uniform(0, 3, 4), rng.standard_normal(4)
    line = transport_line(x, rng.permutation(slope * x + offset))
    np.testing.assert_allclose(line.slope, slope, atol=1e-7)
    np.testing.assert_allclose(line.offset, offset, atol=1e-7)
    np.testing.assert_array_equal(line.seen, [x.min(0), x.max(0)])


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_it_is_the_least_squares_line_through_sorted_values(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((7, 3)) ** 3
    line = transport_line(x, y)
    for i in range(3):
        wanted = np.polyfit(np.sort(x[:, i]), np.sort(y[:, i]), 1)
        assert [line.slope[i], line.offset[i]] == pytest.approx(wanted.tolist())
    np.testing.assert_allclose((line.slope * x + line.offset).mean(0), y.mean(0))
    assert (line.slope >= 0).all()


def test_an_entry_without_spread_is_shifted():
    line = transport_line(np.array([[0.1], [0.1], [0.1]]), np.array([[1.0], [2.0], [6.0]]))
    assert (line.slope[0], line.offset[0]) == pytest.approx((1.0, 2.9))


@pytest.mark.parametrize("site", ["embed", "L0.resid_pre"])
def test_a_planted_map_is_found_and_turns_one_side_into_the_other(planted, site):
    made = linear_transport(planted, ending(), site, read="last", where="-1")
    (edit,) = made
    np.testing.assert_allclose(edit.value.scale, SLOPE, atol=1e-5)
    np.testing.assert_allclose(edit.value.c, OFFSET, atol=1e-5)
    for example in ending().examples:
        steered, wanted = planted.run(example.negative, edit=made).logits, planted.run(example.positive).logits
        torch.testing.assert_close(steered, wanted, atol=1e-4, rtol=0)
        assert (planted.run(example.negative).logits - wanted).abs().max() > 0.1


@pytest.mark.parametrize("prompts", [IDS, RAGGED])
def test_strength_is_the_share_of_the_way(prompts):
    sites = ["L0.resid_post", "L1.head[1]", "L1.neuron[3,8]"]
    whole = linear_transport(LM, questions(8), sites)
    nothing = linear_transport(LM, questions(8), sites, strength=0.0)
    assert torch.equal(LM.run(prompts, edit=nothing).logits, LM.run(prompts).logits)
    plain = LM.run(prompts, "L0.resid_post")["L0.resid_post"]
    half = LM.run(prompts, "L0.resid_post", edit=0.5 * whole)["L0.resid_post"]
    value = whole.edits[0].value
    mapped = plain * torch.tensor(value.scale, dtype=plain.dtype) + torch.tensor(value.c, dtype=plain.dtype)
    real = LM.prompts(prompts).mask.bool()
    torch.testing.assert_close(half[real], (0.5 * plain + 0.5 * mapped)[real])


@pytest.mark.parametrize("sequential", [True, False])
def test_in_order_each_site_reaches_the_other_sides_mean(sequential):
    """The mean over a span is linear, so a map that was estimated on what comes in moves the mean where it should."""
    task, sites = questions(8), ["L0.mlp_out", "L0.resid_post", "L1.resid_mid", "L1.head"]
    made = linear_transport(LM, task, sites, sequential=sequential)
    both = sides(LM, task)
    at = [Site.parse(site).with_(at=Scope.parse("text")) for site in sites]
    wanted = pooled(LM, both.positive, at)
    # all positions of the text but the first are read, and that one is mapped too
    with LM.edited(made):
        found = pooled(LM, both.negative, at)
    first, *later = (np.abs(found[site].mean(0) - wanted[site].mean(0)).max() for site in at)
    assert first < 1e-5
    assert bool(max(later) < 1e-4) is sequential


def test_maps_are_estimated_with_those_before_on():
    task, sites = questions(8), ["L0.resid_post", "L1.resid_post"]
    one, two = linear_transport(LM, task, sites, where="-1:", strength=0.3)
    assert {str(edit.where) for edit in (one, two)} == {"-1:"}
    assert {edit.strength for edit in (one, two)} == {0.3}
    with LM.edited(Edit("L0.resid_post", "affine", one.value)):
        negative = pooled(LM, sides(LM, task).negative, [Site.parse("L1.resid_post@text")])
    positive = pooled(LM, sides(LM, task).positive, [Site.parse("L1.resid_post@text")])
    line = transport_line(*(side[Site.parse("L1.resid_post@text")] for side in (negative, positive)))
    np.testing.assert_allclose(two.value.scale, line.slope, atol=1e-5)
    assert not np.allclose(two.value.scale, linear_transport(LM, task, sites[1]).edits[0].value.scale, atol=1e-3)


def test_outside_the_observed_range_nothing_moves():
    task = questions(6)
    (edit,) = linear_transport(LM, task, "L0.resid_post", support="observed")
    low, high = (torch.tensor(end, dtype=torch.float64) for end in edit.value.within)
    plain, run = (LM.run(IDS, "L0.resid_post", edit=each)["L0.resid_post"] for each in (None, edit))
    inside = (plain >= low) & (plain <= high)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(run[~inside], plain[~inside])
    (free,) = linear_transport(LM, task, "L0.resid_post")
    assert free.value.within is None
    torch.testing.assert_close(run[inside], LM.run(IDS, "L0.resid_post", edit=free)["L0.resid_post"][inside])


def test_heads_are_mapped_one_by_one_and_units_alone():
    task = questions(6)
    every = linear_transport(LM, task, "L1.head")
    some = linear_transport(LM, task, "L1.head[2,0]")
    assert [str(edit.site) for edit in every] == [f"L1.head[{i}]" for i in range(4)]
    assert [str(edit.site) for edit in some] == ["L1.head[2]", "L1.head[0]"]
    assert some.edits[0] == every.edits[2]
    whole, two = linear_transport(LM, task, "L1.neuron"), linear_transport(LM, task, "L1.neuron[8,3]")
    np.testing.assert_array_equal(two.edits[0].value.scale, whole.edits[0].value.scale[[8, 3]])
    assert two.edits[0].value.width == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_both_kinds_of_task(family):
    """The mean of the one side becomes that of the other at every site, in order."""
    lm, names = lm_of(family), ["L0.resid_post", "L1.resid_post"]
    for task in (questions(5), twins(5)):
        made = linear_transport(lm, task, names)
        assert len(made) == 2
        both, scope = sides(lm, task), Scope.parse(default_read(task))
        at = [Site.parse(name).with_(at=scope) for name in names]
        plain, wanted = (pooled(lm, prompts, at) for prompts in (both.negative, both.positive))
        with lm.edited(made):
            found = pooled(lm, both.negative, at)
        for site in at:
            before, after, aim = (each[site].mean(0) for each in (plain, found, wanted))
            assert np.abs(after - aim).max() < 1e-3 * np.abs(before - aim).max(), site


def test_in_bfloat16_the_mean_comes_as_near_as_numbers_there_can():
    """Entries of mean 50 that hardly vary: the slope and the offset are large next to the shift that they make."""
    lm, task = fresh("llama", torch.bfloat16, check=False), questions(12)
    site = Site.parse("L0.resid_post")
    with lm.edited(Edit(site, "add", 50.0)):
        made = linear_transport(lm, task, site)
        slope, offset = made.edits[0].value.scale, made.edits[0].value.c
        x = lm.run(IDS, site)[site]
        y = lm.run(IDS, site, edit=made)[site]
    wanted = x.float() * torch.tensor(slope) + torch.tensor(offset)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, wanted.to(torch.bfloat16))
    half = x * torch.tensor(slope).to(x) + torch.tensor(offset).to(x)
    assert (half.float() - wanted).abs().max() > 2 * (y.float() - wanted).abs().max()


def test_it_is_kept_in_a_file(tmp_path):
    made = linear_transport(LM, questions(6), "L0.resid_post", support="observed")
    made.save(tmp_path / "transport")
    assert Intervention.load(tmp_path / "transport") == made


def test_progress_and_refusals():
    told = []
    linear_transport(LM, questions(6), ["L0.resid_post", "L1.resid_post"], progress=lambda *n: told.append(n))
    assert told == sorted(told)
    assert told[-1] == (18, 18)
    with pytest.raises(TrimtabError, match='support is "everywhere" or "observed"'):
        linear_transport(LM, questions(6), "L0.resid_post", support="seen")
    with pytest.raises(TaskError, match="needs two points"):
        linear_transport(LM, questions(1), "L0.resid_post")
    with pytest.raises(SiteError, match="no units"):
        linear_transport(LM, questions(6), "L0.pattern")
