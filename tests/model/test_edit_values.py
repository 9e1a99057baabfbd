"""Numbers and arrays as values: of units, of each row, of each position; and those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.compiling import D, apply, normal
from tests.model.tinies import IDS, exact, lm_of
from trimtab.errors import EditError
from trimtab.values.edit import Affine, Edit, Probe, Rotation


def test_per_head_and_per_unit_values():
    x = normal(0, 2, 7, 4, 8)
    heads = normal(1, 4, 8)
    assert torch.equal(apply(Edit("L0.head", "add", heads), x), x + heads)
    assert torch.equal(apply(Edit("L0.head", "scale", heads[:, :1]), x), x * heads[:, :1])
    y = apply(Edit("L0.head[3,1]", "set", heads[:2]), x)
    assert torch.equal(y[:, :, [3, 1]], heads[:2].expand(2, 7, 2, 8))
    assert torch.equal(y[:, :, [0, 2]], x[:, :, [0, 2]])
    y = apply(Edit("L0.head[2]", "affine", Affine(np.eye(8)[0], -np.eye(8)[0])), x)
    assert not y[:, :, 2, 0].any()
    assert torch.equal(y[:, :, 2, 1:], x[:, :, 2, 1:])
    assert torch.equal(y[:, :, [0, 1, 3]], x[:, :, [0, 1, 3]])


def test_values_of_each_row_and_of_each_position():
    x = normal(0, 2, 7, D)
    rows, full = normal(1, 2, D), normal(2, 2, 7, D)
    assert torch.equal(apply(Edit("L0.resid_post", "add", rows), x), x + rows[:, None])
    assert torch.equal(apply(Edit("L0.resid_post", "add", full), x), x + full)
    assert torch.equal(apply(Edit("L0.resid_post", "add", full[:1]), x), x + full[:1])
    assert torch.equal(apply(Edit("L0.resid_post", "add", full[:, :1]), x), x + full[:, :1])


def test_values_are_computed_as_wide_as_they_can_be():
    lm = lm_of("llama", torch.bfloat16)
    run = lm.run(IDS, "L0.resid_post", Edit("L0.resid_post", "set", np.full(D, 1 / 3)))
    assert run["L0.resid_post"].dtype == torch.bfloat16
    assert bool((run["L0.resid_post"] == torch.tensor(1 / 3, dtype=torch.bfloat16)).all())


@pytest.mark.parametrize(
    ("site", "op", "value", "said"),
    [
        (
            "L0.resid_post",
            "add",
            np.ones(31),
            r"fits L0\.resid_post, \(32\) \(or with batch.*\(2 7 32\)\); got \(31\)",
        ),
        ("L0.resid_post", "set", np.ones((3, 32)), r"got \(3 32\)"),
        ("L0.resid_post", "set", np.ones((2, 6, 32)), r"got \(2 6 32\)"),
        ("L0.head", "scale", np.ones(4), r"fits L0\.head, \(4 8\).*got \(4\)"),
        ("L0.head[1,2]", "scale", np.ones((4, 8)), r"fits L0\.head\[1,2\], \(2 8\).*got \(4 8\)"),
        ("L0.neuron", "add", np.ones(32), r"\(40\).*got \(32\)"),
        ("logits", "add", np.ones(32), r"\(97\).*got \(32\)"),
        (
            "L0.resid_post",
            "affine",
            Affine(np.ones((1, 8)), np.ones((1, 8))),
            "A must have 32 columns.*shape \\(1, 8\\)",
        ),
        ("L0.head", "affine", Affine(c=np.ones(32)), r"c must have 8 columns, the last axis of L0\.head"),
        ("L0.resid_post", "rotate", Rotation(np.eye(8)[0], np.eye(8)[1], 1.0), "b1 must have 32 columns"),
        ("L0.mlp_out", "gradient", Probe(np.ones((2, 8)), np.ones(2), 0, 1.0), "weight must have 32 columns"),
    ],
)
def test_a_value_of_another_shape(site, op, value, said, unchecked):
    with pytest.raises(EditError, match=said):
        exact("llama").run(IDS, edit=Edit(site, op, value))
