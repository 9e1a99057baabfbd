import re

import numpy as np
import pytest
from hypothesis import given

from tests.values.grammar import edges, selections, sites
from trimtab.errors import SiteError
from trimtab.values import SITES, Edge, Scope, Selection, Site


@given(sites())
def test_a_site_reads_back_as_it_is_printed(site):
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)


@given(selections())
def test_a_selection_reads_back_as_it_is_printed(selection):
    assert Selection.parse(str(selection)) == selection


@given(edges)
def test_an_edge_reads_back_as_it_is_printed(edge):
    assert Edge.parse(str(edge)) == edge


@given(sites())
def test_a_site_selects_itself(site):
    selection = Selection.parse(str(site))
    assert selection.single
    assert selection.expand(1000, lambda _: 0) == [site]
    assert Selection.parse(site) == selection


@given(sites())
def test_whole_and_base_are_wider_or_equal(site):
    assert site.whole.index is None
    assert site.whole.at is None
    assert site.base.view is None
    assert site.base.name == site.name
    assert (site.base.index is None) or site.view is None


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("embed", Site("embed")),
        ("logits@-1", Site("logits", at=Scope("index", index=-1))),
        ("L12.resid_pre", Site("resid_pre", 12)),
        ("L12.head[7]", Site("head", 12, (7,))),
        ("L5.neuron[3, 17,90]", Site("neuron", 5, (3, 17, 90))),
        ("L5.head[0-3]", Site("head", 5, (0, 1, 2, 3))),
        ("L9.head[6].q@S2", Site("head", 9, (6,), input="q", at=Scope("span", name="S2"))),
        ("L3.expert[2]", Site("expert", 3, expert=2)),
        ("L3.expert[2].neuron[7]", Site("expert.neuron", 3, (7,), expert=2)),
        (
            "L12.resid_post.feature@name[4411]@subject",
            Site("resid_post", 12, (4411,), view="feature", dictionary="name", at=Scope("span", name="subject")),
        ),
        ("L12.resid_post.error@name", Site("resid_post", 12, view="error", dictionary="name")),
        ("L3.mlp_out.feature@org/sae-16k:v1.2", Site("mlp_out", 3, view="feature", dictionary="org/sae-16k:v1.2")),
    ],
)
def test_each_form(text, site):
    assert Site.parse(text) == site


def test_order_of_units_is_kept():
    assert Site.parse("L5.head[7,2]").index == (7, 2)
    assert Site.parse("L5.head[7,2]") != Site.parse("L5.head[2,7]")


def test_units_become_a_tuple_of_ints():
    assert Site("head", np.int64(3), np.array([1, 2])) == Site("head", 3, (1, 2))
    assert Site("head", 3, 1) == Site("head", 3, (1,))
    assert type(Site("head", np.int64(3)).layer) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L3.resid_pst", r'unknown site "resid_pst" in "L3.resid_pst" \(did you mean "resid_post"\?\)'),
        ("L3.hed[7]", r'did you mean "head"'),
        ("embd", r'did you mean "embed"'),
        ("zebra", r"the sites are embed, resid_pre,"),
        ("resid_pre", r'"resid_pre" needs its layer: write L0.resid_pre, or a selection L\*.resid_pre'),
        ("L3.embed", r'"embed" belongs to no layer: write embed instead of L3.embed'),
        ("L3.logits", r'"logits" belongs to no layer'),
        ("L-1.head", r"layers count from 0 and are never negative"),
        ("l3.head", r'a layer is written with a capital L, as in "L3.head"'),
        ("L3", r'"L3" names a layer and no site in it'),
        ("L.head", r"the layer is missing"),
        ("Lx.head", r'"x" is no layer'),
        ("L3.head[]", r"the brackets are empty"),
        ("L3.head[2,2]", r"names unit 2 twice"),
        ("L3.head[1-3,2]", r"names unit 2 twice"),
        ("L3.head[5-2]", r"the range 5-2 runs backwards; write 2-5"),
        ("L3.head[3-2]", r"the range 3-2 runs backwards; write 2-3"),
        ("L20-10.head", r"the range 20-10 runs backwards; write 10-20"),
        ("L3,3.head", r"names layer 3 twice"),
        ("L3.head[a]", r'"a" is no unit'),
        ("L3.head[-1]", r'"-1" is no unit'),
        ("L3.head[1", r'cannot read "\[1" at the end'),
        ("L3.head[6].x", r'cannot read ".x" at the end'),
        ("L3.resid_post.featur@x", r'did you mean "feature"'),
        ("L3.resid_post.feature@", r'cannot read ".feature@" at the end'),
        ("L3.resid_post[2].feature@x", r"units of a view come after its dictionary"),
        ("L3.resid_pre@", r'the positions of "L3.resid_pre@" cannot be read'),
        ("L3.resid_pre@5:2", r"covers no position"),
        ("L3.resid_pre.q", r"only a head has inputs q, k and v"),
        ("L3.expert[1,2]", r"write one expert, as in L3.expert\[2\]"),
        ("L*.head", r'"L\*.head" names several sites: use Selection.parse'),
        ("L1-2.head", r"names several sites"),
        ("L1.head[*]", r"names several sites"),
        (7, r"a site is written as text, such as .L12.head\[7\]., got 7"),
    ],
)
def test_what_is_no_site_is_refused_with_what_to_do(text, message):
    with pytest.raises(SiteError, match=message):
        Site.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "head"}, "needs its layer"),
        ({"name": "embed", "layer": 0}, "belongs to no layer"),
        ({"name": "head", "layer": -1}, "layer of head must be a whole number from 0 up, got -1"),
        ({"name": "head", "layer": True}, "got True"),
        ({"name": "head", "layer": 1, "index": ()}, "are empty"),
        ({"name": "head", "layer": 1, "index": (2, 2)}, "repeat"),
        ({"name": "head", "layer": 1, "index": (1.5,)}, "got 1.5"),
        ({"name": "head", "layer": 1, "expert": 2}, '"head" has no experts'),
        ({"name": "expert", "layer": 1, "index": (2,)}, r"expert=2"),
        ({"name": "head", "layer": 1, "input": "z"}, "one of q, k, v"),
        ({"name": "q", "layer": 1, "input": "q"}, "only a head has inputs"),
        ({"name": "head", "layer": 1, "dictionary": "d"}, "needs a view"),
        ({"name": "head", "layer": 1, "view": "featre", "dictionary": "d"}, 'did you mean "feature"'),
        ({"name": "head", "layer": 1, "view": "feature"}, "a view names its dictionary"),
        ({"name": "head", "layer": 1, "view": "feature", "dictionary": "a@b"}, "a view names its dictionary"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(SiteError, match=message):
        Site(**fields)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("L0.head", "head"),
        ("L0.pattern", "head"),
        ("L0.neuron", "neuron"),
        ("L0.attn_neuron", "neuron"),
        ("L0.router", "expert"),
        ("L0.resid_pre", "channel"),
        ("L0.head.feature@d", "feature"),
        ("L0.head.error@d", "head"),
    ],
)
def test_the_unit(text, unit):
    assert Site.parse(text).unit == unit


def test_depth_sorts_sites_as_they_are_computed():
    order = ["embed", "L0.resid_pre", "L0.attn_in", "L0.q", "L0.rot_q", "L0.scores", "L0.pattern", "L0.head"]
    order += ["L0.attn_raw", "L0.attn_out", "L0.resid_mid", "L0.mlp_in", "L0.gate_pre", "L0.neuron", "L0.mlp_raw"]
    order += ["L0.mlp_out", "L0.resid_post", "L1.resid_pre", "final", "logits"]
    depths = [Site.parse(text).depth for text in order]
    assert depths == sorted(depths)
    assert len(set(depths)) == len(depths)


def test_every_site_of_the_table_has_its_unit_axis():
    for kind in SITES.values():
        assert kind.unit_axis in kind.axes or kind.name == "expert"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L1-3.resid_pre", ["L1.resid_pre", "L2.resid_pre", "L3.resid_pre"]),
        ("L*.mlp_out@-1", [f"L{layer}.mlp_out@-1" for layer in range(4)]),
        ("L0,3.head[*]", ["L0.head[0]", "L0.head[1]", "L3.head[0]", "L3.head[1]"]),
        ("L5.neuron[3,17,90]".replace("5", "2"), ["L2.neuron[3,17,90]"]),
        ("embed", ["embed"]),
        ("final[*]", ["final[0]", "final[1]"]),
        ("L1.expert[*]", ["L1.expert[0]", "L1.expert[1]"]),
        (
            "L1.expert[*].neuron[*]",
            ["L1.expert[0].neuron[0]", "L1.expert[0].neuron[1]", "L1.expert[1].neuron[0]", "L1.expert[1].neuron[1]"],
        ),
        ("L1.resid_post.feature@d[*]", ["L1.resid_post.feature@d[0]", "L1.resid_post.feature@d[1]"]),
    ],
)
def test_expand(text, expected):
    assert [str(site) for site in Selection.parse(text).expand(4, lambda _: 2)] == expected


def test_expand_asks_for_units_of_each_layer():
    widths = {0: 1, 1: 3}
    found = Selection.parse("L*.head[*]").expand(2, lambda site: widths[site.layer])
    assert [str(site) for site in found] == ["L0.head[0]", "L1.head[0]", "L1.head[1]", "L1.head[2]"]


def test_a_layer_out_of_range_names_the_last_one():
    message = re.escape('layer 30 of "L28-31.head" is out of range: the model has 30 layers, 0 to 29')
    with pytest.raises(SiteError, match=message):
        Selection.parse("L28-31.head").expand(30, lambda _: 1)


@pytest.mark.parametrize("text", ["L3.head", "L3.head->", "L3.head->L4.head->L5.head", None])
def test_what_is_no_edge_is_refused(text):
    with pytest.raises(SiteError):
        Edge.parse(text)


def test_an_edge_takes_text_for_its_ends():
    edge = Edge("L3.head[2]", "L9.head[6].q")
    assert edge == Edge.parse("L3.head[2] -> L9.head[6].q".replace(" ", ""))
    assert edge.target.input == "q"
