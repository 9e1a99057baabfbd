"""The validation's random directions are read where its candidates are."""

from __future__ import annotations

import numpy as np

from tests.studies.small import counterfactual, study
from trimtab import locate
from trimtab.studies import validate
from trimtab.studies.context import Context
from trimtab.tasks.means import mean_difference
from trimtab.values.edit import Edit, Intervention
from trimtab.values.findings import Candidate
from trimtab.values.site import Site


def test_the_difference_itself_as_a_random_direction_does_what_patching_does(tmp_path, monkeypatch):
    """Clean and corrupt prompts differ in one token, the same in every example: below the first layer the mean
    difference is each example's own, so that adding it is patching, and a control must read the same number."""
    made = study(tmp_path, counterfactual())
    context = Context(made.lm, made.parts, made.settings, lambda what, share: None)
    place, task = Site.parse("L0.resid_pre@1"), made.parts.validation
    difference = mean_difference(made.lm, task, [place]).difference(place)

    def itself(like, shapes, draws, seed):
        (edit,) = like.edits
        np.testing.assert_allclose(np.linalg.norm(edit.value), np.linalg.norm(difference), rtol=1e-5)
        return [Intervention((Edit(edit.site, "add", difference, where=edit.where),))] * draws

    monkeypatch.setattr(validate, "random_directions", itself)
    found = validate._directions(context, [place], patches=True)[place]
    patched = locate.patching(made.lm, task, [place]).array[:, 0]
    assert np.abs(patched).min() > 1e-4
    np.testing.assert_allclose(found, np.tile(patched, (validate.DRAWS, 1)), rtol=1e-4, atol=1e-6)


def test_random_places_work_about_as_often_as_the_page_says():
    """Candidates drawn like their controls do more than the mean of three in a quarter of the cases or so: what is
    proved of a candidate is that it does something, and not that it stands out among places."""
    rng, works = np.random.default_rng(0), []
    groups = tuple(map(str, range(20)))
    for _ in range(300):
        places = rng.normal(size=4)[:, None] + rng.normal(size=(4, 20)) / 3
        candidate = Candidate("L0.resid_post", "resid_post", "by", 1.0, 1)
        works.append(validate._checked(candidate, places[0], places[1:], groups).works)
    assert 0.15 < np.mean(works) < 0.45
    alike = [validate._checked(candidate, noise[0], noise[1:], groups).works for noise in rng.normal(size=(300, 4, 20))]
    assert np.mean(alike) < 0.05
