import pytest
from hypothesis import given

from tests.values.grammar import sites
from trimtab.values import Site, explain
from trimtab.values.kinds import shape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embed", ("batch", "pos", "d_model")),
        ("L3.resid_pre[4]", ("batch", "pos")),
        ("L3.head", ("batch", "pos", "head", "d_head")),
        ("L3.head[7]", ("batch", "pos", "d_head")),
        ("L3.head[1,7]", ("batch", "pos", "2", "d_head")),
        ("L3.pattern[7]", ("batch", "query", "key")),
        ("L3.neuron[3,17,90]", ("batch", "pos", "3")),
        ("L3.router[1]", ("batch", "pos")),
        ("L3.expert", ("batch", "pos", "expert", "d_model")),
        ("L3.expert[1]", ("batch", "pos", "d_model")),
        ("L3.expert[1].neuron[2]", ("batch", "pos")),
        ("L3.resid_pre.feature@d", ("batch", "pos", "feature")),
        ("L3.resid_pre.feature@d[5]", ("batch", "pos")),
        ("L3.resid_pre.error@d", ("batch", "pos", "d_model")),
        ("L3.expert[1].feature@d[5]", ("batch", "pos")),
        ("logits", ("batch", "pos", "vocab")),
    ],
)
def test_shape(text, expected):
    assert shape(Site.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "L12.head[7]",
            "L12.head[7]: output of head 7 in layer 12 before the output projection (“z”), shape batch pos d_head",
        ),
        ("L5.resid_pre@-1", "at the last prompt position, shape batch pos d_model"),
        ("L5.neuron[1,2,3]", "activation of neurons 1, 2 and 3 in layer 5"),
        ("L5.head", "output of each head in layer 5"),
        ("L5.resid_post[3]", "channel 3 of the residual stream after layer 5"),
        ("L5.resid_post.feature@d[3]", "activation of feature 3 of dictionary “d” on: the residual stream"),
        ("L5.resid_post.error@d", "what dictionary “d” misses of: the residual stream after layer 5"),
        ("L9.head[6].q", "the query that head 6 in layer 9 reads"),
        ("L5.expert[2].neuron", "each neuron of expert 2"),
        ("L5.neuron[0-20]", "neurons 0, 1, 2, 3, 4, 5, 6 and 14 more in layer 5"),
    ],
)
def test_explain(text, expected):
    assert expected in explain(Site.parse(text))


@given(sites())
def test_every_site_can_be_explained(site):
    text = explain(site)
    assert text.startswith(f"{site}: ")
    assert text.endswith("shape " + " ".join(shape(site)))
    assert "{" not in text.replace("tokens{", "")
    assert "None" not in text
