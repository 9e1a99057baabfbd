"""Shuffled labels choose for themselves: places by their own promise, the best of their proposals, their own sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.studies.small import contrast, counterfactual, study
from trimtab.studies.context import WIDE, Context
from trimtab.studies.shuffled import gradients, shuffled_draws
from trimtab.tasks.measure import measure
from trimtab.values.site import Site


@pytest.fixture(scope="module", params=[contrast, counterfactual])
def context(request, tmp_path_factory):
    made = study(tmp_path_factory.mktemp("runs"), request.param())
    return Context(made.lm, made.parts, made.settings, lambda what, share: None)


def test_draws_are_interventions_of_their_own(context):
    draws = shuffled_draws(context, 6, 1.5, 0.1, seed=0)
    assert len(draws) == 6
    assert len(shuffled_draws(context, 2, 1.5, 0.1, seed=0, vectors=False)) == 2
    assert len({draw.digest for draw in draws}) > 1, "other labels give other interventions"
    assert {draw.digest for draw in shuffled_draws(context, 6, 1.5, 0.1, seed=0)} == {d.digest for d in draws}
    for draw in draws:
        assert {edit.op for edit in draw.edits} in ({"add"}, {"scale"})
        assert {str(edit.where) for edit in draw.edits} <= {*context.settings.scopes, "all"}


def test_a_gradient_is_the_slope_of_the_measured_number(context):
    """Adding a little of a direction at every position changes the number by its product with the gradient."""
    lm, made = context.lm, measure(context.lm, context.parts.train, on="gap")
    site = Site("resid_post", 0)
    slope = gradients(context, [site])[site]
    direction = np.random.default_rng(0).standard_normal(slope.shape)
    step = 1e-2

    def number(strength: float) -> float:
        from trimtab.values.edit import Edit

        edit = Edit(site, "add", direction, strength=strength) if strength else None
        logits = lm.run(made.prompts, edit=edit).logits
        values = made.readout.of(logits[:, -1:], torch.arange(made.prompts.batch))
        return float(made.per_example(values).mean())

    assert (number(step) - number(-step)) / (2 * step) == pytest.approx(float((slope * direction).sum()), rel=0.02)


def test_wide_sites_and_units_are_both_proposed(context):
    from trimtab.studies.shuffled import _proposals
    from trimtab.tasks.means import mean_difference

    means = mean_difference(context.lm, context.parts.train, [f"L*.{kind}" for kind in context.settings.objects])
    slopes = gradients(context, list(means))
    made = _proposals(context, means, slopes, np.ones(len(means)), 1.0, True)
    scalings = _proposals(context, means, slopes, np.ones(len(means)), 1.0, False)
    assert {edit.op for proposal in made for edit in proposal.edits} == {"add"}
    assert {edit.op for proposal in scalings for edit in proposal.edits} == {"scale"}
    kinds = {edit.site.name for proposal in made for edit in proposal.edits}
    assert kinds == {"resid_post", "head", "neuron"}
    wide = [p for p in made if p.edits[0].site.name in WIDE]
    assert len(wide) == context.settings.sites * len(context.settings.scopes)
    best = max(
        (abs(float((slopes[site] * means.difference(site)).sum())), str(site)) for site in means if site.name in WIDE
    )
    assert str(wide[0].edits[0].site) == best[1]
