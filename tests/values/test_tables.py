import re

import numpy as np

from trimtab.values import Scores


def cells(html):
    return re.findall(r"<td[^>]*>([^<]*)</td>", html)


def test_a_small_map_shows_every_mean():
    array = np.array([[[1.0, -2.0], [np.nan, 0.5]]])
    html = Scores(array, ("example", "layer", "head"), {"layer": (4, 9)}, "L{layer}.head[{head}]")._repr_html_()
    assert cells(html) == ["1", "-2", "–", "0.5"]
    assert "<th>4</th>" in html
    assert "<th>9</th>" in html


def test_one_axis_is_one_column():
    scores = Scores(np.array([[1.0, 2.0]]), ("example", "layer"), {}, "L{layer}.mlp_out", method="dla")
    assert cells(scores._repr_html_()) == ["1", "2"]
    assert "<b>dla</b> 1 example" in scores._repr_html_()


def test_the_strongest_cell_has_the_strongest_colour_and_the_sign_its_own():
    html = Scores(np.array([[1.0, -2.0, 0.0]]), ("example", "layer"), {}, "L{layer}.mlp_out")._repr_html_()
    assert re.findall(r"rgba\(([^)]*)\)", html) == ["214,69,65,0.40", "52,101,164,0.80", "52,101,164,0.00"]


def test_a_large_map_shows_its_strongest_sites():
    array = np.arange(3000.0)[None]
    html = Scores(array, ("example", "neuron"), {}, "L0.neuron[{neuron}]")._repr_html_()
    assert len(cells(html)) == 20
    assert cells(html)[0] == "3e+03"
    assert "L0.neuron[2999]" in html


def test_text_is_escaped():
    html = Scores(np.ones((1, 1)), ("example", "layer"), {}, "L{layer}.mlp_out", method="<script>")._repr_html_()
    assert "<script>" not in html


def test_nothing_to_show():
    for array in (np.full((1, 2), np.nan), np.zeros((1, 0))):
        html = Scores(array, ("example", "layer"), {}, "L{layer}.mlp_out")._repr_html_()
        assert set(cells(html)) <= {"–"}
