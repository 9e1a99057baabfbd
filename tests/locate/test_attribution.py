"""Direct logit attribution: its terms sum to the logit before any soft cap, in every family whose stream is a sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import DENSE, FAMILIES, tiny, tokenizer, words
from trimtab.errors import ModelError, PromptError, SiteError
from trimtab.locate import logit_attribution
from trimtab.model.lm import LM

IDS = [[5, 6, 7, 8, 9], [11, 12, 13]]
# transformers takes RMS norms in float32 whatever the model's type
EXACT = {"gpt2", "gpt_neox", "gpt_neox-sequential", "opt", "falcon", "falcon-40b", "falcon-rw", "gptj", "bloom"}


def model(family, dtype=torch.float32):
    return LM(tiny(family, dtype), tokenizer(), name=family, check=False)


def before_cap(lm, logits):
    cap = lm.anatomy.logit_cap
    return logits if cap is None else cap * np.arctanh(logits / cap)


@pytest.mark.parametrize("parts", ["head", "sublayer"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt-350m"])
def test_terms_sum_to_the_logit_before_the_soft_cap(family, parts):
    lm = model(family, torch.float64 if family in DENSE else torch.float32)
    prompts = lm.prompts(IDS, padding="right")  # rows of pads alone are not finite in some families in float64
    found = logit_attribution(lm, prompts, [20, 21], parts=parts)
    logits = lm.run(prompts).logits[[0, 1], [4, 2], [20, 21]].double().numpy()
    tolerance = 1e-12 if family in EXACT else 3e-6
    np.testing.assert_allclose(found.total, before_cap(lm, logits), atol=tolerance)
    np.testing.assert_allclose(found.values.sum(1), found.total, atol=tolerance)
    np.testing.assert_allclose(found.residual, 0, atol=tolerance)
    many = 4 + 1 + 1 if parts == "head" else 2
    assert found.values.shape == (2, 1 + 2 * many + 2)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon-40b", "bloom"])
def test_heads_and_their_bias_sum_to_attn_out(family):
    lm = model(family)
    heads = logit_attribution(lm, IDS, 20, distractors=30, at="1")
    whole = logit_attribution(lm, IDS, 20, distractors=30, at="1", parts="sublayer")
    for layer in range(2):
        parts = [c for c in heads.components if c.startswith((f"L{layer}.head", f"L{layer}.attn bias"))]
        np.testing.assert_allclose(sum(heads[c] for c in parts), whole[f"L{layer}.attn_out"], atol=1e-5)
        np.testing.assert_allclose(heads[f"L{layer}.mlp_out"], whole[f"L{layer}.mlp_out"], atol=1e-6)


def test_a_term_is_what_the_logit_loses_without_it():
    lm = model("gpt2", torch.float64)
    found = logit_attribution(lm, IDS[:1], 20)
    run = lm.run(IDS[:1], ["L1.resid_post@-1", "L1.head@-1", "L0.attn_out@-1", "embed@-1"])
    norm, unembed = lm.anatomy.norm, lm.anatomy.unembed.weight[20]
    x = run["L1.resid_post@-1"][0]
    scale = (x.var(unbiased=False) + norm.eps).sqrt()

    def direct(part):
        return float(((part - part.mean()) / scale * norm.weight) @ unembed)

    head = run["L1.head@-1"][0, 2] @ lm.anatomy.blocks[1].o.weight.view(4, 8, 32)[2]
    with torch.no_grad():
        np.testing.assert_allclose(found["L1.head[2]"], direct(head))
        np.testing.assert_allclose(found["embed"], direct(run["embed@-1"][0]))
        np.testing.assert_allclose(found["L1.attn bias"], direct(lm.anatomy.blocks[1].o.bias))
        np.testing.assert_allclose(found["norm bias"], float(norm.bias @ unembed))
        assert found["unembedding bias"] == 0


class Int8Linear(nn.Module):
    """A linear layer whose weight is stored in eight bits, as weight-only quantisation does."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = nn.Buffer(linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.weight = nn.Buffer((linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_it_is_exact_under_weights_in_eight_bits():
    hf = tiny("llama-bias")
    hf.lm_head = Int8Linear(hf.lm_head)
    for layer in hf.model.layers:
        layer.self_attn.o_proj = Int8Linear(layer.self_attn.o_proj)
    lm = LM(hf, tokenizer(), check=False)
    found = logit_attribution(lm, IDS, [20, 21])
    np.testing.assert_allclose(found.residual, 0, atol=2e-6)
    np.testing.assert_allclose(found.total, lm.run(IDS).logits[[0, 1], -1, [20, 21]].numpy(), atol=1e-6)


def test_bfloat16_leaves_its_rounding_as_residual():
    found = logit_attribution(model("llama", torch.bfloat16), IDS, 20)
    assert 0 < np.abs(found.residual).max() < 0.2


def test_padding_changes_nothing_and_parameters_get_no_gradient():
    lm = model("llama")
    both = logit_attribution(lm, IDS, [20, 21])
    alone = logit_attribution(lm, IDS[1:], 21)
    np.testing.assert_allclose(both.values[1], alone.values[0], atol=1e-5)
    assert all(p.grad is None for p in lm.hf.parameters())


def test_it_becomes_scores_and_a_table():
    lm = model("llama")
    found = logit_attribution(lm, words(5, 6, 7), "w20", distractors="w21")
    assert (found.tokens, found.distractors) == (("w20",), ("w21",))
    heads = found.scores("head")
    assert heads.array.shape == (1, 2, 4)
    assert (heads.unit, heads.method) == ("logit", "logit_attribution")
    strongest = heads.top(1)[0]
    assert abs(found[str(strongest)][0]) == np.abs(heads.array).max()
    assert [str(site) for site in found.scores("mlp_out").sites()] == ["L0.mlp_out", "L1.mlp_out"]
    frame = found.to_frame()
    assert list(frame.columns) == ["example", "component", "value"]
    assert len(frame) == len(found.components)
    assert "'w20 − w21'" in repr(found)
    with pytest.raises(SiteError, match=r'no term of this attribution is a "attn_out".*there are head, mlp_out'):
        found.scores("attn_out")
    with pytest.raises(SiteError, match=r'"L0.head\[9\]" is no term'):
        found["L0.head[9]"]


def test_a_stream_that_is_normed_is_refused():
    with pytest.raises(ModelError, match=r"opt-350m.*norms the residual stream itself.*patching instead"):
        logit_attribution(model("opt-350m"), IDS, 20)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([[20, 21, 22]], {}, PromptError, "one for each of the 2, got 3"),
        ([97], {}, PromptError, "token id 97 is out of range"),
        (["w5 w6"], {}, PromptError, "must be one token and is 2"),
        ([20], {"at": "0:2"}, PromptError, 'reads one position of each row, and "0:2" is not one'),
        ([20], {"parts": "heads"}, SiteError, 'did you mean "head"'),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        logit_attribution(model("llama"), IDS, *arguments, **options)


def test_numbers_that_are_not_finite_are_told():
    lm = model("llama")
    with torch.no_grad():
        lm.anatomy.embedding.weight[5] = float("inf")
    with pytest.raises(ModelError, match="row 0 is not finite at -1"):
        logit_attribution(lm, [[5, 6], [7, 8]], 20)


def test_indirect_object(bundled):
    prompt = "When Mary and John went to the store, John gave a drink to"
    found = logit_attribution(bundled, prompt, " Mary", distractors=" John")
    assert found.total[0] > 3
    np.testing.assert_allclose(found.residual, 0, atol=1e-3)
