"""The identities that prove an anatomy: written out here once more for every family, and shown to refuse wrong rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.tinies import IDS, close, exact, fresh, lm_of
from tests.tiny import FAMILIES, tiny, tokenizer
from trimtab.errors import ModelError
from trimtab.model import anatomy
from trimtab.model.families import ROWS
from trimtab.model.identities import Identity, check_anatomy, identities
from trimtab.model.lm import LM

POST_NORM = "opt-350m"
"""Normalises the whole stream after each sum, so there the sum is normalised before it is compared."""


@pytest.mark.parametrize("family", FAMILIES)
class TestSums:
    def test_the_stream_is_the_sum_of_what_is_added(self, family):
        lm = exact(family)
        a = lm.anatomy
        run = lm.run(IDS, ["embed", "L*.resid_pre", "L*.attn_out", "L*.mlp_out", "L*.resid_post"])
        x = run["embed"]
        for layer, block in enumerate(a.blocks):
            close(lm, run[f"L{layer}.resid_pre"], x)
            with torch.no_grad():
                if family == POST_NORM:
                    x = block.module.self_attn_layer_norm(x + run[f"L{layer}.attn_out"])
                    x = block.module.final_layer_norm(x + run[f"L{layer}.mlp_out"])
                else:
                    x = x + run[f"L{layer}.attn_out"] + run[f"L{layer}.mlp_out"]
        close(lm, x, run["L1.resid_post"])

    def test_the_middle_of_the_block(self, family):
        lm = exact(family)
        if lm.anatomy.family.parallel:
            return  # has no middle: `test_anatomy` holds that the site is refused
        run = lm.run(IDS, ["L*.resid_pre", "L*.attn_out", "L*.resid_mid"])
        for layer, block in enumerate(lm.anatomy.blocks):
            x = run[f"L{layer}.resid_pre"] + run[f"L{layer}.attn_out"]
            with torch.no_grad():
                x = block.module.self_attn_layer_norm(x) if family == POST_NORM else x
            close(lm, run[f"L{layer}.resid_mid"], x)

    def test_heads_through_the_output_projection(self, family):
        lm = exact(family)
        a = lm.anatomy
        run = lm.run(IDS, ["L*.head", "L*.attn_raw"])
        for layer, block in enumerate(a.blocks):
            z = run[f"L{layer}.head"]
            with torch.no_grad():
                bias = block.o(torch.zeros_like(z.flatten(2)[:, :1]))
                total = bias.expand(*z.shape[:2], -1).clone()
                for head in range(a.n_heads):  # one head at a time, the others zero
                    alone = torch.zeros_like(z)
                    alone[:, :, head] = z[:, :, head]
                    total += block.o(alone.flatten(2)) - bias
            close(lm, total, run[f"L{layer}.attn_raw"])

    def test_the_lens_at_the_last_layer_is_the_logits(self, family):
        lm = exact(family)
        run = lm.run(IDS, ["L1.resid_post", "final"])
        with torch.no_grad():
            close(lm, lm.final(run["L1.resid_post"]), run["final"])
            close(lm, lm.unembed(lm.final(run["L1.resid_post"])), run["logits"])


class TestCheck:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_holds(self, family, dtype):
        found = list(identities(lm_of(family, dtype)))
        assert [i for i in found if not i.holds] == []
        assert len(found) >= 20
        assert len({i.name for i in found}) == len(found)

    def test_loads_with_the_check_on(self):
        for family in ("llama", "gpt2", "qwen2_moe"):
            assert check_anatomy(fresh(family, check=True))

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "gpt_neox", "falcon", "falcon-rw", "opt"])
    def test_holds_under_either_attention(self, family, attention):
        assert [i for i in identities(lm_of(family, attention=attention)) if not i.holds] == []

    def test_an_identity_is_an_error_and_a_tolerance(self):
        assert Identity("a", 1e-5, 1e-4).holds
        assert not Identity("a", 1e-3, 1e-4).holds
        assert not Identity("a", float("nan"), 1e-4).holds

    @pytest.mark.parametrize(
        ("family", "wrong", "said"),
        [
            ("llama", {"gate": "mlp.up_proj", "up": "mlp.gate_proj"}, "act(gate_pre) · up = neuron"),
            ("llama", {"mlp_norm": "input_layernorm"}, "resid_pre + attn_out = resid_mid"),
            ("llama-bias", {"k": "self_attn.v_proj", "v": "self_attn.k_proj"}, "pattern · v = head"),
            ("gpt_neox", {"packing": "columns"}, "pattern · v = head"),
            ("gpt2", {"packing": "grouped"}, "pattern · v = head"),
            ("gemma2", {"attn_post": None}, "resid_pre + attn_out = resid_mid"),
            ("gemma2", {"mlp_post": None}, "resid_mid + mlp_out = resid_post"),
            ("olmo2", {"mlp_norm": "post_feedforward_layernorm"}, "resid_pre + attn_out = resid_mid"),
            ("gemma3", {"q_norm": None}, "rot_q at position 0 = q"),
            ("opt", {"norm": None}, "final norm"),
            ("opt-350m", {"project_out": None}, ""),
            ("qwen2_moe", {"shared": None}, "experts sum to mlp_raw"),
            ("falcon-rw", {"down": "mlp.dense_h_to_4h"}, ""),
            ("opt", {"q": "self_attn.k_proj", "k": "self_attn.q_proj"}, ""),  # without rotary only the scores tell
            ("llama", {"parallel": True, "mlp_norm": None}, ""),  # the sum of a block is the same either way
        ],
    )
    def test_a_row_that_does_not_fit_is_refused(self, family, wrong, said, monkeypatch):
        name = anatomy.family_of(FAMILIES[family]()).name
        rows = tuple(replace(row, **wrong) if row.name == name else row for row in ROWS)
        monkeypatch.setattr(anatomy, "ROWS", rows)
        with pytest.raises((ModelError, RuntimeError)) as caught:
            LM(tiny(family), tokenizer(), name="yours")
        if said:
            assert isinstance(caught.value, ModelError)
            assert "yours is laid out otherwise than its architecture" in str(caught.value)
            assert said in str(caught.value)
            assert "off by" in str(caught.value)

    def test_can_be_left_out(self, monkeypatch):
        rows = tuple(replace(row, gate="mlp.up_proj") if row.name == "llama" else row for row in ROWS)
        monkeypatch.setattr(anatomy, "ROWS", rows)
        lm = LM(tiny("llama"), tokenizer(), check=False)
        assert [i.name for i in identities(lm) if not i.holds] == [
            f"L{layer}.act(gate_pre) · up = neuron" for layer in (0, 1)
        ]

    def test_leaves_nothing_behind_when_it_refuses(self, monkeypatch):
        monkeypatch.setattr(anatomy, "ROWS", tuple(replace(row, attn_post=None) for row in ROWS))
        hf = tiny("gemma2")
        with pytest.raises(ModelError):
            LM(hf, tokenizer())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
