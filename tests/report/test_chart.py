"""Line drawings: the axis ends where the numbers do, and points lie inside the frame."""

from __future__ import annotations

import numpy as np

from trimtab.report.chart import BOTTOM, HEIGHT, TOP, log_chart, share_chart


def test_ranks_on_a_logarithmic_axis():
    chart = log_chart("rank", ["L0", "L1", "L2"], np.array([[1000, 10, 1]]), 1000)
    assert [text for _, text in chart["ticks"]] == ["1", "10", "100", "1,000"]
    assert (chart["ticks"][0][0], chart["ticks"][-1][0]) == (TOP, HEIGHT - BOTTOM)
    assert chart["ys"] == [[HEIGHT - BOTTOM, chart["ticks"][1][0], TOP]]
    assert chart["paths"][0].startswith("M")
    assert chart["paths"][0].count("L") == 2


def test_shares_with_one_at_the_top():
    chart = share_chart("probability", ["L0", "L1"], np.array([[0.0, 1.0], [0.5, 2.0]]))
    assert chart["ys"] == [[HEIGHT - BOTTOM, TOP], [(TOP + HEIGHT - BOTTOM) / 2, TOP]]


def test_the_last_layer_is_always_marked_and_not_every_one():
    names = [f"L{i}" for i in range(30)]
    chart = log_chart("rank", names, np.ones((1, 30)), 10)
    assert chart["marks"][-1] == (chart["xs"][-1], "L29")
    assert len(chart["marks"]) == 8
