import re

import numpy as np
import pytest

from trimtab.values import Scores
from trimtab.values.findings import Estimate
from trimtab.values.tables import TOP


def cells(html):
    return re.findall(r"<td>(?:<code>)?([^<]*)", html)


def layers(array, **fields):
    return Scores(np.asarray(array), ("example", "layer"), {}, "L{layer}.mlp_out", **fields)


def test_the_summary_is_the_strongest_with_their_intervals():
    array = np.array([[[1.0, -2.0], [np.nan, 0.5]], [[1.5, -3.0], [np.nan, np.nan]]])
    scores = Scores(array, ("example", "layer", "head"), {"layer": (4, 9)}, "L{layer}.head[{head}]")
    table = scores.summary()
    assert list(table.columns) == ["layer", "head", "site", "mean", "low", "high", "n"]
    assert table.site.tolist() == ["L4.head[1]", "L4.head[0]", "L9.head[1]"]
    assert table["mean"].tolist() == [-2.5, 1.25, 0.5]
    assert table.n.tolist() == [2, 2, 1]
    known = Estimate.of(array[:, 0, 1])
    assert (table.low[0], table.high[0]) == pytest.approx((known.low, known.high))
    assert np.isnan(table.low[2])
    assert len(scores.summary(1)) == 1
    assert len(scores.summary(None)) == 3
    assert scores.summary(1, by="value").site.tolist() == ["L4.head[0]"]


def test_its_intervals_are_those_of_interval_and_go_by_group():
    scores = layers(np.random.default_rng(0).normal(size=(6, 3)), groups=("a", "a", "b", "b", "c", "c"))
    interval, table = scores.interval(0.9), scores.summary(level=0.9)
    for row in table.itertuples():
        assert (row.low, row.high) == pytest.approx((interval.low[row.layer], interval.high[row.layer]))


def test_a_notebook_shows_the_figure_and_the_strongest():
    html = layers([[1.0, -2.0, 0.25]] * 2, unit="logits", method="dla")._repr_html_()
    assert html.count("<svg") == 1
    assert cells(html) == [
        "L1.mlp_out", "−2.00", "[−2.00, −2.00]", "L0.mlp_out", "+1.00", "[1.00, 1.00]", "L2.mlp_out", "+0.25",
        "[0.25, 0.25]",
    ]  # fmt: skip
    assert "mean, logits" in html


def test_a_large_map_lists_its_strongest_sites():
    html = Scores(np.arange(3000.0)[None], ("example", "neuron"), {}, "L0.neuron[{neuron}]")._repr_html_()
    assert len(cells(html)) == 3 * TOP
    assert cells(html)[:2] == ["L0.neuron[2999]", "+2,999"]


def test_text_is_escaped():
    scores = Scores(np.ones((1, 1)), ("example", "layer"), {}, "L{layer}.mlp_out", method="<script>", unit="<i>")
    assert "<script>" not in scores._repr_html_()
    assert "<i>" not in scores._repr_html_()


@pytest.mark.parametrize("array", [np.full((1, 2), np.nan), np.zeros((1, 0))])
def test_nothing_to_show(array):
    html = layers(array)._repr_html_()
    assert "no place has a value" in html
    assert "<script" not in html
    assert len(layers(array).summary()) == 0
