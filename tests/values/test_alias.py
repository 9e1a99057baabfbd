import re

import pytest

from trimtab.errors import SiteError
from trimtab.values import Selection, Site
from trimtab.values.alias import BLOCK, MODEL, ONLY_WITHOUT, REFUSED_BLOCK, REFUSED_MODEL, check_alias


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.5.hook_resid_pre", "L5.resid_pre"),
        ("blocks.5.hook_resid_mid", "L5.resid_mid"),
        ("blocks.5.hook_resid_post", "L5.resid_post"),
        ("blocks.5.hook_attn_out", "L5.attn_out"),
        ("blocks.5.hook_mlp_out", "L5.mlp_out"),
        ("blocks.5.attn.hook_q", "L5.q"),
        ("blocks.5.attn.hook_k", "L5.k"),
        ("blocks.5.attn.hook_v", "L5.v"),
        ("blocks.5.attn.hook_rot_q", "L5.rot_q"),
        ("blocks.5.attn.hook_rot_k", "L5.rot_k"),
        ("blocks.5.attn.hook_attn_scores", "L5.scores"),
        ("blocks.5.attn.hook_pattern", "L5.pattern"),
        ("blocks.5.attn.hook_z", "L5.head"),
        ("blocks.5.mlp.hook_pre", "L5.gate_pre"),
        ("blocks.5.mlp.hook_pre_linear", "L5.up"),
        ("blocks.5.mlp.hook_post", "L5.neuron"),
        ("blocks.5.hook_in", "L5.resid_pre"),
        ("blocks.5.hook_out", "L5.resid_post"),
        ("blocks.5.attn.hook_in", "L5.attn_in"),
        ("blocks.5.attn.q.hook_out", "L5.q"),
        ("blocks.5.attn.q_norm.hook_out", "L5.q"),
        ("blocks.5.attn.o.hook_in", "L5.head"),
        ("blocks.5.attn.o.hook_out", "L5.attn_raw"),
        ("blocks.5.mlp.hook_in", "L5.mlp_in"),
        ("blocks.5.mlp.gate.hook_out", "L5.gate_pre"),
        ("blocks.5.mlp.out.hook_in", "L5.neuron"),
        ("blocks.5.mlp.out.hook_out", "L5.mlp_raw"),
        ("ln_final.hook_out", "final"),
        ("unembed.hook_out", "logits"),
        ("L5.attn.hook_z", "L5.head"),
        ("blocks.5.attn.hook_z[7]", "L5.head[7]"),
        ("blocks.5.attn.hook_z[7]@subject", "L5.head[7]@subject"),
        ("blocks.5.hook_resid_pre@-1", "L5.resid_pre@-1"),
    ],
)
def test_a_hook_name_is_its_site(hook, site):
    assert Site.parse(hook) == Site.parse(site)


def test_layers_of_hook_names_select():
    assert Selection.parse("blocks.*.hook_resid_pre") == Selection.parse("L*.resid_pre")
    assert Selection.parse("blocks.0-3.attn.hook_z[*]") == Selection.parse("L0-3.head[*]")


@pytest.mark.parametrize("name", sorted(REFUSED_BLOCK))
def test_a_hook_that_is_another_tensor_is_refused_with_what_to_use(name):
    with pytest.raises(SiteError, match=r"is no site: .*; use ") as raised:
        Site.parse(f"blocks.5.{name}")
    for address in re.findall(r"L5\.[\w\[\].]*\w", str(raised.value)):
        assert Site.parse(address).layer == 5
    assert "{" not in str(raised.value)


@pytest.mark.parametrize("name", sorted(REFUSED_MODEL))
def test_a_hook_outside_the_blocks_that_is_another_tensor_is_refused(name):
    with pytest.raises(SiteError, match=r"is no site: .*; use "):
        Site.parse(name)


def test_the_embedding_hook_is_told_about_embed():
    with pytest.raises(SiteError, match=r"it lacks the position embedding.*use embed"):
        Site.parse("hook_embed")


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("attn.hook_z", "needs its layer: write blocks.0.attn.hook_z"),
        ("hook_attn_in", "needs its layer"),
        ("blocks.0.unembed.hook_out", "belongs to no layer: write unembed.hook_out"),
        ("blocks.0.hook_resid_prx", 'did you mean "hook_resid_pre"'),
        ("blocks.0.nonsense", "no hook name of TransformerLens"),
        ("blocks.x.hook_in", "no hook name of TransformerLens"),
    ],
)
def test_other_hook_names_are_refused(hook, message):
    with pytest.raises(SiteError, match=message):
        Site.parse(hook)


def test_no_name_is_both_read_and_refused():
    assert not BLOCK.keys() & REFUSED_BLOCK.keys()
    assert not MODEL.keys() & REFUSED_MODEL.keys()
    assert ONLY_WITHOUT.keys() <= BLOCK.keys() | MODEL.keys()


@pytest.mark.parametrize("hook", ["blocks.2.attn.hook_q", "blocks.2.attn.k.hook_out"])
def test_query_and_key_hooks_are_refused_in_models_that_norm_them(hook):
    site = Selection.parse(hook).expand(4, lambda _: 1)[0].with_(index=(1,))
    check_alias(site, qk_norm=False, logit_cap=True)
    with pytest.raises(SiteError, match=r"before the QK norm of this model; L2.[qk] is after it"):
        check_alias(site, qk_norm=True, logit_cap=False)


def test_the_unembedding_hook_is_refused_in_models_that_cap_logits():
    site = Site.parse("unembed.hook_out")
    check_alias(site, qk_norm=True, logit_cap=False)
    with pytest.raises(SiteError, match="before the soft cap"):
        check_alias(site, qk_norm=False, logit_cap=True)


def test_our_own_names_are_never_refused():
    check_alias(Site.parse("L2.q"), qk_norm=True, logit_cap=True)
    check_alias(Site.parse("blocks.2.attn.hook_v"), qk_norm=True, logit_cap=True)


def test_a_span_or_dictionary_may_be_called_like_a_hook():
    assert Site.parse("L3.resid_pre@hook_x").at.name == "hook_x"
    assert Site.parse("L3.resid_pre.feature@hook_d").dictionary == "hook_d"
