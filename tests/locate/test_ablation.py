"""Ablations against hooks and values made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import numbers, pairs, twins
from tests.model.tinies import fresh, lm_of
from trimtab.errors import PromptError, SiteError, TaskError, TrimtabError
from trimtab.evaluate.resampling import donors
from trimtab.locate.ablation import ablation
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.measure import measure
from trimtab.tasks.reference import name_of
from trimtab.tasks.signatures import options as options_of
from trimtab.tasks.task import Task
from trimtab.values.edit import Edit

LM = lm_of("llama", torch.float64)
TASK = twins()
KINDS = ["resample", "mean", "zero", "noise"]


def test_zero_is_a_hook_that_zeroes():
    clean = numbers(LM, TASK, "clean")

    def zero(module, args):
        x = args[0].clone()
        x[..., 2 * 8 : 3 * 8] = 0
        return (x,)

    handle = LM.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(zero)
    ablated = numbers(LM, TASK, "clean")
    handle.remove()
    scores = ablation(LM, TASK, "L*.head", kind="zero")
    np.testing.assert_allclose(scores.array[:, 1, 2, 0], clean - ablated, atol=1e-10)
    assert scores.coords["span"] == ("all",)


def test_the_mean_is_that_of_all_tokens_and_first_ones_have_their_own():
    prompts = measure(LM, TASK, on="clean").prompts
    run = LM.run(prompts, "L0.mlp_out")
    rows = [run["L0.mlp_out"][i, c] for i, c in enumerate(prompts.positions("all"))]
    first = torch.stack([x[0] for x in rows]).mean(0)
    rest = torch.stack([x[1:].mean(0) for x in rows]).mean(0)
    edits = [Edit("L0.mlp_out@1:", "set", rest), Edit("L0.mlp_out@0", "set", first)]
    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", lambda row: edits)
    scores = ablation(LM, TASK, "L*.mlp_out", kind="mean")
    np.testing.assert_allclose(scores.array[:, 0, 0], lost, atol=1e-5)


def test_the_mean_of_a_span_is_taken_in_it():
    prompts = measure(LM, TASK, on="clean").prompts
    values = LM.run(prompts, "L0.head@subject")["L0.head@subject"][:, 0].mean(0)
    edit = Edit("L0.head[1]@subject", "set", values[1:2])
    measured = measure(LM, TASK, on="clean")

    def at(row):
        return edit.with_(where=measured.prompts.rows([row]).spans["subject"][0][0])

    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", at)
    scores = ablation(LM, TASK, "L0.head", kind="mean", spans=["end", "subject"])
    np.testing.assert_allclose(scores.array[:, 0, 1, 1], lost, atol=1e-5)


@pytest.mark.parametrize("on", ["clean", "corrupt"])
def test_the_mean_by_position_is_that_of_the_tokens_that_stand_there(on):
    """Prompt by prompt, and position by position: the second token's mean is of second tokens."""
    task = TASK.of([e for i, e in enumerate(TASK.examples) if i % 3 == 1])
    prompts = measure(LM, task, on=on).prompts
    values = [LM.run(prompts.rows([row], trim=True), "L0.mlp_out")["L0.mlp_out"][0] for row in range(len(prompts))]
    edits = [Edit(f"L0.mlp_out@{p}", "set", sum(x[p] for x in values) / len(values)) for p in range(len(values[0]))]
    lost = numbers(LM, task, on) - numbers(LM, task, on, lambda row: edits)
    options = {"kind": "mean", "per_position": True, "on": on}
    scores = ablation(LM, task, ["L0.mlp_out", "L1.head[2]", "L0.mlp_out@1"], **options)
    np.testing.assert_allclose(scores.array[:, 0], lost, atol=1e-9)
    one = numbers(LM, task, on) - numbers(LM, task, on, lambda row: edits[1])
    np.testing.assert_allclose(scores.array[:, 2], one, atol=1e-9)
    assert np.abs(ablation(LM, task, ["L0.mlp_out"], kind="mean", on=on).array[:, 0] - lost).max() > 1e-6
    naive = ablation(LM, task, "L*.head", exact="naive", batch_size=1, **options)
    np.testing.assert_allclose(scores.array[:, 1], naive.array[:, 1, 2, 0], atol=1e-9)


def test_means_by_position_need_prompts_of_one_length():
    with pytest.raises(TaskError, match=r"3 to 7 tokens.*leave per_position out"):
        ablation(LM, TASK, "L*.mlp_out", kind="mean", per_position=True)
    with pytest.raises(TrimtabError, match='give kind="mean"'):
        ablation(LM, TASK, "L*.mlp_out", per_position=True)


@pytest.mark.parametrize("given", ["a task", "prompts"])
def test_the_mean_over_a_reference_is_that_of_its_tokens(given):
    other = pairs(7)
    prompts = measure(LM, other).prompts if given == "a task" else LM.prompts(["w50 w51 w52 w53", "w9 w60", "w61"])
    rows = [
        LM.run(prompts.rows([row], trim=True), "L0.mlp_out")["L0.mlp_out"][0].double() for row in range(len(prompts))
    ]
    first = torch.stack([x[0] for x in rows]).mean(0)
    rest = torch.stack([x[1:].mean(0) for x in rows if len(x) > 1]).mean(0)
    edits = [Edit("L0.mlp_out@1:", "set", rest), Edit("L0.mlp_out@0", "set", first)]
    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", lambda row: edits)
    reference = other if given == "a task" else prompts
    scores = ablation(LM, TASK, "L*.mlp_out", kind="mean", reference=reference)
    np.testing.assert_allclose(scores.array[:, 0, 0], lost, atol=1e-5)
    assert np.abs(scores.array - ablation(LM, TASK, "L*.mlp_out", kind="mean").array).max() > 1e-3
    assert scores.options["reference"] == name_of(reference)
    last = torch.stack([x[-1] for x in rows if len(x) > 1]).mean(0)
    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", lambda row: Edit("L0.mlp_out@-1", "set", last))
    found = ablation(LM, TASK, "L*.mlp_out", spans="last", kind="mean", reference=reference, batch_size=2)
    np.testing.assert_allclose(found.array[:, 0, 0], lost, atol=1e-5)


def opening(rows):
    """A task whose prompts begin with their subject in these rows, and have it in their midst in the others."""
    examples = []
    for i in range(4):
        before, subject, after = ("" if i in rows else f"w{50 + i} "), f"w{10 + i}", f" w{60 + i} w{70 + i}"
        texts = [f"{before}{name}{after}" for name in (subject, f"w{30 + i}")]
        spans = {"spans": {"subject": subject}, "corrupt_spans": {"subject": f"w{30 + i}"}}
        examples.append(Counterfactual(*texts, (f"w{3 + i}",), (f"w{80 + i}",), group=f"group {i}", **spans))
    return Task("opening", tuple(examples))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("subjects", [((2,), (1,), (0,)), ((1, 2), (0, 1), (1,))])
def test_first_tokens_and_others_are_never_mixed(subjects, batch_size):
    """A subject that begins its prompt is set to the mean of first tokens, another to that of later subjects' tokens,
    whatever the reference has where."""
    task = opening({0, 2})
    reference = LM.prompts(["w50 w51 w52 w53", "w9 w60", "w20 w61"]).with_spans(subject=subjects)
    values = LM.run(reference, "L0.mlp_out")["L0.mlp_out"]
    rows = [values[i, start:] for i, start in enumerate(reference.start.tolist())]
    first = torch.stack([x[0] for x in rows]).mean(0)
    later = [x[[p for p in at if p]].mean(0) for x, at in zip(rows, subjects, strict=True) if any(at)]
    edits = [Edit("L0.mlp_out@0", "set", first), Edit("L0.mlp_out@1", "set", sum(later) / len(later))]
    lost = numbers(LM, task, "clean") - numbers(LM, task, "clean", lambda row: edits[row % 2])
    options = {"kind": "mean", "spans": "subject", "reference": reference, "batch_size": batch_size}
    found = ablation(LM, task, "L*.mlp_out", **options)
    np.testing.assert_allclose(found.array[:, 0, 0], lost, atol=1e-5)
    alone = ablation(LM, task, ["L1.head[2]", "L0.mlp_out"], **options)
    np.testing.assert_allclose(alone.array[:, 1], lost, atol=1e-5)


def test_a_mean_of_later_tokens_is_not_made_of_first_ones():
    reference = LM.prompts(["w50 w51 w52 w53", "w9 w60"]).with_spans(subject=((0,), (0,)))
    options = {"kind": "mean", "spans": "subject", "reference": reference}
    with pytest.raises(TaskError, match=r'"subject" covers first ones alone.*\(a reference\) that have words in front'):
        ablation(LM, opening({0, 2}), "L*.mlp_out", **options)
    values = LM.run(reference, "L0.mlp_out")["L0.mlp_out"]
    first = torch.stack([values[i, start] for i, start in enumerate(reference.start.tolist())]).mean(0)
    task = opening({0, 1, 2, 3})
    lost = numbers(LM, task, "clean") - numbers(LM, task, "clean", lambda row: Edit("L0.mlp_out@0", "set", first))
    np.testing.assert_allclose(ablation(LM, task, "L*.mlp_out", **options).array[:, 0, 0], lost, atol=1e-5)


@pytest.mark.parametrize("spans", ["all", "subject", ["end", "0"]])
def test_the_task_as_its_own_reference_changes_nothing(spans):
    for on in ("clean", "corrupt"):
        options = {"kind": "mean", "spans": spans, "on": on}
        own = ablation(LM, TASK, "L*.head", **options)
        assert np.array_equal(own.array, ablation(LM, TASK, "L*.head", reference=TASK, **options).array)


def test_the_mean_by_position_over_a_reference():
    same = TASK.of([e for i, e in enumerate(TASK.examples) if i % 3 == 1])
    length = int(measure(LM, same).prompts.lengths[0])
    other = LM.prompts([list(range(start, start + length)) for start in (20, 31, 50)])
    values = LM.run(other, "L0.mlp_out")["L0.mlp_out"].mean(0)
    edits = [Edit(f"L0.mlp_out@{p}", "set", values[p]) for p in range(length)]
    lost = numbers(LM, same, "clean") - numbers(LM, same, "clean", lambda row: edits)
    options = {"kind": "mean", "per_position": True}
    found = ablation(LM, same, ["L0.mlp_out"], reference=other, batch_size=2, **options)
    np.testing.assert_allclose(found.array[:, 0], lost, atol=1e-9)
    with pytest.raises(TaskError, match=r"reference\) of one template and length"):
        ablation(LM, same, ["L0.mlp_out"], reference=LM.prompts([[20, 21], [30, 31]]), **options)


def test_references_that_do_not_fit_are_refused():
    with pytest.raises(PromptError, match="subject"):
        ablation(LM, TASK, "L*.mlp_out", kind="mean", spans="subject", reference=pairs(4))
    with pytest.raises(TrimtabError, match=r'reference says how a mean is taken.*give kind="mean"'):
        ablation(LM, TASK, "L*.mlp_out", reference=pairs(4))
    (option,) = [option for option in options_of(ablation) if option.name == "reference"]
    assert option.kinds == ("task",), "on the command line it is the name of a task, or a file of one"


def test_its_direction_is_that_of_patching_the_same_prompts():
    found = [ablation(LM, TASK, ["L1.head[0]"], kind="zero", on=on).direction for on in ("clean", "corrupt")]
    assert [*found, ablation(LM, pairs(4), ["L1.head[0]"], kind="zero").direction] == ["noise", None, None]


def test_resampling_takes_the_donors_tokens_counted_from_the_end():
    measured = measure(LM, TASK, on="clean")
    prompts = measured.prompts
    partner = donors(prompts, measured.groups, measured.owner, seed=3)

    def edits(row):
        mine, theirs = len(prompts.tokens[row]), len(prompts.tokens[partner[row]])
        run = LM.run(prompts.rows([partner[row]], trim=True), "L0.mlp_out")["L0.mlp_out"][0]
        at = [0] + [max(1, theirs - mine + p) for p in range(1, mine)]
        return [Edit(f"L0.mlp_out@{p}", "set", run[q]) for p, q in enumerate(at)]

    lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", edits)
    scores = ablation(LM, TASK, "L0.mlp_out", kind="resample", seed=3)
    np.testing.assert_allclose(scores.array[:, 0, 0], lost, atol=1e-9)


def test_donors_are_of_other_groups_and_alike_in_length():
    task = pairs(12, groups=4)
    prompts = measure(LM, task).prompts
    found = donors(prompts, task.groups, np.arange(12), seed=0)
    assert all(task.groups[i] != task.groups[j] for i, j in enumerate(found))
    assert found == donors(prompts, task.groups, np.arange(12), seed=0)
    with pytest.raises(TaskError, match="no other example"):
        donors(prompts.rows([0]), ["a"], [0], seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [TASK, pairs(6), pairs(4, question=False)], ids=["twins", "questions", "texts"])
def test_batches_and_padding_make_no_difference_and_fast_is_naive(kind, task):
    one = ablation(LM, task, "L*.head", kind=kind)
    for options in ({"batch_size": 1}, {"exact": "naive", "batch_size": 4}):
        np.testing.assert_allclose(ablation(LM, task, "L*.head", kind=kind, **options).array, one.array, atol=1e-5)


def test_no_noise_is_no_change_and_noise_scales():
    assert not ablation(LM, TASK, "L*.head", kind="noise", sigma=0.0).array.any()
    small, twice = (ablation(LM, TASK, "L1.mlp_out", kind="noise", sigma=s).array for s in (1e-4, 2e-4))
    np.testing.assert_allclose(twice, 2 * small, rtol=0.05, atol=1e-6)


def test_candidates_equal_the_map():
    for kind in KINDS:
        grid = ablation(LM, TASK, "L*.head", kind=kind)
        alone = ablation(LM, TASK, ["L0.head[2]", "L1.head[3]"], kind=kind)
        np.testing.assert_allclose(alone.array, grid.array[:, [0, 1], [2, 3], 0], atol=1e-9)


def test_on_corrupt_prompts():
    scores = ablation(LM, TASK, ["L1.resid_post"], kind="zero", on="corrupt")
    assert scores.options["on"] == "corrupt"
    zeroed = ablation(LM, TASK, ["L1.resid_post"], kind="zero")
    np.testing.assert_allclose(
        numbers(LM, TASK, "clean") - zeroed.array[:, 0], numbers(LM, TASK, "corrupt") - scores.array[:, 0], atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_cumulative_ablation_takes_all_that_stand_before(kind):
    sites = ["L1.head[3]", "L0.head[2]", "L0.mlp_out"]
    alone = ablation(LM, TASK, sites, kind=kind)
    grown = ablation(LM, TASK, sites, kind=kind, cumulative=True)
    np.testing.assert_allclose(grown.array[:, 0], alone.array[:, 0], atol=1e-9)
    assert np.abs(grown.array[:, 1:] - alone.array[:, 1:]).max() > 1e-4
    naive = ablation(LM, TASK, sites, kind=kind, cumulative=True, exact="naive")
    np.testing.assert_allclose(grown.array, naive.array, atol=1e-8)
    if kind == "zero":
        edits = [Edit(site, "set", 0.0) for site in sites]
        lost = numbers(LM, TASK, "clean") - numbers(LM, TASK, "clean", lambda row: edits)
        np.testing.assert_allclose(grown.array[:, 2], lost, atol=1e-9)


def test_a_map_has_no_order_to_accumulate_in():
    with pytest.raises(SiteError, match="has no order"):
        ablation(LM, TASK, "L*.head", cumulative=True)


def test_zeroed_weights_are_a_zeroed_unit():
    """A head whose columns of the output projection are zero writes nothing; so does a neuron without its column."""
    lm = fresh("gpt2", torch.float64)
    clean, scores = numbers(lm, TASK, "clean"), ablation(lm, TASK, ["L0.head[1]", "L1.neuron[5]"], kind="zero").array
    block = lm.hf.transformer.h
    for cell, weight in enumerate((block[0].attn.c_proj.weight[8:16], block[1].mlp.c_proj.weight[5])):
        with torch.no_grad():
            kept = weight.clone()
            weight.zero_()
            lost = clean - numbers(lm, TASK, "clean")
            weight.copy_(kept)
        np.testing.assert_allclose(scores[:, cell], lost, atol=1e-9)


def test_unknown_kinds_are_refused():
    with pytest.raises(TrimtabError, match='did you mean "resample"'):
        ablation(LM, TASK, "L*.head", kind="resampled")


def test_every_neuron_of_the_last_token_is_what_whole_passes_give():
    fast, naive = (ablation(LM, TASK, "L*.neuron", spans="last", kind="zero", exact=way) for way in ("fast", "naive"))
    assert fast.array.shape == (6, 2, 40, 1)
    assert np.abs(fast.array).max() > 1e-3
    np.testing.assert_allclose(fast.array, naive.array, atol=1e-9)
