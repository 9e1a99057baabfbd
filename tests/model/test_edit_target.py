"""What a type cannot hold is refused, and what it can is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.model.compiling import D, apply, normal
from tests.model.tinies import IDS, lm_of
from trimtab.errors import EditError
from trimtab.values.edit import Bounds, Edit, Noise


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Edit("L0.resid_post", "set", 7e4), r"the value goes up to 70000, and float16, .*, to 65504 only"),
        (Edit("L0.resid_post", "add", np.full(D, -1e6)), "the value goes up to 1e.06"),
        (Edit("L0.resid_post", "scale", 1e5), "the value goes up to 100000"),
        (Edit("L0.resid_post", "add", np.full((2, D), 1e5)), "the value goes up to 100000"),
        (Edit("L0.resid_post", "add", np.full((2, 7, D), 1e5)), "the value goes up to 100000"),
        (Edit("L0.resid_post", "noise", Noise(1e5, 0)), "Noise.sigma goes up to 100000"),
        (Edit("L0.resid_post", "add", 1.0, strength=1e5), "the strength goes up to 100000"),
        (Edit("L0.resid_post", "add", 1.0, strength=(1.0, -7e4)), "the strength goes up to 70000"),
        (Edit("L0.resid_post", "clamp", Bounds(1e5, None)), "a bound goes up to 100000"),
        (Edit("L0.resid_post", "clamp", Bounds(None, -1e5)), "a bound goes up to 100000"),
    ],
    ids=str,
)
def test_what_float16_does_not_hold_is_refused(edit, said):
    with pytest.raises(EditError, match=said):
        lm_of("llama", torch.float16).run(IDS, edit=edit)
    assert torch.isfinite(lm_of("llama", torch.bfloat16).run(IDS, edit=edit).logits).all()


def test_what_it_does_hold_is_not():
    x = normal(0, 2, 7, D).to(torch.float16)
    assert float(apply(Edit("L0.resid_post", "set", 65510.0), x).max()) == 65504  # rounds down to the largest
    assert torch.equal(apply(Edit("L0.resid_post", "clamp", Bounds(-1e6, 1e6)), x), x)
    masked = apply(Edit("L0.scores[1]", "add", -1e9), torch.zeros(2, 7, 4, 7, dtype=torch.float16))
    assert bool((masked[:, :, 1] == -math.inf).all())
    assert not masked[:, :, [0, 2, 3]].any()
