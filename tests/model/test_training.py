"""Modules at sites: they do what the edit made of them does, and their gradients are those of the site itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.model.tinies import IDS, RAGGED, SIDES, close, exact, fresh, lm_of, off, untouched
from tests.tiny import FAMILIES
from trimtab.errors import PromptError, SiteError
from trimtab.model.protocols import logit_diff
from trimtab.model.training import continuation_log_probs, trainable
from trimtab.values.edit import Affine, Edit
from trimtab.values.scope import Scope
from trimtab.values.site import Site

READOUT = logit_diff([3, 4], [5, 6])
SITES = ("embed", "L0.resid_pre", "L0.head", "L0.attn_out", "L0.resid_post", "L1.mlp_out", "L1.resid_post")


class Map(nn.Module):
    """x·scale + c along the last axis."""

    def __init__(self, width, seed=0, dtype=torch.float64):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.scale = nn.Parameter(torch.tensor(rng.uniform(0.5, 1.5, width), dtype=dtype))
        self.c = nn.Parameter(torch.tensor(rng.standard_normal(width), dtype=dtype))

    def forward(self, x, places):
        return x * self.scale.to(x.dtype) + self.c.to(x.dtype)

    def value(self):
        return Affine(c=self.c.detach().numpy(), scale=self.scale.detach().numpy())


def maps(lm, names):
    sites = [Site.parse(name) for name in names]
    return {site: Map(lm.shape(site.whole)[-1], i) for i, site in enumerate(sites)}


def logits(lm, prompts, modules, where="all"):
    with trainable(lm, prompts, modules, where):
        return lm.call(prompts).logits


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("side", SIDES)
    def test_a_module_does_what_its_edit_does(self, family, side):
        lm = exact(family, padded=True)
        prompts = lm.prompts(RAGGED, padding=side)
        modules = maps(lm, SITES)
        for where in ("all", "-2:", "tokens{9,12}"):
            edits = [Edit(site, "affine", module.value(), where=where) for site, module in modules.items()]
            with untouched(lm):
                trained = logits(lm, prompts, modules, where).detach()
            real = prompts.mask.bool()
            close(lm, trained[real], lm.run(prompts, edit=edits).logits[real], where, times=10)

    @pytest.mark.parametrize("site", SITES[1:5:3] + SITES[2:6:3])
    def test_gradients_are_those_of_the_site(self, family, site):
        """The slope of what is added at two positions is the sum of the gradients there."""
        lm = exact(family)
        prompts, site = lm.prompts(IDS), Site.parse(site)
        added = nn.Parameter(torch.zeros(lm.shape(site), dtype=lm.dtype))
        with untouched(lm), trainable(lm, prompts, {site: lambda x, places: x + added}, "-2:"):
            z = lm.call(prompts).logits[:, -1]
            (z[0, 3] - z[0, 5] + z[1, 4] - z[1, 6]).backward()
        wanted = lm.gradients(prompts, READOUT, site).gradients[site][:, -2:].sum((0, 1))
        assert float(wanted.abs().max()) > 0
        close(lm, added.grad, wanted, site, times=10)


def test_units_alone_are_shown_and_changed():
    lm = exact("llama")
    prompts = lm.prompts(IDS)
    seen = {}

    def double(x, places):
        seen["shape"], seen["places"] = tuple(x.shape), places.tolist()
        return 2 * x

    where = {Site.parse("L0.neuron[3,7]"): Scope.parse("1:3")}
    trained = logits(lm, prompts, {Site.parse("L0.neuron[3,7]"): double}, where)
    assert seen["shape"] == (2, 7, 2)
    assert seen["places"] == [[-1, 1, 2, -1, -1, -1, -1]] * 2
    assert off(trained, lm.run(prompts, edit="L0.neuron[3,7]@1:3 scale 2").logits) < 1e-12


def test_places_count_real_tokens():
    lm = exact("llama")
    seen = []
    logits(lm, lm.prompts(RAGGED), {Site.parse("L0.resid_post"): lambda x, places: seen.append(places) or x})
    assert seen[0].tolist() == [[0, 1, 2, 3, 4, 5, 6], [-1, -1, 0, 1, 2, 3, 4]]


def test_edits_around_come_first():
    lm = exact("llama")
    prompts, site = lm.prompts(IDS), Site.parse("L0.resid_post")
    module = Map(32)
    with lm.edited(Edit(site, "add", 1.5)):
        trained = logits(lm, prompts, {site: module})
    wanted = lm.run(prompts, edit=[Edit(site, "add", 1.5), Edit(site, "affine", module.value())]).logits
    assert off(trained.detach(), wanted) < 1e-12


def test_what_the_model_sees_may_be_of_a_smaller_type():
    lm = fresh("llama", torch.bfloat16)
    prompts, site = lm.prompts(IDS), Site.parse("L0.resid_post")
    module = Map(32, dtype=torch.float32)
    with trainable(lm, prompts, {site: lambda x, places: module(x.float(), places)}):
        out = lm.call(prompts).logits
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert module.c.grad.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon-rw"])
def test_log_probabilities_are_those_of_one_row_at_a_time(family):
    lm = exact(family, padded=True)
    rows, lengths = [[5, 6, 7, 8, 9, 10], [7, 12, 9], [4, 5, 6, 7]], [2, 1, 3]
    found = continuation_log_probs(lm, lm.prompts(rows), lengths)
    for row, n, value in zip(rows, lengths, found.tolist(), strict=True):
        logp = torch.log_softmax(lm.run([row]).logits[0].double(), -1)
        wanted = sum(float(logp[i - 1, row[i]]) for i in range(len(row) - n, len(row)))
        assert value == pytest.approx(wanted, abs=2e-4 if lm.dtype == torch.float32 else 1e-9)


def test_what_cannot_be_is_refused():
    lm = lm_of("qwen2_moe")
    prompts = lm.prompts(IDS)
    for site, message in (
        ("L0.resid_post@-1", "leave the positions out"),
        ("L0.resid_post.feature@sae", "the tensor itself"),
        ("L0.pattern", "a number for each key"),
        ("L1.expert[0]", "one fused operation"),
    ):
        with pytest.raises(SiteError, match=message), trainable(lm, prompts, {Site.parse(site): Map(32)}):
            pass
    with pytest.raises(PromptError, match="something before it"):
        continuation_log_probs(lm, prompts, [7, 1])
    with pytest.raises(PromptError, match="pad them on the left"):
        continuation_log_probs(lm, lm.prompts(RAGGED, padding="right"), [1, 1])
