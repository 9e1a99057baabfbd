"""Which methods compare a prompt with its twin, and that the others do not look at it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from tests.locate.tinytasks import pairs
from tests.model.tinies import lm_of
from trimtab.errors import PromptError
from trimtab.locate.methods import functions, methods
from trimtab.locate.pairing import read_by
from trimtab.locate.plans import cost
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.fit import fit
from trimtab.tasks.means import mean_difference
from trimtab.tasks.task import Task

TASK = Task(
    "ragged",
    tuple(
        Counterfactual(
            f"w{40 + i} w{10 + i} w{40 + i}",
            f"w{40 + i} w{25 + i} w{40 + i}",
            (f"w{3 + i}",),
            (f"w{9 + i}",),
            group=f"group {i % 3}",
            spans={"subject": f"w{10 + i}"},
            corrupt_spans={"subject": f"w{25 + i}"},
        )
        for i in range(6)
    ),
    metric="logit_diff",
)
"""Prompts of three tokens and twins of three."""
GIVEN = {
    "ablation": {"sites": "L*.head"},
    "activation_magnitude": {"sites": "L*.head"},
    "attention_mass": {"keys": "subject"},
    "causal_tracing": {"samples": 2, "known": "all"},
    "comparative_neurons": {"heads": "L0.head[1]"},
    "fisher": {"sites": "L*.head"},
    "integrated_gradients": {"baseline": "zero", "steps": 2},
    "massive_activations": {"absolute": 0.0, "ratio": 1.0},
    "query_neurons": {"neuron": "L1.neuron[7]"},
    "saliency": {"sites": "L*.head"},
    "taylor": {"sites": "L*.head"},
    "token_scores": {"kind": "integrated_gradients", "baseline": "zero", "steps": 2},
}
ALONE = sorted(name for name, each in functions().items() if read_by(each, GIVEN.get(name, {})) != "both")
BOTH = {
    "atp_star",
    "attribution_patching",
    "audit_scores",
    "fit_monitor",
    "fit_probe",
    "magnitude_contrast",
    "patching",
    "path_patching",
    "probe",
    "score_monitor",
    "shift",
}
"""Methods that compare the two prompts of an example, unless told to compare something else."""
TWINLESS = {
    "activation_probability",
    "composition",
    "dola",
    "head_roles",
    "language_entropy",
    "logit_lens",
    "ov_circuit",
    "ov_copying_score",
    "patchscope",
    "qk_circuit",
    "role_graph",
    "train_tuned_lens",
    "watch",
}
"""Functions that are given no task of twins, or do not look at it."""
PAIRED = {
    "attribution_patching": {},
    "atp_star": {},
    "integrated_gradients": {},
    "patching": {"sites": "L*.head"},
    "path_patching": {"senders": "L*.head", "receivers": "logits"},
    "shift": {"sites": "L*.head"},
    "token_scores": {"kind": "integrated_gradients", "baseline": "corrupt"},
}


def with_longer(task, other):
    """The same task, the `other` prompt of each example one token longer."""
    return task.of([e.with_(**{other: f"{getattr(e, other)} w99"}) for e in task.examples])


def array_of(found):
    return getattr(found, "scores", found).array


@pytest.mark.parametrize("name", ALONE)
def test_one_prompt_is_read_without_a_look_at_its_twin(name):
    """The scores of prompts of three tokens are the same whether their twins have three or four; of either prompt,
    where there is a choice."""
    lm, method, given = lm_of("gpt2", torch.float64), functions()[name], GIVEN.get(name, {})
    side = {"clean": "positive", "corrupt": "negative"}
    parameters = inspect.signature(method).parameters
    option = next((option for option in ("on", "side") if option in parameters), None)
    for read, other in (("clean", "corrupt"), ("corrupt", "clean")):
        if option is None or given.get("kind") == "integrated_gradients":
            if read == "corrupt":
                continue
            chosen = given
        else:
            chosen = {**given, option: read if option == "on" else side[read]}
        assert read_by(method, chosen) == read
        even, ragged = (array_of(method(lm, task, **chosen)) for task in (TASK, with_longer(TASK, other)))
        assert np.isfinite(even).any()
        np.testing.assert_array_equal(ragged, even)


def test_the_methods_that_read_one_prompt():
    assert sorted({*functions()} - BOTH - TWINLESS) == ALONE
    assert {*GIVEN} <= {*ALONE}
    assert {"logit_lens_scores", "layer_contrast", "patchscope_scores", "text_noise", "sink_mass"} <= {*ALONE}
    with_choice = {name for name, each in methods().items() if "on" in inspect.signature(each).parameters}
    assert with_choice <= {*ALONE}


@pytest.mark.parametrize("name", PAIRED)
def test_twins_that_are_compared_have_to_correspond(name):
    """The plan refuses what the method refuses."""
    lm, method, task = lm_of("gpt2"), functions()[name], with_longer(TASK, "corrupt")
    assert read_by(method, PAIRED[name]) == "both"
    with pytest.raises(PromptError, match="do not correspond"):
        method(lm, task, **PAIRED[name])
    with pytest.raises(PromptError, match="do not correspond"):
        cost(method, lm, task, PAIRED[name])


@pytest.mark.parametrize("given", ["source", "differences"])
@pytest.mark.parametrize("name", ["attribution_patching", "shift"])
def test_mean_differences_of_another_task_ask_nothing_of_the_twins_that_are_read(name, given):
    """The corrupt prompts are, and a task that is fitted for these keeps every example."""
    lm, method, ragged = lm_of("gpt2"), functions()[name], with_longer(TASK, "clean")
    made = pairs(8) if given == "source" else mean_difference(lm, pairs(8), "L0.resid_post")
    options = {"sites": ["L0.resid_post"], given: made}
    assert read_by(method, options) == "corrupt"
    assert read_by(method, {"sites": ["L0.resid_post"]}) == "both"
    fitted = fit(lm, ragged, read=read_by(method, options))
    assert not fitted.dropped
    even = method(lm, TASK, **options).array
    np.testing.assert_array_equal(method(lm, fitted.task, **options).array, even)
    assert not np.array_equal(method(lm, with_longer(TASK, "corrupt"), **options).array, even)
    assert cost(method, lm, ragged, options).places == 1
