"""Spreads: quantiles lie where the axis says, rows from the bottom up."""

from __future__ import annotations

import numpy as np
import pytest

from tests.figures.reading import Svg, inside, near, number, on
from trimtab.figures import Range, ranges


def spread(*rows, pointed=()):
    made = [Range(str(i), np.asarray(row, float), tuple(pointed) if i == 0 else ()) for i, row in enumerate(rows)]
    return Svg(ranges(made, about="spread", unit="nats"))


def test_ends_quartiles_and_median_lie_where_the_axis_says():
    svg = spread([-4, -1, 0, 2, 8], pointed=[("L0.neuron[3]", 8.0)])
    axis = svg.axis()
    (reach,), (box,), (median,), (point,) = (svg.all(tag, kind) for tag, kind in
        (("line", "reach"), ("rect", "bar"), ("line", "median"), ("circle", "pointed")))  # fmt: skip
    assert (number(reach, "x1"), number(reach, "x2")) == (near(on(axis, -4)), near(on(axis, 8)))
    assert number(box, "x") == near(on(axis, -1))
    assert number(box, "x") + number(box, "width") == near(on(axis, 2))
    assert number(median, "x1") == near(on(axis, 0))
    assert number(point, "cx") == near(on(axis, 8))
    assert svg.titled("L0.neuron[3]: +8.00")
    assert svg.titled("layer 0: 5 values from −4.00 to 8.00")
    inside(svg)


def test_the_first_row_is_at_the_bottom_and_rows_without_values_say_so():
    svg = spread([0, 1], [np.nan, np.inf], [2, 3])
    low, high = svg.all("line", "reach")
    assert number(low, "y1") > number(high, "y1")
    assert any("no value" in words for words in svg.words())


@pytest.mark.parametrize("n", [1, 30, 200])
def test_any_number_of_rows_stays_inside(n):
    svg = spread(*(np.arange(3.0) * i for i in range(n)))
    inside(svg)
    assert svg.height < 900
