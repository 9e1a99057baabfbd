"""Methods that no study can use are refused by the plan as by the run, before anything is computed."""

from __future__ import annotations

import pytest

from tests.studies.small import contrast, study
from trimtab.errors import StudyError
from trimtab.studies.plan import plan

WRONG = {
    "an unknown screen": ({"screens": ("magnitude_contrst",)}, r'did you mean "magnitude_contrast"'),
    "a screen of paths": ({"screens": ("probe", "path_patching")}, "path_patching scores paths"),
    "an unknown validator": ({"validator": "patchng"}, r'did you mean "patching"'),
    "a validator that scores": ({"validator": "probe"}, "does not intervene"),
    "an unknown steerer": ({"steerers": ("scale", "difference_of_mean")}, r'did you mean "difference_of_means"'),
    "a steerer that is told more": ({"steerers": ("patch",)}, "patch has to be told run"),
}


@pytest.mark.parametrize("do", [plan, lambda made: made.run()], ids=["plan", "run"])
@pytest.mark.parametrize("wrong", WRONG)
def test_refused_before_the_model_is_asked(tmp_path, wrong, do):
    given, expected = WRONG[wrong]
    made = study(tmp_path, contrast(), lm=object(), **given)
    with pytest.raises(StudyError, match=expected):
        do(made)
    assert not list(tmp_path.iterdir()), "no run is left that could not begin"
