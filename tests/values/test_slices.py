import numpy as np
import pytest

from trimtab.errors import SiteError, TrimtabError
from trimtab.values import Edge, Scores, Site

ARRAY = np.random.default_rng(0).normal(size=(4, 3, 2, 3))


def make(array=ARRAY, **fields):
    fields = {
        "dims": ("example", "layer", "head", "span"),
        "coords": {"layer": (3, 5, 9), "span": ("S1", "S2", "end")},
        "site": "L{layer}.head[{head}]@{span}",
        "groups": ("a", "a", "b", "b"),
        "unit": "logits",
        **fields,
    }
    return Scores(array, **fields)


def test_a_label_fixes_its_axis_and_goes_into_the_address():
    part = make().sel(layer=5, span="end")
    assert part.site == "L5.head[{head}]@end"
    assert part.dims == ("example", "head")
    assert np.array_equal(part.array, ARRAY[:, 1, :, 2])
    assert part.top(1)[0] in make().sites()
    assert (part.unit, part.groups) == ("logits", ("a", "a", "b", "b"))


def test_every_cell_of_a_part_keeps_its_address():
    scores = make()
    whole = dict(zip(map(str, scores.sites()), scores.mean().ravel(), strict=True))
    for part in (scores.sel(head=1), scores.sel(layer=[9, 3]), scores.sel(layer=slice(5, None), span=["end", "S1"])):
        for site, value in zip(part.sites(), part.mean().ravel(), strict=True):
            assert whole[str(site)] == value


def test_lists_and_slices_keep_the_axis_and_both_ends():
    scores = make()
    assert scores.sel(layer=[9, 3]).coords["layer"] == (9, 3)
    assert scores.sel(layer=slice(3, 5)).coords["layer"] == (3, 5)
    assert scores.sel(layer=slice(None, 3)).coords["layer"] == (3,)
    assert scores.sel(span=["end"]).coords["span"] == ("end",)


def test_examples_are_chosen_with_their_groups():
    part = make().sel(example=[3, 0])
    assert part.groups == ("b", "a")
    assert np.array_equal(part.array, ARRAY[[3, 0]])
    with pytest.raises(TrimtabError, match=r"write sel\(example=\[2\]\)"):
        make().sel(example=2)


def test_over_units_and_spans_by_mean_and_sum():
    scores = make()
    assert scores.over("span", "mean").site == "L{layer}.head[{head}]"
    assert np.allclose(scores.over("span", "mean").array, ARRAY.mean(-1))
    assert scores.over("head", "sum").site == "L{layer}.head@{span}"
    assert np.allclose(scores.over("head", "sum").array, ARRAY.sum(2))
    assert scores.over("head", "sum").over("span").options == {"over": {"head": "sum", "span": "max"}}


def test_the_maximum_is_one_label_for_all_examples():
    best = make().over("span")
    for i in range(3):
        for j in range(2):
            chosen = np.abs(ARRAY[:, i, j].mean(0)).argmax()
            assert np.array_equal(best.array[:, i, j], ARRAY[:, i, j, chosen])


def test_cells_without_a_value_are_left_out():
    array = np.array([[[1.0, np.nan], [np.nan, np.nan]], [[3.0, -9.0], [np.nan, np.nan]]])
    scores = Scores(array, ("example", "layer", "span"), {"span": ("a", "b")}, "L{layer}.mlp_out@{span}")
    assert np.array_equal(scores.over("span", "sum").array, [[1, np.nan], [-6, np.nan]], equal_nan=True)
    assert np.array_equal(scores.over("span", "mean").array, [[1, np.nan], [-3, np.nan]], equal_nan=True)
    assert np.array_equal(scores.over("span", "max").array, [[np.nan, np.nan], [-9, np.nan]], equal_nan=True)


def test_edges_sum_up_to_their_senders():
    scores = Scores(
        ARRAY[:, :, :, 0],
        ("example", "layer", "receiver"),
        {"receiver": ("L20.mlp_out", "logits")},
        "L{layer}.head[1]@end->{receiver}",
    )
    assert scores.over("receiver", "sum").top(1)[0].name == "head"
    assert isinstance(scores.over("receiver", "sum").top(1)[0], Site)
    assert scores.sel(receiver="logits").top(1)[0].target == Site.parse("logits")
    assert isinstance(scores.sel(layer=1).top(1)[0], Edge)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.sel(layer=4), "no layer 4 in these scores.*there are 3, 5, 9"),
        (lambda s: s.sel(spam="end"), r'no axis spam \(did you mean "span"\?\)'),
        (lambda s: s.sel(layer=slice(3, 9, 2)), "no step"),
        (lambda s: s.over("layer"), r"has no meaning without layer: choose labels with sel\(layer=…\)"),
        (lambda s: s.over("example"), "keep every example"),
        (lambda s: s.over("span", "median"), 'how is "max", "mean" or "sum"'),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((SiteError, TrimtabError), match=message):
        call(make())
