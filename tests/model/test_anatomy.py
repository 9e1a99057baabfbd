"""Anatomy: sizes, which sites each family has and their shapes, and the message for each address that a model lacks."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.model.tinies import IDS, MOE, close, every_site, exact, fresh, lm_of, off
from tests.tiny import FAMILIES, VOCAB
from trimtab.errors import ModelError, SiteError
from trimtab.model.anatomy import Anatomy, apply_linear, family_of, in_features
from trimtab.values.kinds import shape
from trimtab.values.site import SITES, Site

WIDE = ("llama-bias", "qwen3", "gemma2", "gemma3", "qwen3_moe")
KEY_VALUE_HEADS = dict.fromkeys(("gpt2", "gpt_neox", "gpt_neox-sequential", "opt", "opt-350m"), 4) | {
    "falcon": 1,
    "falcon-40b": 2,
    "falcon-rw": 4,
    "gptj": 4,
    "bloom": 4,
}
NO_ROTARY = ("gpt2", "opt", "opt-350m", "bloom", "falcon-rw")
NO_GATE = (*NO_ROTARY, "gpt_neox", "gpt_neox-sequential", "falcon", "falcon-40b", "gptj")
PARALLEL = ("gpt_neox", "falcon", "falcon-40b", "gptj")
EXPERT_SITES = ("router", "expert", "expert.neuron")
SEPARATE = [f for f, c in FAMILIES.items() if family_of(c()).qkv is None and family_of(c()).q_norm is None]
"""Families with a projection each for queries, keys and values, and no norm after it."""


def absent(family, layer):
    """The names of the sites that this family lacks in this layer."""
    names = {"resid_mid"} if family in PARALLEL else set()
    names |= {"rot_q", "rot_k"} if family in NO_ROTARY else set()
    names |= {"up"} if family in NO_GATE else set()
    mixture = family in MOE and not (family == "qwen2_moe" and layer == 0)
    return names | ({"gate_pre", "up", "neuron"} if mixture else set(EXPERT_SITES))


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family):
    a = lm_of(family).anatomy
    assert (a.n_layers, a.d_model, a.n_heads, a.vocab) == (2, 32, 4, VOCAB)
    assert a.n_kv == KEY_VALUE_HEADS.get(family, 2)
    assert a.d_head == (12 if family in WIDE else 8)
    assert a.tied == (lm_of(family).hf.get_output_embeddings().weight is a.embedding.weight)
    assert repr(a) == (
        f"Anatomy({a.family.name}: 2 layers, 4 heads, {a.n_kv} key-value heads, d_model 32, d_head {a.d_head})"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_that_a_family_has(family):
    a = lm_of(family).anatomy
    layered = {name for name, kind in SITES.items() if kind.layered}
    for layer in (0, 1):
        assert set(a.present(layer)) == layered - absent(family, layer)
        orders = [SITES[name].order for name in a.present(layer)]
        assert orders == sorted(orders)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_that_a_family_lacks_are_refused_with_the_reason(family):
    lm = lm_of(family)
    for name in absent(family, 1):
        site = Site(name, 1, expert=0 if name.startswith("expert") else None)
        with pytest.raises(SiteError, match=r"does not exist here: \w") as caught:
            lm.run(IDS, site)
        assert str(site) in str(caught.value)
        with pytest.raises(SiteError, match=r"does not exist here: \w"):
            lm.run(IDS, edit=f"{site} scale 0")


@pytest.mark.parametrize(
    ("family", "site", "said"),
    [
        ("gptj", "L0.resid_mid", "attention and MLP read the same stream"),
        ("gpt2", "L1.rot_q", "no rotary position embedding"),
        ("mixtral", "L1.neuron", r"mixture of experts: use L1\.expert\[e\]\.neuron"),
        ("llama", "L1.expert[0]", "layer 1 has no experts"),
        ("qwen2_moe", "L0.router", "layer 0 has no experts"),
        ("gpt2", "L1.up", r"no gate: its pre-activation is L1\.gate_pre"),
    ],
)
def test_the_reason_names_what_to_use(family, site, said):
    with pytest.raises(SiteError, match=said):
        lm_of(family).run(IDS, site)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_the_table(family):
    lm = lm_of(family)
    a = lm.anatomy
    run = lm.run(IDS, every_site(lm))
    for site in every_site(lm):
        sizes = {"batch": 2, "pos": 7, "query": 7, "key": 7, "d_model": 32, "vocab": VOCAB, "d_head": a.d_head}
        sizes |= {"head": a.n_kv if site.name in ("k", "v", "rot_k") else 4, "expert": 4}
        sizes["d_attn"] = 4 * a.d_head
        sizes["d_mlp"] = a.blocks[site.layer or 0].d_mlp
        if site.name == "final" and family == "opt-350m":
            sizes["d_model"] = 20
        assert tuple(run[site].shape) == tuple(sizes[axis] for axis in shape(site)), site
        kept = lm.shape(site)
        if site.name not in ("scores", "pattern"):
            assert tuple(run[site].shape[2:]) == kept, site
        else:
            assert kept == (4,)


def test_widths_of_the_mlp():
    for family, width in {"llama": 40, "gpt2": 40, "bloom": 128, "mixtral": 40, "qwen3_moe": 20, "olmoe": 40}.items():
        assert lm_of(family).anatomy.blocks[1].d_mlp == width
    assert [block.d_mlp for block in lm_of("qwen2_moe").anatomy.blocks] == [40, 20]
    assert [block.n_experts for block in lm_of("qwen2_moe").anatomy.blocks] == [0, 4]


class TestAgainstTransformers:
    """The residual stream as transformers itself hands it out."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_hidden_states(self, family):
        lm = exact(family)
        prompts = lm.prompts(IDS)
        with torch.no_grad():
            theirs = lm.call(prompts, output_hidden_states=True).hidden_states
        run = lm.run(prompts, ["embed", "L*.resid_pre", "L*.resid_post", "final"])
        assert torch.equal(run["L0.resid_pre"], theirs[0])
        assert torch.equal(run["embed"], theirs[0])
        assert torch.equal(run["L1.resid_pre"], theirs[1])
        assert torch.equal(run["L0.resid_post"], theirs[1])
        if family != "opt-350m":  # there the last one is projected to the width of the embedding
            last = run["L1.resid_post"] if lm.anatomy.norm is None else run["final"]
            assert torch.equal(last, theirs[2])

    @pytest.mark.parametrize("family", SEPARATE)
    def test_projections(self, family):
        lm = exact(family)
        row = lm.anatomy.family
        run = lm.run(IDS, ["L*.attn_in", "L*.q", "L*.k", "L*.v"])
        for layer, block in enumerate(lm.anatomy.blocks):
            for name in "qkv":
                module = block.module.get_submodule(getattr(row, name))
                with torch.no_grad():
                    theirs = module(run[f"L{layer}.attn_in"])
                close(lm, run[f"L{layer}.{name}"].flatten(2), theirs)


class TestOutOfRange:
    def test_layer(self):
        with pytest.raises(SiteError, match=r"layer 12 .*out of range.*2 layers, 0 to 1"):
            lm_of("llama").run(IDS, "L12.resid_post")
        with pytest.raises(SiteError, match=r"L12\.head\[1\]: layer 12 is out of range; this model has layers 0 to 1"):
            lm_of("llama").run(IDS, edit="L12.head[1] scale 0")

    @pytest.mark.parametrize(
        ("site", "said"),
        [
            ("L0.head[4]", "head 4 is out of range; there are heads 0 to 3"),
            ("L0.head[1,7]", "head 7 is out of range"),
            ("L0.k[2]", "head 2 is out of range; there are heads 0 to 1"),
            ("L0.pattern[4]", "head 4 is out of range"),
            ("L1.neuron[40]", "neuron 40 is out of range; there are neurons 0 to 39"),
            ("L1.resid_post[32]", "channel 32 is out of range; there are channels 0 to 31"),
            ("logits[97]", "channel 97 is out of range; there are channels 0 to 96"),
        ],
    )
    def test_unit(self, site, said):
        for options in ({"read": site}, {"edit": f"{site} scale 0"}):
            with pytest.raises(SiteError, match=said):
                lm_of("llama").run(IDS, **options)

    def test_expert(self):
        lm = lm_of("mixtral")
        with pytest.raises(SiteError, match=r"L1\.expert\[4\]: expert 4 is out of range; layer 1 has experts 0 to 3"):
            lm.run(IDS, "L1.expert[4]")
        with pytest.raises(SiteError, match="neuron 40 is out of range; there are neurons 0 to 39"):
            lm.run(IDS, "L1.expert[0].neuron[40]")
        with pytest.raises(SiteError, match="expert 4 is out of range; there are experts 0 to 3"):
            lm.run(IDS, "L1.router[4]")

    def test_unknown_site_suggests_the_nearest(self):
        with pytest.raises(SiteError, match=r'unknown site "resid_pst".*did you mean "resid_post"'):
            lm_of("llama").run(IDS, "L0.resid_pst")


class TestSelections:
    def test_layers_and_units(self):
        a = lm_of("llama").anatomy
        assert [str(s) for s in a.sites("L*.mlp_out")] == ["L0.mlp_out", "L1.mlp_out"]
        assert [str(s) for s in a.sites("L0-1.k[*]")] == ["L0.k[0]", "L0.k[1]", "L1.k[0]", "L1.k[1]"]
        assert a.sites(Site("embed")) == [Site("embed")]

    def test_absent_ones_are_left_out_where_others_exist(self):
        a = lm_of("qwen2_moe").anatomy
        assert [str(s) for s in a.sites("L*.router")] == ["L1.router"]
        assert [str(s) for s in a.sites("L*.neuron")] == ["L0.neuron"]
        assert [str(s) for s in a.sites("L*.expert[*]")] == [f"L1.expert[{e}]" for e in range(4)]
        assert len(a.sites("L*.expert[*].neuron[*]")) == 4 * 20

    def test_nothing_left(self):
        with pytest.raises(SiteError, match="no such site in this model: layer 0 has no experts"):
            lm_of("llama").anatomy.sites("L*.router")
        with pytest.raises(SiteError, match="same stream"):
            lm_of("gptj").anatomy.sites("L*.resid_mid")


class TestHeadInputs:
    def test_are_the_projections(self):
        a = lm_of("gpt2").anatomy
        assert [a.resolve(Site.parse(f"L1.head[2].{name}")) for name in "qkv"] == [
            Site.parse(f"L1.{name}[2]") for name in "qkv"
        ]
        assert lm_of("llama").anatomy.resolve(Site.parse("L1.head[3].q")) == Site.parse("L1.q[3]")

    @pytest.mark.parametrize(
        ("site", "instead"),
        [
            ("L1.head[3].k", "L1.k[1]"),
            ("L1.head[0].v", "L1.v[0]"),
            ("L1.head[0,1].k", "L1.k[0]"),
            ("L1.head[0,3].k", "L1.k[0,1]"),
            ("L1.head.v", "L1.v[0,1]"),
        ],
    )
    def test_a_shared_key_is_refused_and_the_message_says_what_to_write(self, site, instead):
        with pytest.raises(SiteError, match="2 heads share one key-value head here") as caught:
            lm_of("llama").anatomy.resolve(Site.parse(site))
        assert f"use {instead}," in str(caught.value)
        assert Site.parse(instead)


class TestAliases:
    @pytest.mark.parametrize(
        ("alias", "site"),
        [
            ("blocks.1.hook_resid_pre", "L1.resid_pre"),
            ("blocks.1.attn.hook_z", "L1.head"),
            ("blocks.0.attn.hook_q", "L0.q"),
            ("blocks.0.mlp.hook_post[3]", "L0.neuron[3]"),
            ("blocks.0.attn.hook_pattern[1]", "L0.pattern[1]"),
        ],
    )
    def test_are_read_as_sites(self, alias, site):
        run = lm_of("llama").run(IDS, alias)
        assert list(run) == [Site.parse(site)]
        assert torch.equal(run[alias], lm_of("llama").run(IDS, site)[site])

    @pytest.mark.parametrize(
        ("family", "alias", "said"),
        [
            ("qwen3", "blocks.0.attn.hook_q", "is the query before the QK norm of this model; L0.q is after it"),
            ("olmo2", "blocks.1.attn.k.hook_out", "is the key before the QK norm of this model; L1.k is after it"),
            ("gemma2", "unembed.hook_out", "before the soft cap or scale of this model; logits is after it"),
        ],
    )
    def test_one_that_is_another_tensor_in_this_model_is_refused(self, family, alias, said):
        with pytest.raises(SiteError, match=said):
            lm_of(family).run(IDS, alias)
        with pytest.raises(SiteError, match=said):
            lm_of(family).run(IDS, edit=f"{alias} scale 0")


class TestArchitectures:
    def test_every_family_finds_its_own_row(self):
        for family, config in FAMILIES.items():
            name = family_of(config()).name
            base = {"mistral": "llama", "qwen2": "llama", "llama-bias": "llama", "falcon-40b": "falcon-grouped"}
            assert name == base.get(family, family)

    def test_unsupported(self):
        with pytest.raises(
            ModelError, match=r"architecture 'mamba' is not supported.*supported: bloom, falcon.*one row"
        ):
            family_of(tf.MambaConfig())
        with pytest.raises(ModelError, match=r"'qwen3_next' is not supported \(did you mean \"qwen3_moe\"\?\)"):
            family_of(tf.Qwen3NextConfig())

    def test_unsupported_variant(self):
        config = tf.BloomConfig(apply_residual_connection_post_layernorm=True)
        with pytest.raises(ModelError, match="this variant of bloom is not supported"):
            family_of(config)

    def test_a_part_that_is_missing(self):
        hf = fresh("llama", check=False).hf
        del hf.model.layers[1].mlp.gate_proj
        with pytest.raises(ModelError, match=r"has no part 'mlp\.gate_proj': LlamaMLP has up_proj, down_proj"):
            Anatomy(hf)


class TestLinears:
    def test_widths(self):
        assert in_features(nn.Linear(3, 5)) == in_features(Conv1D(5, 3)) == 3
        with pytest.raises(ModelError, match="expected a linear layer, got LayerNorm"):
            in_features(nn.LayerNorm(3))

    @pytest.mark.parametrize("linear", [nn.Linear(3, 5), nn.Linear(3, 5, bias=False), Conv1D(5, 3)])
    def test_weight_and_bias_by_calling(self, linear):
        linear = linear.double()
        x = torch.randn(4, 3, dtype=torch.float64)
        with torch.no_grad():
            weight, bias = apply_linear(linear, 3, x)
            assert weight.shape == (3, 5)
            assert off(x @ weight + bias, linear(x)) < 1e-12
