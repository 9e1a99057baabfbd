import dataclasses
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.errors import SiteError, TrimtabError
from trimtab.values import Edge, Provenance, Scores, Site
from trimtab.values.content import digest_of, encode
from trimtab.values.findings import Estimate
from trimtab.values.ranks import hypergeometric_tail, spearman

EFFECTS = np.array([[[0.0, -4.0, 1.0], [2.0, np.nan, 3.0]], [[0.0, -2.0, 1.0], [4.0, np.nan, -1.0]]])


def make(array=EFFECTS, **fields):
    fields = {
        "dims": ("example", "layer", "head"),
        "coords": {"layer": (3, 7)},
        "site": "L{layer}.head[{head}]@S2",
        "unit": "logits",
        "method": "patching",
        "options": {"window": 1},
        "direction": "denoise",
        **fields,
    }
    return Scores(array, **fields)


def test_mean_leaves_nan_out():
    assert np.array_equal(make().mean(), [[0.0, -3.0, 1.0], [3.0, np.nan, 1.0]], equal_nan=True)


def test_top_by_size_and_by_value():
    scores = make()
    assert [str(site) for site in scores.top(2)] == ["L3.head[1]@S2", "L7.head[0]@S2"]
    assert [str(site) for site in scores.top(2, by="value")] == ["L7.head[0]@S2", "L3.head[2]@S2"]
    assert len(scores.top(100)) == 5
    assert scores.top(0) == []


@given(hnp.arrays(np.float64, (2, 3, 2), elements=st.floats(-9, 9) | st.just(np.nan)), st.integers(0, 7))
def test_top_is_the_largest_and_never_nan(array, k):
    scores = make(array, coords={})
    mean = {str(site): abs(value) for site, value in zip(scores.sites(), scores.mean().ravel(), strict=True)}
    top = [mean[str(site)] for site in scores.top(k)]
    present = sorted((value for value in mean.values() if not math.isnan(value)), reverse=True)
    assert top == present[:k]


def test_site_at_and_its_mistakes():
    scores = make(array=np.zeros((1, 2, 2)), dims=("example", "layer", "span"), coords={"span": ("subject", "end")},
                  site="L{layer}.resid_pre@{span}")  # fmt: skip
    assert scores.site_at(layer=1, span="end") == Site.parse("L1.resid_pre@end")
    with pytest.raises(SiteError, match=r"no span 'subjct' in these scores \(did you mean .subject.\?\)"):
        scores.site_at(layer=1, span="subjct")
    with pytest.raises(SiteError, match="span is missing"):
        scores.site_at(layer=1)
    with pytest.raises(SiteError, match="have no axis head"):
        scores.site_at(layer=1, span="end", head=3)


def test_sites_are_in_the_order_of_the_mean():
    assert [str(site) for site in make().sites()][:4] == [
        "L3.head[0]@S2",
        "L3.head[1]@S2",
        "L3.head[2]@S2",
        "L7.head[0]@S2",
    ]


RECEIVERS = ("L9.head[6].q", "L5.mlp_out@end", "logits")


def edges(array=EFFECTS, **fields) -> Scores[Edge]:
    fields = {
        "dims": ("example", "layer", "receiver"),
        "coords": {"layer": (3, 7), "receiver": RECEIVERS},
        "site": "L{layer}.head[2]@S2->{receiver}",
        **fields,
    }
    return make(array, **fields)


def test_an_address_with_an_arrow_makes_edges(tmp_path):
    scores = edges()
    best = Edge.parse("L3.head[2]@S2->L5.mlp_out@end")
    assert scores.top(1) == [best]
    assert scores.site_at(layer=3, receiver="L5.mlp_out@end") == best
    assert [edge.target for edge in scores.sites()] == [Site.parse(text) for text in RECEIVERS] * 2
    assert [edge.source.layer for edge in scores.sites()] == [3, 3, 3, 7, 7, 7]
    assert scores.mask(2).sum() == 2
    assert scores.to_frame().site[1] == str(best)
    assert scores.compare(scores, k=2).overlap == 1
    assert str(best) in repr(scores)
    scores.save(tmp_path / "edges")
    assert Scores.load(tmp_path / "edges") == scores
    assert Scores.load(tmp_path / "edges").top(1) == [best]


def test_candidates_may_be_edges_too():
    names = ("L0.head[1]->L1.head[0].k", "embed->L1.mlp_out")
    scores = make(np.array([[1.0, -2.0]]), dims=("example", "edge"), coords={"edge": names}, site="{edge}")
    assert scores.top(2) == [Edge.parse(names[1]), Edge.parse(names[0])]


def test_an_address_of_edges_is_checked_too():
    with pytest.raises(SiteError, match='did you mean "mlp_out"'):
        edges(coords={"receiver": ("L1.mlp_ou", "logits", "embed")})
    with pytest.raises(SiteError, match="an edge is two sites"):
        edges(site="L{layer}.head[2]->L4.mlp_out->{receiver}")


def test_mask():
    assert make().mask(2).tolist() == [[False, True, False], [True, False, False]]
    assert make().mask(2, by="value").tolist() == [[False, False, False], [True, False, False]]


def test_the_interval_has_the_shape_of_the_mean_and_holds_it():
    interval = make(np.random.default_rng(0).normal(size=(9, 2, 3))).interval(level=0.9)
    assert interval.low.shape == (2, 3)
    assert interval.level == 0.9
    assert (interval.low < interval.high).all()


def test_the_interval_goes_by_the_groups_of_the_scores_or_by_those_given():
    array = np.random.default_rng(0).normal(size=(4, 1, 1))
    groups = ("a", "a", "b", "b")
    with_groups = make(array, coords={}, groups=groups).interval()
    assert np.array_equal(with_groups.low, make(array, coords={}).interval(groups=groups).low)
    assert not np.array_equal(with_groups.low, make(array, coords={}).interval().low)


def test_intervals_of_few_examples_are_those_that_every_estimate_has():
    for n in (2, 7, 40):
        array = np.random.default_rng(n).normal(size=(n, 2, 2))
        array[0, 0, 0] = np.nan
        interval = make(array, coords={}).interval()
        for cell in np.ndindex(2, 2):
            known = Estimate.of(array[(slice(None), *cell)])
            assert (interval.low[cell], interval.high[cell]) == pytest.approx((known.low, known.high), nan_ok=True)


def test_comparing_scores_with_themselves():
    scores = make(np.random.default_rng(0).normal(size=(2, 3, 4)), coords={})
    same = scores.compare(scores, k=3)
    assert (same.overlap, same.k, same.cells) == (1.0, 3, 12)
    assert same.rank_correlation == pytest.approx(1)
    assert same.p_value == pytest.approx(1 / math.comb(12, 3))
    assert scores.compare(make(-scores.array, coords={}), k=3).rank_correlation == pytest.approx(1)
    assert scores.compare(make(-scores.array, coords={}), k=3, by="value").rank_correlation == pytest.approx(-1)


def test_scores_are_compared_by_label_whatever_their_order():
    array = np.random.default_rng(0).normal(size=(2, 3, 4))
    scores = make(array, coords={"layer": (3, 5, 7)})
    turned = make(
        array[:, ::-1].transpose(0, 2, 1),
        dims=("example", "head", "layer"),
        coords={"layer": (7, 5, 3)},
        method="other",
    )
    assert scores.compare(turned, k=5).rank_correlation == pytest.approx(1)
    assert scores.compare(turned, k=5).overlap == 1
    fewer = make(array[:, 1:, :2], coords={"layer": (5, 7)})
    assert scores.compare(fewer).cells == 4
    assert fewer.compare(scores).rank_correlation == pytest.approx(1)


def test_cells_without_a_value_are_left_out_of_a_comparison():
    assert make().compare(make(np.ones((1, 2, 3)))).cells == 5


def test_scores_that_share_nothing_cannot_be_compared():
    with pytest.raises(TrimtabError, match="no cell in common"):
        make().compare(make(coords={"layer": (0, 1)}))
    other = make(np.zeros((1, 2)), dims=("example", "layer"), site="L{layer}.mlp_out")
    with pytest.raises(TrimtabError, match="only scores over the same axes"):
        make().compare(other)


@pytest.mark.parametrize(("cells", "first", "second"), [(6, 3, 3), (7, 2, 5), (5, 5, 2), (4, 1, 1), (8, 6, 5)])
def test_the_hypergeometric_tail_counts_the_ways(cells, first, second):
    shared = [len(set(choice) & set(range(first))) for choice in combinations(range(cells), second)]
    for common in range(min(first, second) + 2):
        expected = sum(count >= common for count in shared) / len(shared)
        assert hypergeometric_tail(common, cells, first, second) == pytest.approx(expected, abs=1e-12)


def test_the_hypergeometric_tail_of_many_cells():
    exact = sum(math.comb(100, m) * math.comb(45980, 100 - m) for m in range(5, 101)) / math.comb(46080, 100)
    assert hypergeometric_tail(5, 46080, 100, 100) == pytest.approx(exact, rel=1e-6)


def test_spearman_by_hand():
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])) == pytest.approx(0.5)
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert spearman(np.array([0.0, 5.0, 5.0, 9.0]), np.arange(4.0)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))


few = hnp.arrays(np.int64, 6, elements=st.integers(-5, 5))


@given(few, few)
def test_spearman_sees_ranks_only(a, b):
    assert spearman(a, b) == pytest.approx(spearman(np.exp(a), 3 * b + 1), nan_ok=True)
    assert spearman(a, b) == pytest.approx(-spearman(-a, b), nan_ok=True)


def test_to_frame_and_to_xarray_say_the_same():
    frame, array = make().to_frame(), make().to_xarray()
    assert list(frame.columns) == ["example", "layer", "head", "site", "value"]
    assert len(frame) == EFFECTS.size
    for row in frame.itertuples():
        value = array.sel(example=row.example, layer=row.layer, head=row.head).item()
        assert value == row.value or (np.isnan(value) and np.isnan(row.value))
        assert row.site == f"L{row.layer}.head[{row.head}]@S2"
    assert array.attrs["unit"] == "logits"


def test_save_and_load(tmp_path):
    scores = make(groups=("a", 2), provenance=Provenance.now("tiny", seed=3))
    scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    assert again == scores
    assert again.array.tobytes() == scores.array.tobytes()
    for name in ("dims", "coords", "site", "unit", "method", "options", "direction", "groups", "provenance"):
        assert getattr(again, name) == getattr(scores, name)


def test_float32_stays_float32():
    assert make(EFFECTS.astype(np.float32)).array.dtype == np.float32
    assert make(np.zeros((2, 2, 3), dtype=int)).array.dtype == np.float64


def test_scores_are_equal_by_content_and_frozen():
    source = np.zeros((1, 2, 3))
    scores = make(source)
    source[0, 0, 0] = 1
    assert scores == make(np.zeros((1, 2, 3)))
    assert scores != make(source)
    assert scores != make(np.zeros((1, 2, 3)), direction="noise")
    with pytest.raises(ValueError, match="read-only"):
        scores.array[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dims": ("example", "layer")}, "each of the 3 axes"),
        ({"dims": ("layer", "example", "head")}, '"example" first'),
        ({"dims": ("example", "layer", "layer")}, "once"),
        ({"site": "L{layer}.mlp_out"}, "must have each of the axes layer, head in braces.*it has layer"),
        ({"site": "L{layer}.head[{head}]@{span}"}, "and no other"),
        ({"site": "L{layer}.hed[{head}]"}, 'did you mean "head"'),
        ({"coords": {"layer": (3,)}}, r'coords\["layer"\] must have 2 labels, all different, got 1'),
        ({"coords": {"layer": (3, 3)}}, "all different"),
        ({"coords": {"span": ("a",)}}, "has labels for span, which is no axis"),
        ({"direction": "denoised"}, 'direction is "denoise", "noise" or None'),
        ({"groups": ("a",)}, "label each of the 2 examples, got 1"),
        ({"options": {"metric": print}}, "options must be plain values"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(TrimtabError, match=message):
        make(**fields)


def test_scores_of_which_the_lowest_are_best_rank_them_first():
    scores = make(order="low")
    assert [str(site) for site in scores.top(2)] == ["L3.head[1]@S2", "L3.head[0]@S2"]
    assert [str(site) for site in make(order="high").top(1)] == ["L7.head[0]@S2"]
    assert scores.top(2, by="high") == scores.top(2, by="value") == make(order="high").top(2)
    assert scores.top(2, by="abs") == make().top(2)
    assert scores.summary(2)["mean"].tolist() == [-3.0, 0.0]
    assert scores.mask(0.5).tolist() == [[True, True, False], [False, False, False]]
    assert scores.mask(2, by="abs").tolist() == make().mask(2).tolist()
    assert scores.over("head").array[0, 0] == -4.0
    assert scores.over("head").array[0, 1] == 3.0  # means 3 and 1: the lower
    assert "strongest L3.head[1]@S2" in repr(scores)
    assert scores.sel(layer=7).order == "low"


def test_rankings_agree_when_each_is_read_from_its_own_strongest():
    ranks = make(np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]), order="low")
    effects = make(-ranks.array + 10)
    assert ranks.compare(effects).rank_correlation == pytest.approx(1)
    assert ranks.compare(effects, k=2).overlap == 1
    assert ranks.compare(effects, by="high").rank_correlation == pytest.approx(-1)


def test_the_order_is_kept_and_files_from_before_it_load(tmp_path):
    make(order="low").save(tmp_path / "low")
    assert Scores.load(tmp_path / "low") == make(order="low")
    assert make(order="low") != make()
    arrays: dict[str, np.ndarray] = {}
    old = make()
    content = encode(old, arrays)
    assert "order" not in content, "a file of effects is what it was before there was an order"
    fields = {f.name: getattr(old, f.name) for f in dataclasses.fields(old) if f.name != "order"}
    assert old.digest == digest_of({"is": "Scores", **fields})
    assert make(order="low").digest != old.digest
    old.save(tmp_path / "old")
    assert Scores.load(tmp_path / "old").order == "abs"
    with pytest.raises(TrimtabError, match="order is"):
        make(order="value")


@pytest.mark.parametrize("call", [lambda s: s.top(2, by="size"), lambda s: s.top(-1), lambda s: s.top(1.5)])
def test_arguments_that_do_not_fit_are_refused(call):
    with pytest.raises(TrimtabError, match=r"by is|k is how many"):
        call(make())


def test_repr_says_what_and_where():
    text = repr(make())
    assert text == "<Scores patching: 2 examples × 2 layers × 3 heads (denoise, logits), strongest L3.head[1]@S2>"
