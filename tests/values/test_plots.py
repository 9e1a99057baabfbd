"""Which drawing fits which axes, and that it shows the means of the scores."""

import re

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.values import Scores
from trimtab.values.plots import MOST_MAPS, OUTLINED, RANKED, parted, pattern

R = np.random.default_rng(0)
SPANS = ("S1", "S2", "end")


def scores(shape, dims, site, **fields):
    return Scores(R.normal(size=(5, *shape)), ("example", *dims), site=site, **{"coords": {}, "unit": "nats", **fields})


def heads(spans=SPANS, layers=4):
    return scores(
        (layers, 3, len(spans)), ("layer", "head", "span"), "L{layer}.head[{head}]@{span}", coords={"span": spans}
    )


def kinds(figure):
    return [re.search(r'class="chart (\w+)', d.svg)[1] for d in figure.drawings]


def said(figure):
    return " ".join(re.findall(r"<title>([^<]*)</title>", " ".join(d.svg for d in figure.drawings)))


def test_two_axes_make_a_map_with_every_mean():
    s = scores((4, 3), ("layer", "span"), "L{layer}.resid_post@{span}", coords={"span": SPANS})
    figure = s.plot()
    assert kinds(figure) == ["map"]
    for site, value in zip(s.sites(), s.mean().ravel(), strict=True):
        shown = re.search(rf"{re.escape(str(site))}: ([+−][\d.]+)", said(figure))[1].replace("−", "-")
        assert float(shown) == pytest.approx(value, rel=0.01)


def test_layers_go_upwards_whichever_axis_they_are():
    s = scores((3, 4), ("span", "layer"), "L{layer}.resid_post@{span}", coords={"span": SPANS})
    other = Scores(s.array.swapaxes(1, 2), ("example", "layer", "span"), s.coords, s.site, unit="nats")
    assert s.plot().drawings[0].svg.replace("span and layer", "") == other.plot().drawings[0].svg.replace(
        "span and layer", ""
    )


def test_a_map_for_each_span_in_one_scale():
    figure = heads().plot()
    assert kinds(figure) == ["map"] * 3
    assert [d.title for d in figure.drawings] == [f"L*.head[*]@{span}" for span in SPANS]
    ends = [re.findall(r">([+−][\d.]+)</text>", d.svg) for d in figure.drawings]
    assert ends[0] == ends[1] == ends[2]
    assert sum(d.svg.count('class="frame"') for d in figure.drawings) == OUTLINED
    assert [p.site for p in parted(heads(("end",)))] == ["L{layer}.head[{head}]@end"]


def test_too_many_maps_are_the_strongest_instead():
    figure = heads(tuple(f"s{i}" for i in range(MOST_MAPS + 1))).plot()
    assert kinds(figure) == ["bars"]
    assert f"The {RANKED} strongest" in figure.drawings[0].title


def test_layers_alone_make_a_line_with_intervals():
    s = scores((6,), ("layer",), "L{layer}.mlp_out@end")
    figure = s.plot()
    assert kinds(figure) == ["curves"]
    assert figure.drawings[0].svg.count('class="spread s0"') == 6
    assert kinds(s.plot("bars")) == ["bars"]


def test_lines_of_a_map_on_request():
    s = scores((6, 3), ("layer", "span"), "L{layer}.resid_post@{span}", coords={"span": SPANS})
    svg = s.plot("lines").drawings[0].svg
    assert all(f">{span}</text>" in svg for span in SPANS)
    low = s.interval().low[5, 2]
    assert f"end, layer 5: nats {s.mean()[5, 2]:+.2f}".replace("-", "−") in svg
    assert f"[{low:.2f}".replace("-", "−") in svg


def test_candidates_are_ranked():
    names = ("L3.head[1]@end", "embed@S1", "L0.mlp_out")
    s = Scores(np.array([[0.5, -2.0, np.nan]]), ("example", "site"), {"site": names}, "{site}")
    figure = s.plot()
    assert kinds(figure) == ["bars"]
    assert re.findall(r"<title>(\S+):", figure.drawings[0].svg) == ["embed@S1", "L3.head[1]@end"]
    assert pattern(s) == "3 sites"


def test_more_than_can_be_seen_is_its_spread_and_the_strongest():
    s = scores((10, 700), ("layer", "neuron"), "L{layer}.neuron[{neuron}]")
    figure = s.plot()
    assert kinds(figure) == ["ranges", "bars"]
    best = str(s.top(1)[0])
    assert all(best in d.svg for d in figure.drawings)
    assert "strongest of 7,000" in figure.drawings[1].title


def test_edges_have_a_map_for_each_receiver():
    s = scores(
        (4, 3, 2),
        ("layer", "head", "receiver"),
        "L{layer}.head[{head}]->{receiver}",
        coords={"receiver": ("L9.head[6].q", "logits")},
    )
    assert [d.title for d in s.plot().drawings] == ["L*.head[*]->L9.head[6].q", "L*.head[*]->logits"]


def test_the_lowest_are_framed_where_they_are_the_strongest():
    low = scores((4, 3), ("layer", "head"), "L{layer}.head[{head}]", order="low")
    svg = low.plot().drawings[0].svg
    box = r'<rect (x="[\d.]+" y="[\d.]+") width="[\d.]+" height="[\d.]+" '
    cells = dict(re.findall(rf'{box}class="d\d+"><title>(\S+): ', svg))
    framed = {cells[at] for at in re.findall(rf'{box}class="frame"', svg)}
    assert framed == set(map(str, low.top(OUTLINED)))
    assert framed != set(map(str, low.top(OUTLINED, by="abs")))
    assert "the lowest are the strongest" in low.plot().caption
    sure = low.with_(array=np.abs(low.array) * np.arange(3))  # three cells of entropy 0: the best there is
    assert sure.plot().drawings[0].svg.count('class="frame"') == OUTLINED
    assert low.with_(array=sure.array * 0, order="abs").plot().drawings[0].svg.count('class="frame"') == 0


def test_the_caption_says_what_the_numbers_are():
    s = heads().with_(direction="denoise", method="patching")
    assert s.plot().caption == "Mean of 5 examples, in nats; clean values put into the corrupt run."
    assert s.plot().title == "patching: L*.head[*]@*"


def test_scores_without_a_value_and_unknown_kinds():
    empty = Scores(np.full((1, 4, 3), np.nan), ("example", "layer", "head"), {}, "L{layer}.head[{head}]")
    assert empty.plot().drawings[0].caption == "No place here has a value."
    assert empty.plot().svg
    single = Scores(np.ones((3,)), ("example",), {}, "final")
    assert kinds(single.plot()) == ["bars"]
    with pytest.raises(TrimtabError, match='kind is "map", "lines", "bars" or None'):
        heads().plot("mop")
