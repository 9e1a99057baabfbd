"""LM: what it says of itself, prompts and sites by its own tokenizer and sizes, reading out, and its hash."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.model.tinies import IDS, RAGGED, close, exact, fresh, lm_of, off, untouched
from tests.tiny import FAMILIES, tiny, tokenizer
from trimtab.errors import ModelError, PromptError, SiteError
from trimtab.model.lm import LM
from trimtab.model.prompts import Prompts
from trimtab.model.protocols import Readout, all_logits, log_prob, logit_diff
from trimtab.values.edit import Edit, WeightPatch
from trimtab.values.site import Site


class TestWhatItIs:
    def test_repr(self):
        lm = lm_of("llama")
        assert repr(lm) == (
            "LM(llama: Anatomy(llama: 2 layers, 4 heads, 2 key-value heads, d_model 32, d_head 8), float32 on cpu)"
        )
        assert lm.device == torch.device("cpu")
        assert lm.dtype == torch.float32
        assert lm_of("llama", torch.bfloat16).dtype == torch.bfloat16

    def test_name(self):
        hf = tiny("llama")
        assert LM(hf, tokenizer(), check=False).name == "LlamaForCausalLM"
        hf.config.name_or_path = "someone/their-model"
        assert LM(hf, tokenizer(), check=False).name == "someone/their-model"
        assert LM(hf, tokenizer(), name="mine", check=False).name == "mine"

    def test_the_model_is_the_one_that_was_given(self):
        hf = tiny("gpt2")
        forward = type(hf).forward
        lm = LM(hf, tokenizer())
        assert lm.hf is hf
        assert type(hf).forward is forward
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())

    def test_an_unsupported_architecture(self):
        from transformers import MambaConfig

        hf = AutoModelForCausalLM.from_config(
            MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)
        )
        with pytest.raises(ModelError, match="architecture 'mamba' is not supported"):
            LM(hf, tokenizer())

    def test_heads_wider_than_the_model_and_a_vocabulary_wider_than_the_tokenizer_s(self):
        config = LlamaConfig(
            vocab_size=131,
            hidden_size=24,
            intermediate_size=10,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=10,
        )
        torch.manual_seed(0)
        lm = LM(AutoModelForCausalLM.from_config(config).eval(), tokenizer())
        assert (lm.anatomy.d_head, lm.anatomy.n_layers, lm.anatomy.n_kv) == (10, 3, 3)
        run = lm.run([[3, 4, 5]], ["L2.head", "L1.k", "L0.neuron"])
        assert [tuple(run[s].shape) for s in run] == [(1, 3, 6, 10), (1, 3, 3, 10), (1, 3, 10)]


class TestAddresses:
    def test_prompts(self):
        lm = lm_of("llama")
        prompts = lm.prompts(["w5 w6", "w7"], padding="right")
        assert prompts.ids.tolist() == [[5, 6], [7, 0]]
        assert lm.prompts(prompts) is prompts
        assert lm.prompts("w5").ids.tolist() == [[5]]
        with pytest.raises(PromptError, match="these are Prompts already"):
            lm.prompts(prompts, chat=True)

    def test_sites(self):
        lm = lm_of("llama")
        found = lm.sites(["L*.resid_post", "L1.resid_post", Site("embed"), "L0.head[*]"])
        assert [str(s) for s in found] == [
            "L0.resid_post",
            "L1.resid_post",
            "embed",
            *(f"L0.head[{i}]" for i in range(4)),
        ]
        assert lm.sites("embed") == [Site("embed")]
        assert lm.sites([]) == []

    def test_texts_ids_tensors_and_prompts_are_taken_everywhere(self):
        lm = lm_of("llama")
        expected = lm.run([[5, 6, 7]]).logits
        for text in (
            "w5 w6 w7",
            ["w5 w6 w7"],
            torch.tensor([[5, 6, 7]]),
            np.array([[5, 6, 7]]),
            lm.prompts("w5 w6 w7"),
        ):
            assert torch.equal(lm.run(text).logits, expected)

    def test_more_tokens_than_positions(self):
        """A table of positions ends somewhere; rotary positions and ALiBi go on."""
        rows = [[5] * 65, [6] * 3]
        for family in ("gpt2", "opt"):
            lm = lm_of(family)
            assert lm.positions == 64
            assert lm.run([row[:64] for row in rows]).logits.shape == (2, 64, 97)
            for call in (lm.prompts, lm.run, lambda ids, lm=lm: lm.run(Prompts.of(ids, lm.tokenizer))):
                with pytest.raises(
                    PromptError, match=f"the longest prompt has 65 tokens, and {family} has 64 positions"
                ):
                    call(rows)
        for family in ("llama", "bloom"):
            lm = lm_of(family)
            assert lm.positions is None
            assert torch.isfinite(lm.run(rows).logits).all()

    def test_errors_of_prompts(self):
        with pytest.raises(PromptError, match="row 0 is an empty text"):
            lm_of("llama").run("")
        with pytest.raises(PromptError, match="token id 97"):
            lm_of("llama").run([[97]])


@pytest.mark.parametrize("family", FAMILIES)
class TestReadingOut:
    def test_final_and_unembed_are_the_model_s_own(self, family):
        lm = exact(family)
        run = lm.run(IDS, ["L1.resid_post", "final"])
        with torch.no_grad():
            close(lm, lm.final(run["L1.resid_post"]), run["final"])
            close(lm, lm.unembed(run["final"]), run.logits)

    def test_of_some_tokens_only(self, family):
        lm = exact(family)
        run = lm.run(IDS, "final")
        some = torch.tensor([96, 3, 50])
        each = torch.tensor([[5, 7], [11, 3]])
        with torch.no_grad(), untouched(lm):
            close(lm, lm.unembed(run["final"], some), run.logits[..., some])
            close(lm, lm.unembed(run["final"][:, -1], some), run.logits[:, -1][..., some])
            expected = run.logits.gather(-1, each[:, None].expand(2, 7, 2))
            close(lm, lm.unembed(run["final"], each), expected)


class TestUnembedding:
    def test_a_bias_and_a_soft_cap_are_in_it(self):
        for family in ("gptj", "gemma2"):
            lm = exact(family)
            final = lm.run(IDS, "final")["final"]
            with torch.no_grad():
                bare = final @ lm.anatomy.unembed.weight.T
                assert off(lm.unembed(final), bare) > 1e-3
                assert off(lm.unembed(final, torch.tensor([4])), bare[..., [4]]) > 1e-3
        assert exact("gemma2").run(IDS).logits.abs().max() <= 5

    def test_a_layer_of_another_kind_is_called(self):
        """As quantised ones are: their weight is not read."""
        lm = fresh("gptj", torch.float64, check=False)
        run = lm.run(IDS, "final")
        inner = lm.hf.lm_head

        class Wrapped(torch.nn.Module):
            in_features = inner.in_features
            weight = torch.zeros(97, 32, dtype=torch.int8)

            def forward(self, x):
                return inner(x)

        lm.anatomy.unembed = Wrapped()
        some, each = torch.tensor([96, 3]), torch.tensor([[5, 7], [11, 3]])
        with torch.no_grad():
            close(lm, lm.unembed(run["final"], some), run.logits[..., some])
            close(lm, lm.unembed(run["final"], each), run.logits.gather(-1, each[:, None].expand(2, 7, 2)))


class TestReadouts:
    def values(self, readout, ids=RAGGED):
        return exact("llama").counterfactuals(ids, ["L0.head scale 1"], readout).base

    def test_are_what_they_say(self):
        lm = exact("llama")
        last = lm.run(RAGGED).logits[:, -1]
        close(
            lm, self.values(logit_diff([3, 4], [5, 6])), torch.stack([last[0, 3] - last[0, 5], last[1, 4] - last[1, 6]])
        )
        logp = torch.log_softmax(last, -1)
        close(lm, self.values(log_prob([3, 4])), torch.stack([logp[0, 3], logp[1, 4]]))
        close(lm, self.values(all_logits())[:, 0], last)
        assert self.values(all_logits("-2:")).shape == (2, 2, 97)

    def test_names_and_units(self):
        found = exact("llama").counterfactuals(RAGGED, ["L0.head scale 0"], log_prob([3, 4]))
        assert (found.name, found.unit) == ("log_prob", "nat")

    def test_positions_that_make_no_rectangle(self):
        with pytest.raises(PromptError, match=r"logits reads all, .*5 to 7 tokens in different rows; read one"):
            self.values(all_logits("all"))

    def test_tokens_for_another_number_of_rows(self):
        """One answer for two rows: an error that says so, or that answer for both."""
        lm = exact("llama")
        for exact_ in ("fast", "naive"):
            for readout in (logit_diff([3], [5]), logit_diff([3, 4, 5], [5, 6, 7]), log_prob([3]), log_prob([3, 4, 5])):
                with pytest.raises(ValueError, match=r"2 rows"):
                    lm.counterfactuals(RAGGED, ["L0.head scale 0"], readout, exact=exact_)

    @pytest.mark.parametrize(
        ("answers", "distractors", "said"),
        [
            ("Mary", [5], r"tokens are given by id, one for each row, got 'Mary'; lm\.token\(text\) gives"),
            ([3], [" John"], r"tokens are given by id, .*got \[' John'\]"),
            (
                [[3, 4]],
                [[5, 6]],
                r"one token id, 0 or more, is needed for each row, got \[\[3, 4\]\]; a word of several",
            ),
            ([3.0], [5], r"one token id, .*got \[3\.0\]"),
            ([3, -1], [5, 6], r"one token id, 0 or more, .*got \[3, -1\]"),
            ([3, 4], [5], r"answers and distractors must be as many, got \[2, 1\]"),
        ],
        ids=str,
    )
    def test_tokens_that_are_none(self, answers, distractors, said):
        with pytest.raises(PromptError, match=said):
            logit_diff(answers, distractors)

    def test_tokens_that_the_model_lacks(self):
        for call in (exact("llama").counterfactuals, exact("llama").plan):
            with pytest.raises(PromptError, match="logit_diff reads token 97; this model has tokens 0 to 96"):
                call(RAGGED, ["L0.head scale 0"], logit_diff([3, 97], [5, 6]))

    def test_a_function_that_mixes_rows(self):
        lm = exact("llama")
        for exact_ in ("fast", "naive"):
            with pytest.raises(ValueError, match=r"readout must give .* each"):
                lm.counterfactuals(RAGGED, ["L0.head scale 0"], Readout(lambda z, rows: z.sum()), exact=exact_)


class TestHash:
    patch = WeightPatch("model.norm.weight", delta=np.ones(32))

    def test_of_equal_weights_is_equal(self):
        assert lm_of("llama").hash == fresh("llama", check=False).hash
        assert len(lm_of("llama").hash) == 64

    def test_tells_models_types_and_weights_apart(self):
        other = copy.deepcopy(tiny("llama"))
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
        hashes = {
            lm_of("llama").hash,
            lm_of("llama", torch.float64).hash,
            lm_of("qwen2").hash,
            LM(other, tokenizer(), check=False).hash,
            LM(tiny("llama", seed=1), tokenizer(), check=False).hash,
        }
        assert len(hashes) == 5

    def test_is_of_the_model_and_not_of_a_patch_that_is_on(self):
        plain = lm_of("llama").hash
        lm = fresh("llama", check=False)
        with lm.edited(self.patch):
            inside = lm.hash
        assert lm.hash == plain
        assert inside == plain or inside != lm.hash

    def test_is_worked_out_again_when_weights_change(self, monkeypatch):
        lm = fresh("llama", check=False)
        weight = lm.hf.model.layers[1].mlp.up_proj.weight
        kept = {name: tensor.clone() for name, tensor in lm.hf.state_dict().items()}
        hashes = [lm.hash]

        def train(optimizer):
            lm.run(IDS)
            lm.hf(input_ids=torch.tensor(IDS)).logits.sum().backward()
            optimizer.step()
            lm.hf.zero_grad()

        def merge():
            weight.data += 0.01  # as adapters are merged: no version of the tensor tells

        def place():
            lm.hf.model.norm.weight = torch.nn.Parameter(torch.ones(32))

        with torch.no_grad():
            weight[3, 4] += 1e-3
        hashes.append(lm.hash)
        for change in (
            lambda: train(torch.optim.SGD([weight], 0.1)),
            lambda: train(torch.optim.AdamW(lm.hf.parameters())),
            merge,
            place,
        ):
            change()
            hashes.append(lm.hash)
        assert len(set(hashes)) == len(hashes) == 6
        lm.hf.load_state_dict(kept)
        assert lm.hash == hashes[0]
        monkeypatch.setattr("hashlib.sha256", lambda: pytest.fail("nothing changed, and the hash was worked out again"))
        lm.run(IDS)
        assert lm.hash == hashes[0]

    def test_is_the_same_before_and_after_a_block(self):
        lm = fresh("llama", check=False)
        before = lm.hash
        with lm.edited([self.patch, Edit("L0.head", "scale", 0.0)]):
            lm.run(IDS)
        assert lm.hash == before


def test_the_spec_s_typo():
    with pytest.raises(SiteError, match=r'unknown site "heads" in "L0\.heads".*did you mean "head"'):
        lm_of("llama").run(IDS, "L0.heads")
