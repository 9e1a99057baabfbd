"""On transformers made by hand each causal method puts the components that do the work first."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handbuilt import BOTH, EITHER, KEPT, SUBJECTS, bits, both_ways, facts, logic, memory
from tests.locate.mechanisms import (
    CARRIER,
    CASES,
    HEADS,
    INDUCTION,
    METHODS,
    PREVIOUS,
    noised,
    rolled,
    strengths,
    without,
)
from tests.locate.tinytasks import numbers
from trimtab.locate.ablation import ablation
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.direct import direct_logit_attribution
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.knowledge_neurons import knowledge_neurons
from trimtab.locate.neuron_attribution import log_probability_increase
from trimtab.locate.patching import patching
from trimtab.locate.tracing import causal_tracing
from trimtab.values.site import Site

KINDS = ("resample", "mean", "zero")
NEURONS = {
    "patching": lambda lm, task: patching(lm, task, every_neuron(lm)),
    "patching, noise": lambda lm, task: patching(lm, task, every_neuron(lm), direction="noise"),
    **{kind: lambda lm, task, kind=kind: ablation(lm, task, every_neuron(lm), kind=kind) for kind in KINDS},
    "noise": lambda lm, task: noised(lm, task, every_neuron(lm)),
    "attribution patching": lambda lm, task: attribution_patching(lm, task, every_neuron(lm)),
    "integrated gradients": lambda lm, task: integrated_gradients(lm, task, "L*.neuron", spans="all", batch_size=256),
}


def every_neuron(lm):
    return [f"L0.neuron[{i}]" for i in range(lm.shape(Site("neuron", 0))[0])]


def check_first(method, lm, task, heads, wrong):
    """The mean effects of these heads are positive, and each is more than five times the size of any other's; but for
    those of `wrong`, which are this share of the smallest."""
    effects = strengths(method, lm, task)
    least = min(effects[head] for head in heads)
    other = max(abs(effect) for head, effect in np.ndenumerate(effects) if head not in {*heads, *wrong})
    assert least > 5 * other, f"{method} does not put {sorted(heads)} first: {effects.round(3).tolist()}"
    for head, share in wrong.items():
        assert effects[head] == pytest.approx(share * least, rel=0.02), f"{method}: {effects.round(3).tolist()}"


def units(scores, k):
    """The layer and unit of the `k` strongest places."""
    return {(site.layer, *site.index) for site in scores.top(k)}


@pytest.mark.parametrize("name", CASES)
def test_the_models_do_what_they_were_made_for(name):
    """Clean prompts have the answer as the likeliest token of all, and corrupt ones the distractor over it."""
    lm, task = CASES[name].lm(), CASES[name].task()
    assert (numbers(lm, task, "clean") > 0.5).all()
    assert (numbers(lm, task, "corrupt") < -0.5).all()
    said = [lm.run([example.clean]).logits[0, -1] for example in task.examples]
    answers = [lm.token(example.answers[0]) for example in task.examples]
    assert [float(z[answer]) for z, answer in zip(said, answers, strict=True)] == [float(z.max()) for z in said]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_the_heads_that_do_the_work_come_first(name, method):
    case = CASES[name]
    check_first(method, case.lm(), case.task(), case.heads(method), case.wrong.get(method, {}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["a fact", "a copy of another token", "induction, other keys", "and A"])
def test_when_other_heads_do_the_work_they_come_first(name, method):
    case = CASES[name]
    lm = case.lm()
    n = lm.anatomy.n_heads
    heads = {(layer, (head + n // 2) % n) for layer, head in case.heads(method)}
    wrong = {(layer, (head + n // 2) % n): share for (layer, head), share in case.wrong.get(method, {}).items()}
    check_first(method, rolled(lm), case.task(), heads, wrong)


CUTS = {
    "a fact that no neuron holds": ("a fact", CARRIER, {"neurons": {0: list(KEPT.values())}}),
    "a query without a previous-token head": ("induction, another query", INDUCTION, {"heads": {PREVIOUS}}),
    "keys without a previous-token head": ("induction, other keys", INDUCTION, {"heads": {PREVIOUS}}),
    "keys that no induction head has": ("induction, other keys", PREVIOUS, {"heads": {INDUCTION}}),
    "and of one bit": ("and A", (0, 0), {"heads": {(0, 1)}}),
    "and that no neuron makes": ("and B", (0, 1), {"neurons": {0: [BOTH]}}),
    "xor that no neuron makes": ("xor A", (0, 0), {"neurons": {0: [BOTH, EITHER]}}),
}

EXACT = [method for method, (question, _) in METHODS.items() if question != "slope" and method != "mean ablation"]


@pytest.mark.parametrize(
    ("cut", "method"),
    [(cut, m) for cut, (name, head, _) in CUTS.items() for m in EXACT if head in CASES[name].heads(m)],
)
def test_without_its_partner_a_head_does_nothing(cut, method):
    """Slopes and means are left out: the last norm gives even a bit that nobody reads a slope, and the mean of what an
    even head writes is nothing that it ever writes."""
    name, head, gone = CUTS[cut]
    case = CASES[name]
    whole, less = (strengths(method, lm, case.task())[head] for lm in (case.lm(), without(case.lm(), **gone)))
    assert abs(less) < 0.2 * whole


@pytest.mark.parametrize("method", [method for method in NEURONS if method != "noise"])
def test_the_neurons_that_hold_a_fact(method):
    """Example by example: the neuron of the clean or of the corrupt subject is first, and what is idle scores next to
    nothing."""
    task = facts()
    scores = NEURONS[method](memory(), task)
    effects = np.abs(scores.array.reshape(len(task), -1))[:, :16]
    for i, example in enumerate(task.examples):
        mine = {KEPT[int(text.split()[1][1:])] for text in (example.clean, example.corrupt)}
        assert int(effects[i].argmax()) in mine, f"{method} puts neuron {effects[i].argmax()} first, not one of {mine}"
    assert effects[:, len(SUBJECTS) :].max() < 0.05 * effects.max()


def test_noise_finds_the_neurons_that_hold_facts_but_not_whose():
    """A neuron that is silent in this prompt, and has a deviation for being loud in others, says under noise what it
    never says here: some other subject's neuron comes first in half of the prompts."""
    task = facts()
    effects = np.abs(NEURONS["noise"](memory(), task).array.reshape(len(task), -1))[:, :16]
    assert effects[:, len(SUBJECTS) :].max() < 0.05 * effects.max()
    assert effects[:, : len(SUBJECTS)].mean(0).min() > 20 * effects[:, len(SUBJECTS) :].mean(0).max()
    first = effects.argmax(1)
    own = [{KEPT[int(text.split()[1][1:])] for text in (e.clean, e.corrupt)} for e in task.examples]
    assert sum(int(neuron) in mine for neuron, mine in zip(first, own, strict=True)) <= len(task) // 2


def test_noise_cancels_in_what_goes_straight_to_the_logits():
    """The induction head, which zeroing shows to matter, changes every prompt's number under noise, by as much one way
    as the other; the head that it reads, behind a softmax, can only lose."""
    case = CASES["induction, another query"]
    lm, task = case.lm(), case.task()
    draws = np.concatenate([ablation(lm, task, HEADS, kind="noise", sigma=3.0, seed=i).array for i in range(16)])[
        ..., 0
    ]
    lost, apart = draws.mean(0), draws.std(0)
    assert abs(lost[INDUCTION]) < 3 * apart[INDUCTION] / np.sqrt(len(draws)) < 0.2 * lost[PREVIOUS]
    assert apart[INDUCTION] > 0.5
    assert ablation(lm, task, HEADS, kind="zero").mean()[(*INDUCTION, 0)] > 1.5
    assert draws[(slice(None), *PREVIOUS)].min() > 1.0


def test_tracing_finds_the_subject_and_then_the_last_token():
    """Under noise at the subject, its stream restores the answer up to where the head has read it, the last token's
    after; and of the MLPs that of L0 at the subject."""
    lm, task = memory(), facts()
    stream = causal_tracing(lm, task, "L*.resid_post", spans=("subject", "last"), noise=3.0, samples=4)
    subject, last = stream.mean()[0, 0], stream.mean()[1, 1]
    assert subject > 0.3
    assert last > 0.3
    assert np.abs([stream.mean()[0, 1], stream.mean()[1, 0]]).max() < 0.2 * min(subject, last)
    for name, layer, span in (("mlp_out", 0, "subject"), ("attn_out", 1, "-1")):
        found = causal_tracing(lm, task, f"L*.{name}", spans=("subject", "last"), window=1, samples=4)
        assert str(found.top(1)[0]) == f"L{layer}.{name}@{span}"


def test_a_severed_mlp_is_the_memory():
    """With the subject's MLPs held at what they gave under noise, its restored embedding does nothing; with its
    attention held, as much as before."""
    lm, task = memory(), facts()
    options = {"spans": ("subject",), "samples": 4}
    plain, mlp, attention = (
        float(causal_tracing(lm, task, "embed", **options, severed=s).mean().ravel()[0]) for s in (None, "mlp", "attn")
    )
    assert abs(mlp) < 0.2 * plain
    assert attention == pytest.approx(plain, rel=0.2)


def test_direct_methods_find_what_writes_the_answer():
    lm, task = memory(), facts()
    assert units(direct_logit_attribution(lm, task, "L*.head"), 1) == {(1, 0)}
    assert units(log_probability_increase(lm, task, "L*.head"), 1) == {(1, 0)}


@pytest.mark.parametrize("method", NEURONS)
@pytest.mark.parametrize(("rule", "turned"), [(rule, turned) for rule in ("and", "xor") for turned in "AB"])
def test_the_neurons_that_make_the_rule(rule, turned, method):
    """Among prompts of both kinds "either" fires in each, so "both" makes the difference; in "and" alone, in "xor" with
    the other one second."""
    sizes = np.abs(NEURONS[method](logic(rule), both_ways(bits(rule, turned))).mean()).reshape(-1)[:12]
    order = np.argsort(-sizes)
    made = [BOTH] if rule == "and" else [BOTH, EITHER]
    assert order[: len(made)].tolist() == made
    assert sizes[made[-1]] > 100 * sizes[order[len(made)]]


def test_a_neuron_that_fires_in_all_prompts_alike_is_found_by_zero_alone():
    """Where one bit is on, "xor" is made by "either"; to resample, average or blur it there changes nothing."""
    lm, task = logic("xor"), bits("xor", "A")
    assert units(NEURONS["zero"](lm, task), 1) == {(0, EITHER)}
    kinds = (*KINDS, "noise")
    lost = {kind: float(ablation(lm, task, f"L0.neuron[{EITHER}]", kind=kind).mean()[0]) for kind in kinds}
    assert lost["zero"] > 10
    assert max(abs(lost["resample"]), abs(lost["mean"]), abs(lost["noise"])) < 0.01


def test_both_bits_are_needed_for_and():
    """Ablated one at a time, either head breaks "and"; the idle ones do nothing."""
    lm, task = logic("and"), bits("and", "A")
    lost = ablation(lm, task, "L*.head", kind="zero").mean()[..., 0]
    assert lost[0].min() > 3.0
    assert np.abs(lost[1]).max() < 0.1 * lost[0].min()


def test_the_last_answer_is_held_by_the_neuron_at_the_last_position():
    """Knowledge neurons, whose path runs from 0 to the activation at the last position."""
    scores = knowledge_neurons(logic("and"), bits("and", "A"))
    assert units(scores, 1) == {(0, BOTH)}
