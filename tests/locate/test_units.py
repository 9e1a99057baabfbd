"""The addresses that a selection becomes, and the axes that effects are laid out along."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import lm_of
from trimtab.errors import SiteError
from trimtab.locate.units import default_spans, places
from trimtab.values.site import Site

LM = lm_of("llama", torch.float64)


def made(sites, spans=None, mapped="all", **options):
    return places(LM, sites, spans, mapped=mapped, **options)


@pytest.mark.parametrize(
    ("sites", "dims", "template", "size"),
    [
        ("L*.resid_post", ("example", "layer", "span"), "L{layer}.resid_post@{span}", 4),
        ("L*.head", ("example", "layer", "head", "span"), "L{layer}.head[{head}]@{span}", 16),
        ("L*.k", ("example", "layer", "head", "span"), "L{layer}.k[{head}]@{span}", 8),
        ("L1.neuron", ("example", "layer", "neuron", "span"), "L{layer}.neuron[{neuron}]@{span}", 80),
        ("embed", ("example", "span"), "embed@{span}", 2),
    ],
)
def test_maps(sites, dims, template, size):
    where = made(sites, ["all", "last"])
    assert (where.dims, where.site) == (dims, template)
    assert len(where.sites) == size
    values = np.arange(3 * size).reshape(3, size).astype(float)
    scores = where.scores(values, LM, twins(3), LM.prompts("w5 w6"), "method", "unit", {})
    assert list(scores.sites()) == where.sites
    assert scores.top(1) == [where.sites[-1]]


def test_arrays_are_in_the_order_of_the_sites():
    where = made("L*.head", ["all", "last"])
    columns = [
        np.array([[100 * (b.layer or 0) + 10 * u + (b.at.kind == "index") for u in range(4)]]) for b in where.blocks
    ]
    flat = where.array(columns)[0].ravel()
    assert flat.tolist() == [100 * s.layer + 10 * s.index[0] + (s.at.kind == "index") for s in where.sites]


def test_candidates_keep_their_names_and_top_finds_them():
    names = ["L1.head[3]", "L0.mlp_out@-1", "L0.neuron[3,17]", "L1.resid_post@subject"]
    where = made(names)
    assert where.coords["site"] == tuple(names)
    assert [str(site) for site in where.sites] == ["L1.head[3]@all", *names[1:2], "L0.neuron[3,17]@all", names[3]]
    scores = where.scores(np.array([[1.0, -4.0, 2.0, 3.0]]), LM, twins(1), LM.prompts("w5"), "m", "u", {})
    assert scores.dims == ("example", "site")
    assert scores.top(2) == [Site.parse("L0.mlp_out@-1"), Site.parse("L1.resid_post@subject")]
    assert list(scores.sites()) == [Site.parse(name) for name in names]


def test_a_list_is_candidates_and_a_text_a_map():
    assert made(["L0.resid_post", "L1.resid_post"]).dims == ("example", "site")
    assert made("L0.head[1]").dims == ("example", "site")
    assert made("L*.resid_post@last").coords == {"span": ("-1",), "layer": (0, 1)}


def test_absent_layers_are_absent():
    assert places(lm_of("qwen2_moe"), "L*.neuron", None, mapped="all").coords["layer"] == (0,)


def test_errors_say_what_to_do():
    with pytest.raises(SiteError, match="write positions on the sites"):
        made(["L0.head[1]"], ["all", "last"])
    with pytest.raises(SiteError, match="no units"):
        made("L*.pattern")
    with pytest.raises(SiteError, match="name the expert"):
        places(lm_of("qwen2_moe"), "L1.expert", None, mapped="all")
    with pytest.raises(SiteError, match="no dictionary"):
        made("L*.resid_post.feature@sae")


def test_default_spans():
    assert default_spans(twins()) == ("subject", "end")
    assert default_spans(pairs()) == ("text",)
