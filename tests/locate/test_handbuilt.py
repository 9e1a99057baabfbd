"""On transformers made by hand each causal method puts the components that do the work first."""

from __future__ import annotations

import numpy as np
import pytest

from tests.handbuilt import BOTH, CARRIER, EITHER, KEPT, SUBJECTS, bits, facts, logic, memory
from tests.locate.tinytasks import numbers
from tests.locate.wired import wired
from tests.tiny import words
from trimtab.locate.ablation import ablation
from trimtab.locate.atp_star import atp_star
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.direct import direct_logit_attribution
from trimtab.locate.integrated_gradients import integrated_gradients
from trimtab.locate.knowledge_neurons import knowledge_neurons
from trimtab.locate.neuron_attribution import log_probability_increase
from trimtab.locate.patching import patching
from trimtab.locate.path_patching import path_patching
from trimtab.locate.tracing import causal_tracing
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task
from trimtab.values.site import Site

HEADS = {
    "patching": lambda lm, task: patching(lm, task, "L*.head", spans="all"),
    "necessity": lambda lm, task: patching(lm, task, "L*.head", spans="all", direction="noise"),
    "resample": lambda lm, task: ablation(lm, task, "L*.head"),
    "mean": lambda lm, task: ablation(lm, task, "L*.head", kind="mean"),
    "zero": lambda lm, task: ablation(lm, task, "L*.head", kind="zero"),
    "attribution patching": lambda lm, task: attribution_patching(lm, task, "L*.head", spans="all"),
    "AtP*": lambda lm, task: atp_star(lm, task, "L*.head", spans="all"),
    "AtP* without GradDrop": lambda lm, task: atp_star(lm, task, "L*.head", spans="all", grad_drop=False),
    "integrated gradients": lambda lm, task: integrated_gradients(lm, task, "L*.head", spans="all"),
}
NEURONS = {
    "patching": lambda lm, task: patching(lm, task, every_neuron(lm)),
    "resample": lambda lm, task: ablation(lm, task, every_neuron(lm)),
    "mean": lambda lm, task: ablation(lm, task, every_neuron(lm), kind="mean"),
    "zero": lambda lm, task: ablation(lm, task, every_neuron(lm), kind="zero"),
    "attribution patching": lambda lm, task: attribution_patching(lm, task, every_neuron(lm)),
    "integrated gradients": lambda lm, task: integrated_gradients(lm, task, "L*.neuron", spans="all"),
}


def every_neuron(lm):
    return [f"L0.neuron[{i}]" for i in range(lm.shape(Site("neuron", 0))[0])]


def units(scores, k):
    """The layer and unit of the `k` strongest places."""
    return {(site.layer, *site.index) for site in scores.top(k)}


def test_the_models_do_what_they_were_made_for():
    """Clean prompts have the answer as the likeliest token of all, and corrupt ones the distractor over it."""
    lm, task = memory(), facts()
    prompts = lm.prompts([e.clean for e in task.examples])
    best = lm.run(prompts).logits[:, -1].argmax(-1)
    assert best.tolist() == [lm.token(e.answers[0]) for e in task.examples]
    for lm, task in [(memory(), facts()), *((logic(r), bits(r, t)) for r in ("and", "xor") for t in "AB")]:
        assert (numbers(lm, task, "clean") > 0.5).all()
        assert (numbers(lm, task, "corrupt") < -0.5).all()


@pytest.mark.parametrize("method", HEADS)
def test_the_head_that_carries_an_attribute(method):
    scores = HEADS[method](memory(), facts())
    first, second = scores.top(2)
    assert (first.layer, first.index) == (1, (0,)), f"{method} puts {first} before {CARRIER}"
    means = np.sort(np.abs(scores.mean()).ravel())
    assert means[-1] > 5 * means[-2], f"{second} does nothing"


@pytest.mark.parametrize("method", NEURONS)
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


def test_the_path_runs_from_the_head_to_the_logits():
    scores = path_patching(memory(), facts(), "L*.head", "logits")
    assert str(scores.top(1)[0].source.with_(at=None)) == CARRIER


def test_direct_methods_find_what_writes_the_answer():
    lm, task = memory(), facts()
    assert units(direct_logit_attribution(lm, task, "L*.head"), 1) == {(1, 0)}
    assert units(log_probability_increase(lm, task, "L*.head"), 1) == {(1, 0)}


def induction():
    """Two pairs and the first token of one of them again, after which its second comes. The twin asks for the other
    pair, by its last token; or has the first tokens of the pairs exchanged, so that only the keys differ."""
    rng, asked, exchanged = np.random.default_rng(0), [], []
    for i in range(6):
        a, b, x, y = rng.permutation(np.arange(5, 35))[:4].tolist()
        told = {"answers": (f"w{b}",), "distractors": (f"w{y}",), "group": str(i)}
        clean = words(a, b, 36, x, y, 37, a)
        asked.append(Counterfactual(clean, words(a, b, 36, x, y, 37, x), **told))
        spans = {"answer": f"w{b}"}
        exchanged.append(Counterfactual(clean, words(x, b, 36, a, y, 37, a), **told, spans=spans))
    return Task("asked", tuple(asked)), Task("exchanged", tuple(exchanged))


@pytest.mark.parametrize("grad_drop", [True, False])
@pytest.mark.parametrize("part", ["q", "k"])
def test_the_query_and_the_keys_of_an_induction_head(part, grad_drop):
    """L1.head[0] looks where the token before was this one: at its query the repeated token tells, at its keys what
    L0.head[0] has written; the other receivers of its layer do nothing."""
    asked, exchanged = induction()
    task, spans = (asked, "end") if part == "q" else (exchanged, "answer")
    scores = atp_star(wired(), task, f"L*.{part}", spans=spans, grad_drop=grad_drop)
    assert scores.options["applied"] == [part, *(["grad_drop"] if grad_drop else [])]
    assert units(scores, 1) == {(1, 0)}
    sizes = np.sort(np.abs(scores.mean()).ravel())
    assert sizes[-1] > 5 * sizes[-2]
    assert units(patching(wired(), task, f"L*.{part}", spans=spans), 1) == {(1, 0)}


@pytest.mark.parametrize("rule", ["and", "xor"])
@pytest.mark.parametrize(("turned", "head"), [("A", 0), ("B", 1)])
@pytest.mark.parametrize("method", [m for m in HEADS if m not in ("resample", "mean", "zero")])
def test_the_head_that_carries_the_turned_bit(rule, turned, head, method):
    scores = HEADS[method](logic(rule), bits(rule, turned))
    assert units(scores, 1) == {(0, head)}


@pytest.mark.parametrize("rule", ["and", "xor"])
@pytest.mark.parametrize("turned", ["A", "B"])
def test_the_neurons_that_make_the_rule(rule, turned):
    """Which of them is moved by the turned bit is known: "either" fires in both prompts, so "both" makes the
    difference."""
    lm, task = logic(rule), bits(rule, turned)
    scores = NEURONS["patching"](lm, task)
    assert units(scores, 1) == {(0, BOTH)}
    zero = NEURONS["zero"](lm, task)
    assert units(zero, 1) == {(0, BOTH if rule == "and" else EITHER)}


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
