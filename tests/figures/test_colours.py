"""The colour scale can be read on every step and in both schemes."""

from __future__ import annotations

import pytest

from trimtab.figures.colours import BINS, DARK, LIGHT, contrast, ink, ramp, ramp_css


@pytest.mark.parametrize("ends", [LIGHT, DARK])
def test_text_stands_out_on_every_step(ends):
    assert all(contrast(colour, ink(colour)) >= 4.5 for colour in ramp(ends))


@pytest.mark.parametrize("ends", [LIGHT, DARK])
def test_steps_go_one_way(ends):
    steps = [contrast(colour, ramp(ends)[0]) for colour in ramp(ends)]
    assert steps == sorted(steps)
    assert ramp(ends)[0] == ends[0]
    assert ramp(ends)[-1] == ends[-1]


def test_black_on_white_is_the_largest_contrast():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


def test_a_class_for_each_step_and_scheme():
    css = ramp_css()
    assert all(css.count(f".b{i} {{") == 2 for i in range(BINS))
