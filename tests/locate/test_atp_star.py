"""AtP*: the softmax against one recomputed by hand and by patching, GradDrop against passes with a layer frozen."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.locate.tinytasks import pairs, twins
from tests.model.tinies import exact, fresh, lm_of, untouched
from tests.tiny import FAMILIES, tokenizer
from trimtab import load
from trimtab.errors import EditError, SiteError, TaskError, TrimtabError
from trimtab.locate.atp_star import atp_star
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.audit import audit_scores
from trimtab.locate.keys import key_changes
from trimtab.locate.patching import patching
from trimtab.model.lm import LM as LM_
from trimtab.tasks.builtin import task as task_named
from trimtab.tasks.fit import fit
from trimtab.tasks.measure import measure, sides
from trimtab.values.edit import Edit, Ref

LM = lm_of("gpt2", torch.float64)


def softmax_patched(lm, task, site, direction="denoise"):
    """∂M/∂pattern times the change of the pattern when a site alone is patched: by the model itself, one at a time."""
    both = sides(lm, task)
    measured = measure(lm, task, on="clean" if direction == "noise" else "corrupt")
    others = both.positive if direction == "denoise" else both.negative
    values = []
    for row in range(len(task)):
        prompts, readout = measured.prompts.rows([row], trim=True), measured.readout.of_rows([row])
        other = lm.run(others.rows([row], trim=True), site.whole)
        pattern = f"L{site.layer}.pattern"
        slope = lm.gradients(prompts, readout, pattern)
        run = lm.run(prompts, pattern, Edit(site, "set", Ref("other")), runs={"other": other})
        values.append(float((slope.gradients[pattern] * (run[pattern] - slope.activations[pattern])).sum()))
    return np.array(values) * (1 if direction == "denoise" else -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_keys_equal_a_recomputed_softmax(family):
    """In every family: soft caps, sliding windows, ALiBi, QK norm, key-value heads and padded rows included."""
    lm, task = exact(family, padded=True), twins(4)
    for sites in (["L1.q[2]@subject", "L0.q[1]@end"], ["L1.k[0]@subject", "L0.k[0]@end", "L0.k[0]@all"]):
        found = atp_star(lm, task, sites, grad_drop=False)
        for i, site in enumerate(found.sites()):
            hand = softmax_patched(lm, task, site)
            near = 1e-8 if lm.dtype == torch.float64 and family not in ("gemma2", "bloom", "gptj") else 1e-3
            scale = max(np.abs(hand).max(), 1e-4)
            assert np.abs(found.array[:, i] - hand).max() < near * scale, f"{site}: {found.array[:, i]} {hand}"
            if family == "llama" and "all" in str(site):
                assert np.abs(hand).max() > 1e-3, "nothing was moved, so nothing was tested"


def test_a_map_of_keys_equals_its_candidates_and_turns_its_sign():
    lm, task = exact("llama"), twins(4)
    grid = atp_star(lm, task, "L*.k", direction="noise", grad_drop=False)
    assert grid.dims == ("example", "layer", "head", "span")
    assert grid.array.shape[2] == 2
    for layer, head, span in ((0, 1, 0), (1, 0, 1)):
        site = grid.site_at(layer=layer, head=head, span=grid.coords["span"][span])
        hand = softmax_patched(lm, task, site, "noise")
        np.testing.assert_allclose(grid.array[:, layer, head, span], hand, atol=1e-9)


def test_the_closed_form_by_hand():
    """Two keys of equal weight: patching one by ln 3 moves the pattern from (½, ½) to (¾, ¼)."""
    scores = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    patched = torch.full_like(scores, np.log(3.0))
    v = torch.tensor([1.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1)
    one, both = key_changes(scores, patched, v, [torch.tensor([[True, False]]), torch.tensor([[True, True]])])
    assert float(one) == pytest.approx(0.5)
    assert float(both) == pytest.approx(0.0, abs=1e-12)


def test_a_key_that_loses_all_of_the_attention():
    """In float32: the pattern goes from (1, 0) to (0, 1), where the closed form multiplies large by small."""
    scores = torch.tensor([20.0, 0.0]).view(1, 1, 1, 2)
    patched = torch.tensor([-20.0, 0.0]).view(1, 1, 1, 2)
    v = torch.tensor([0.3, -0.7]).view(1, 2, 1, 1)
    (change,) = key_changes(scores, patched, v, [torch.tensor([[True, False]])])
    assert float(change) == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_key_that_gains_more_than_a_number_can_hold(dtype):
    """expm1 of 900 is infinite in either type, and infinite over infinite is nothing: here all attention goes there."""
    scores = torch.zeros(1, 1, 1, 4, dtype=dtype)
    patched = torch.full_like(scores, 900.0)
    v = torch.tensor([3.0, 1.0, -1.0, -1.0], dtype=dtype).view(1, 4, 1, 1)
    spans = [torch.tensor([[True, False, False, False]]), torch.tensor([[True, True, False, False]])]
    one, two = key_changes(scores, patched, v, spans, exact=dtype)
    assert float(one) == pytest.approx(2.5)
    assert float(two) == pytest.approx(1.5)


@pytest.mark.parametrize("sites", ["L*.q", "L*.k"])
def test_for_small_changes_it_is_plain_attribution_patching(sites):
    """Twins whose subjects' embeddings come together: the gap to the plain slope closes faster than the change."""
    lm, task, gaps = fresh("gpt2", torch.float64), twins(), []
    table = lm.hf.transformer.wte.weight
    apart = (table[10:16] - table[25:31]).detach().clone()
    for eps in (1.0, 1e-3):
        with torch.no_grad():
            table[10:16] = table[25:31] + eps * apart
        star = atp_star(lm, task, sites, grad_drop=False)
        plain = attribution_patching(lm, task, sites)
        gaps.append(np.abs(star.array - plain.array).max() / np.abs(plain.array).max())
    assert gaps[0] > 1e-2
    assert gaps[1] < 1e-2 * gaps[0]


def test_without_fixes_it_is_attribution_patching():
    task = twins()
    for sites in ("L*.head", "L*.q", "L*.k", "L*.neuron", "L*.resid_post"):
        star = atp_star(LM, task, sites, fix=(), direction="noise", grad_drop=False)
        plain = attribution_patching(LM, task, sites, direction="noise")
        np.testing.assert_allclose(star.array, plain.array, atol=1e-12)


def test_the_default_is_no_attribution_patching_and_says_what_was_applied():
    """For heads, which have no softmax of their own, GradDrop is all there is of AtP*."""
    task = twins()
    plain = attribution_patching(LM, task, "L*.head")
    default = atp_star(LM, task)
    assert not np.allclose(default.array, plain.array)
    assert not np.allclose(default.array, np.abs(plain.array))
    assert default.options["applied"] == ["grad_drop"]
    neither = atp_star(LM, task, grad_drop=False)
    np.testing.assert_array_equal(neither.array, plain.array)
    assert neither.options["applied"] == []
    assert atp_star(LM, task, ["L0.q[1]@end", "L0.head[1]@end"], grad_drop=False).options["applied"] == ["q"]
    assert atp_star(LM, task, "L*.k", fix=("q",)).options["applied"] == ["grad_drop"]


def test_with_one_layer_nothing_is_left_out():
    config = FAMILIES["gpt2"]()
    config.n_layer = 1
    torch.manual_seed(0)
    lm, task = LM_(AutoModelForCausalLM.from_config(config).double().eval(), tokenizer(), name="flat"), twins()
    plain = attribution_patching(lm, task, "L*.head")
    np.testing.assert_allclose(atp_star(lm, task, "L*.head").array, np.abs(plain.array), rtol=1e-8, atol=1e-14)


def test_where_the_metric_is_linear_it_is_exact():
    task = twins(metric="logit_diff")
    star = atp_star(LM, task, "final@end", grad_drop=False)
    np.testing.assert_allclose(star.array, patching(LM, task, "final@end").array, rtol=1e-8)


PLACES = ["L0.head[1]@end", "L1.head[0]@all", "L0.resid_pre", "embed", "L0.mlp_out", "L0.mlp_raw", "L1.attn_raw@end"]


def layers_left_out(lm, task, sites):
    """(example site) mean size of the effect over layers whose outputs are set to what they are: a pass for each."""
    both, measured = sides(lm, task), measure(lm, task, on="corrupt")
    n = lm.anatomy.n_layers
    expected = np.zeros((len(task), len(sites)))
    tensors = [site.whole for site in lm.sites(sites)]
    base = lm.run(measured.prompts, ["L*.attn_out", "L*.mlp_out", *tensors])
    other = lm.run(both.positive, tensors)
    for layer in range(n):
        freeze = [Edit(f"L{layer}.{name}", "set", Ref("base")) for name in ("attn_out", "mlp_out")]
        for i, site in enumerate(lm.sites(sites)):
            stream = site.name in ("embed", "resid_pre")
            if site.layer == layer and not stream:
                continue  # what its own layer adds is frozen: nothing of it arrives
            slope = lm.gradients(measured.prompts, measured.readout, [site.whole], edit=freeze, runs={"base": base})
            product = slope.gradients.whole(site.whole) * (other.whole(site.whole) - base.whole(site.whole))
            product = product if site.index is None else product[:, :, list(site.index)]
            columns = measured.prompts.columns(site.at) if site.at else measured.prompts.mask.bool()
            effect = torch.where(columns[..., None], product.flatten(2), 0.0).sum((1, 2))
            expected[:, i] += np.abs(effect.numpy()) / (n if stream else n - 1)
    return expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "opt-350m", "gemma2", "bloom", "mixtral", "olmo2"])
def test_grad_drop_equals_one_pass_for_each_frozen_layer(family):
    lm, task = exact(family, padded=True), twins(4)
    expected = layers_left_out(lm, task, PLACES)
    scale = expected.max(0)
    parallel = lm.anatomy.family.parallel  # whose first MLP reads the token alone, which is the same at the end
    assert [place for place, size in zip(PLACES, scale, strict=True) if size == 0] == (PLACES[4:6] if parallel else [])
    near = 1e-8 if lm.dtype == torch.float64 and family not in ("gemma2", "bloom") else 1e-3
    assert (np.abs(atp_star(lm, task, PLACES, grad_drop=True).array - expected).max(0) <= near * scale + 1e-14).all()


def test_grad_drop_with_layers_before_and_after():
    torch.manual_seed(0)
    config = FAMILIES["gpt2"]()
    config.n_layer, config.initializer_range = 4, 0.2
    lm, task = LM_(AutoModelForCausalLM.from_config(config).double().eval(), tokenizer(), name="deep"), twins(4)
    places = ["L1.head[2]@end", "L2.mlp_out@end", "L3.attn_out@end", "L2.resid_pre@subject", "embed", "L0.mlp_raw"]
    expected = layers_left_out(lm, task, places)
    assert (expected.max(0) > 0).all()
    np.testing.assert_allclose(atp_star(lm, task, places, grad_drop=True).array, expected, rtol=1e-7, atol=1e-12)


def test_grad_drop_with_recomputed_softmax():
    """Of two layers one is left out, so a query of the last layer keeps the size of its effect."""
    task = twins()
    signed = atp_star(LM, task, "L*.q", grad_drop=False)
    sized = atp_star(LM, task, "L*.q", grad_drop=True)
    np.testing.assert_allclose(sized.array[:, 1], np.abs(signed.array[:, 1]), rtol=1e-8, atol=1e-14)
    assert (sized.array >= 0).all()
    assert not np.allclose(sized.array[:, 0], np.abs(signed.array[:, 0]))


def test_layers_are_taken_in_parts_where_attention_is_large(monkeypatch):
    task = twins()
    whole = atp_star(LM, task, "L*.k").array
    monkeypatch.setattr(import_module("trimtab.locate.atp_star"), "SQUARES", 1)
    np.testing.assert_allclose(atp_star(LM, task, "L*.k", batch_size=2).array, whole, atol=1e-12)


def test_little_memory_means_few_rows_at_once():
    told, task = [], twins()
    small = atp_star(LM, task, "L*.k", memory=1.0, progress=lambda *now: told.append(now))
    assert [done for done, _ in told] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(small.array, atp_star(LM, task, "L*.k").array, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_nothing_is_left_behind_and_progress_is_told(family):
    told = []
    lm = lm_of(family)
    with untouched(lm):
        atp_star(lm, twins(), "L*.k", grad_drop=True, batch_size=2, progress=lambda *now: told.append(now))
    assert told[-1] == (6, 6)


def test_verified_results_say_what_came_of_it():
    task, told = twins(), []
    found = atp_star(
        LM, task, "L*.q", verify=3, audit=5, grad_drop=False, batch_size=2, progress=lambda *now: told.append(now)
    )
    assert told[:3] == [(2, 12), (4, 12), (6, 12)]  # the prompts, and then the exact patching as the other half
    assert told[3:] == sorted(told[3:])
    assert told[-1] == (12, 12)
    audit = found.options["audit"]
    assert audit["verified"] == [str(site) for site in found.top(3)]
    np.testing.assert_allclose(audit["exact"], patching(LM, task, found.top(3)).mean(), rtol=1e-9)
    assert audit["sampled"] == 5
    assert audit["rest"] == found.mean().size - 3


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(TaskError, match="use attribution_patching"):
        atp_star(LM, pairs(), "L*.head")
    with pytest.raises(TrimtabError, match='fix is any of "q" and "k"'):
        atp_star(LM, twins(), "L*.head", fix=("v",))
    with pytest.raises(TrimtabError, match="so it needs verify=1 or more"):
        atp_star(LM, twins(), audit=5, progress=lambda *now: pytest.fail("it was computed first"))
    with pytest.raises(TrimtabError, match="direction is"):
        atp_star(LM, twins(), "L*.head", direction="denoised")
    with pytest.raises(EditError, match="accuracy"):
        atp_star(LM, twins(metric="accuracy"), "L*.head")
    with pytest.raises(SiteError, match="no gradient reaches them"):
        atp_star(LM, twins(), "L*.resid_post.feature@sae")


@pytest.mark.slow
@pytest.mark.parametrize(("sites", "span"), [("L*.q", "end"), ("L*.k", "S2")])
def test_the_strongest_places_of_indirect_objects_are_those_of_exact_patching(sites, span):
    """On the bundled model: every query or key by exact patching against the ten strongest by AtP*."""
    lm = load("smollm2-135m-instruct")
    task = fit(lm, task_named("ioi")).task.take(8, 0)
    screen = atp_star(lm, task, sites, spans=span, grad_drop=False)
    exactly = patching(lm, task, sites, spans=span)
    top, truth = (set(map(str, scores.top(10))) for scores in (screen, exactly))
    assert len(top & truth) >= 8
    audit = audit_scores(lm, task, screen, k=10, sample=50)
    assert audit.missed <= 0.1
    assert audit.error < 0.05
