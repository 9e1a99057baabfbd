"""Noise is Gaussian, and that of a token depends on seed, site, row and position alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.compiling import SEEDS, D, apply, few
from tests.model.tinies import IDS, SIDES, exact, off
from trimtab.values.edit import Edit, Noise


@few
@given(seed=SEEDS, sigma=st.floats(0.1, 10))
def test_noise_is_gaussian_of_its_size_and_in_proportion(seed, sigma):
    x = torch.zeros(2, 7, D, dtype=torch.float64)
    y = apply(Edit("L0.resid_post", "noise", Noise(sigma, seed)), x, IDS)
    assert 0.7 * sigma < float(y.std()) < 1.3 * sigma
    assert float(y.mean().abs()) < 0.3 * sigma
    one = apply(Edit("L0.resid_post", "noise", Noise(1.0, seed)), x, IDS)
    assert off(y, one * sigma) < 1e-12
    assert len(y.unique()) == y.numel()
    other = apply(Edit("L0.resid_post", "noise", Noise(sigma, seed + 1)), x, IDS)
    assert not torch.equal(y, other)
    assert torch.equal(y, apply(Edit("L0.resid_post", "noise", Noise(sigma, seed)), x, IDS))


@few
@given(
    seed=SEEDS,
    n=st.integers(1, 4),
    site=st.sampled_from(["L0.resid_post", "L0.head", "L0.head[2]", "L0.neuron[5]"]),
)
def test_noise_of_a_row_does_not_depend_on_the_rows_after_it(seed, n, site):
    lm = exact("llama")
    edit = Edit(site, "noise", Noise(1.0, seed))
    shape = lm.shape(edit.site)
    x = torch.zeros(n, 7, *shape, dtype=torch.float64)
    many = apply(edit, x, [IDS[0]] * n)
    alone = apply(edit, x[:1], [IDS[0]])
    assert torch.equal(many[:1], alone)
    if n > 1:
        assert not torch.equal(many[0], many[1])


def test_noise_of_each_site_is_its_own():
    """The same seed at two sites, or at a head and at all of them: as if drawn with two seeds."""
    sites = ["L0.resid_post", "L1.resid_post", "L0.mlp_out", "L0.attn_out", "embed"]
    x = torch.zeros(2, 7, D, dtype=torch.float64)
    drawn = torch.stack([apply(Edit(site, "noise", Noise(1.0, 3)), x) for site in sites])
    alike = torch.corrcoef(drawn.flatten(1)) - torch.eye(len(sites), dtype=torch.float64)
    assert float(alike.abs().max()) < 0.2
    heads = apply(Edit("L0.head", "noise", Noise(1.0, 3)), x.view(2, 7, 4, 8))
    one = apply(Edit("L0.head[0]", "noise", Noise(1.0, 3)), x.view(2, 7, 4, 8))
    assert off(heads[:, :, 0], one[:, :, 0]) > 0.1
    two = ["L0.resid_post noise 1 seed 3", "L1.resid_pre noise 1 seed 3"]  # one tensor, two sites
    lm = exact("llama")
    base, run = (lm.run(IDS, "L1.resid_pre", edit)["L1.resid_pre"] for edit in (None, two))
    assert 1.2 < float((run - base).std()) < 1.6  # the root of two; the same noise twice would be 2


@few
@given(seed=SEEDS, cut=st.integers(1, 6))
def test_noise_of_a_position_does_not_depend_on_the_padding(seed, cut):
    edit = Edit("L0.resid_post", "noise", Noise(1.0, seed))
    ids = [IDS[0][:cut], IDS[1]]
    x = torch.zeros(2, 7, D, dtype=torch.float64)
    left, right = (apply(edit, x, ids, padding=side) for side in SIDES)
    assert torch.equal(left[0, 7 - cut :], right[0, :cut])
    assert torch.equal(left[1], right[1])
