"""Typical activations against means made by hand, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.tinies import lm_of
from trimtab.errors import SiteError, TaskError
from trimtab.tasks.typical import from_first, typical
from trimtab.values.scope import Scope
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)
PROMPTS = LM.prompts([[5, 6, 7, 8], [9], [10, 11], [12, 13, 14]]).with_spans(
    subject=((0, 1), (0,), (1,), (0,)), opening=((0,), (0,), (0,), (0,)), gap=((1,), (), (1,), (2,))
)
COVERED = {"all": [[1, 2, 3], [], [1], [1, 2]], "subject": [[1], [], [1], []], "-1": [[3], [], [1], [2]]}
"""What each scope has of tokens that are not the first of their prompt."""


@pytest.mark.parametrize("site", ["L0.mlp_out", "L1.head", "L1.neuron[3,17]"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_means_by_hand(site, batch_size):
    sites = [Site.parse(f"{site}@{at}") for at in COVERED]
    found = typical(LM, PROMPTS, sites, batch_size=batch_size)
    rows = [LM.run(PROMPTS.rows([row], trim=True), site)[site][0].numpy() for row in range(4)]
    for placed, later in zip(sites, COVERED.values(), strict=True):
        own = [row[at].mean(0) for row, at in zip(rows, later, strict=True) if at]
        np.testing.assert_allclose(found.later[placed], np.mean(own, 0), atol=1e-5)
        np.testing.assert_allclose(found.of_later(placed), found.later[placed])
        np.testing.assert_allclose(found.first[placed], np.mean([row[0] for row in rows], 0), atol=1e-5)


def test_where_only_first_tokens_are_covered_there_is_no_other_mean():
    sites = [Site.parse(f"L0.mlp_out@{at}") for at in ("opening", "0", "all")]
    found = typical(LM, PROMPTS, sites)
    assert list(found.later) == sites[2:]
    with pytest.raises(TaskError, match=r'^L0\.mlp_out: .*"opening" covers first ones alone'):
        found.of_later(sites[0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(TaskError, match='"gap" covers no token of'):
        typical(LM, PROMPTS, [Site.parse("L0.mlp_out@gap")])
    with pytest.raises(SiteError, match="a number for each key"):
        typical(LM, PROMPTS, [Site.parse("L0.pattern@all")])


def test_positions_are_counted_from_a_rows_first_token():
    for side in ("left", "right"):
        assert from_first(PROMPTS.pad(side), Scope.parse("-1")) == [[3], [0], [1], [2]]
