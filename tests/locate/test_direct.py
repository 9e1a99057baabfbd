"""Direct logit attribution over a task: equal to the terms of single prompts, and neurons make up their MLP."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, twins
from tests.model.tinies import fresh, lm_of
from tests.tiny import FAMILIES
from trimtab.errors import ModelError, SiteError
from trimtab.locate.attribution import logit_attribution
from trimtab.locate.direct import direct_logit_attribution
from trimtab.tasks.measure import measure

TASK = twins(4)
SUMMED = [name for name in FAMILIES if name != "opt-350m"]


def by_hand(lm, task, parts="head"):
    prompts = measure(lm, task, on="clean").prompts
    answers, others = (
        [lm.token(word[0]) for word in side]
        for side in zip(*((e.answers, e.distractors) for e in task.examples), strict=True)
    )
    return logit_attribution(lm, prompts, answers, distractors=others, parts=parts)


@pytest.mark.parametrize("family", SUMMED)
def test_places_have_the_terms_of_single_prompts(family):
    lm = lm_of(family)
    terms, whole = by_hand(lm, TASK), by_hand(lm, TASK, "sublayer")
    heads = direct_logit_attribution(lm, TASK, "L*.head", batch_size=3)
    np.testing.assert_allclose(heads.array[..., 0], terms.scores("head").array, atol=2e-5)
    for name in ("attn_out", "mlp_out"):
        found = direct_logit_attribution(lm, TASK, f"L*.{name}")
        np.testing.assert_allclose(found.array[..., 0], whole.scores(name).array, atol=2e-5)
    first = direct_logit_attribution(lm, TASK, "embed")
    np.testing.assert_allclose(first.array[:, 0], terms["embed"], atol=2e-5)
    assert (heads.unit, heads.method, heads.groups) == ("logit", "direct_logit_attribution", TASK.groups)


def with_biases():
    """OLMo-2, which norms what its MLPs write, and down projections with a bias: no family here has both."""
    lm = fresh("olmo2")
    for block in lm.anatomy.blocks:
        block.down.bias = torch.nn.Parameter(torch.randn(32, generator=torch.Generator().manual_seed(3)))
    return lm


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "gptj", "olmo2 with biases"])
def test_neurons_and_the_bias_make_up_their_mlp(family):
    lm = with_biases() if family.endswith("biases") else lm_of(family)
    neurons = direct_logit_attribution(lm, TASK, "L*.neuron").array[..., 0].sum(-1)
    raw = direct_logit_attribution(lm, TASK, "L*.mlp_raw").array[..., 0]
    biases = bias_terms(lm, TASK)
    np.testing.assert_allclose(neurons + biases, raw, atol=2e-5)
    assert bool(np.abs(biases).max() > 1e-3) is (family in ("gpt2", "gptj", "olmo2 with biases"))


def bias_terms(lm, task):
    """(example layer) what each bias writes: through the post-norm, where there is one, and the final norm, both with
    the scales that they have in the run."""
    measured, a = measure(lm, task, on="clean", metric="logit_diff"), lm.anatomy
    found = np.zeros((len(task), a.n_layers))
    last = f"L{a.n_layers - 1}.resid_post@last"
    for row, example in enumerate(task.examples):
        run = lm.run(measured.prompts.rows([row], trim=True), [last, "L*.mlp_raw@last"])
        answer, other = (a.unembed.weight[lm.token(word[0])] for word in (example.answers, example.distractors))
        for layer, block in enumerate(a.blocks):
            if getattr(block.down, "bias", None) is not None:
                written = block.down.bias.detach().double()
                if block.mlp_post is not None:
                    written = frozen(block.mlp_post, run[f"L{layer}.mlp_raw@last"], written)
                found[row, layer] = frozen(a.norm, run[last], written) @ (answer - other).detach().double()
    return found


def frozen(norm, x, written):
    """A part of x behind a norm whose scale is that of x."""
    x, centred = x.flatten().double(), isinstance(norm, torch.nn.LayerNorm)
    eps = norm.eps if centred else norm.variance_epsilon
    spread = x.var(unbiased=False) if centred else x.square().mean()
    return (written - centred * written.mean()) * norm.weight.detach().double() / (spread + eps).sqrt()


def test_the_last_stream_is_the_whole_difference_where_the_norm_has_no_bias():
    lm = lm_of("llama", torch.float64)
    whole = direct_logit_attribution(lm, TASK, "L1.resid_post").array[:, 0, 0]
    np.testing.assert_allclose(whole, numbers(lm, TASK, "clean"), atol=2e-6)  # transformers norms in float32
    before = direct_logit_attribution(lm, TASK, "L1.resid_pre").array[:, 0, 0]
    written = [direct_logit_attribution(lm, TASK, f"L1.{n}").array[:, 0, 0] for n in ("attn_out", "mlp_out")]
    np.testing.assert_allclose(before + sum(written), whole, atol=1e-9)


def test_features_write_through_their_decoder():
    class Turned:
        """The entries as features, twice over, with a decoder that adds a constant."""

        def encode(self, x):
            return torch.cat([x, x], -1)

        def decode(self, f):
            return (f[..., :32] + f[..., 32:]) / 2 + 3.0

    lm = lm_of("llama", torch.float64)
    found = direct_logit_attribution(lm, TASK, "L0.mlp_out.feature@two", dictionaries={"two": Turned()})
    assert found.array.shape == (4, 1, 64, 1)
    np.testing.assert_allclose(found.array[:, 0, :32], found.array[:, 0, 32:], atol=1e-12)
    whole = direct_logit_attribution(lm, TASK, "L0.mlp_out")
    np.testing.assert_allclose(found.array.sum((1, 2, 3)), whole.array[:, 0, 0], atol=1e-12)


def test_candidates_of_several_units_are_their_sum():
    lm = lm_of("llama", torch.float64)
    neurons = direct_logit_attribution(lm, TASK, "L1.neuron").array[:, 0, :, 0]
    both = direct_logit_attribution(lm, TASK, ["L1.neuron[3,17]", "L0.head[1]"])
    np.testing.assert_allclose(both.array[:, 0], neurons[:, 3] + neurons[:, 17], atol=1e-12)


@pytest.mark.parametrize(("sites", "told"), [("L*.q", "does not write"), (["L0.head[1]@subject"], "last position")])
def test_places_that_do_not_write_there_are_refused(sites, told):
    with pytest.raises(SiteError, match=told):
        direct_logit_attribution(lm_of("llama"), TASK, sites)


def test_a_stream_that_is_no_sum_is_refused():
    with pytest.raises(ModelError, match="norms the residual stream itself"):
        direct_logit_attribution(lm_of("opt-350m"), TASK)
