"""Studies of every metric: each comes to a verdict, and of each what is picked makes more of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trimtab
from tests.model.tinies import fresh
from tests.studies.small import contrast, counterfactual, study
from trimtab.errors import EditError, SiteError, StudyError, TaskError
from trimtab.locate.methods import methods, unfit
from trimtab.locate.slopes import does_differentiate
from trimtab.model.protocols import Readout
from trimtab.studies.context import Context
from trimtab.studies.locating import check_gradients
from trimtab.studies.plan import plan
from trimtab.studies.settings import Settings
from trimtab.studies.shuffled import gradients
from trimtab.studies.study import Study
from trimtab.tasks.divergence import kl_to_clean
from trimtab.tasks.means import mean_difference
from trimtab.tasks.metrics import BY_NAME, NAMES, has_gradient
from trimtab.values.site import Site

ONCE = {"draws": 2, "samples": 0, "coefficients": (2.0,), "scopes": ("all",)}
FEW = {"objects": ("resid_post",), **ONCE}


def screens(metric):
    return ("magnitude_contrast", "attribution_patching") if has_gradient(metric) else ("magnitude_contrast",)


@pytest.mark.parametrize("metric", NAMES)
def test_a_study_of_every_metric_comes_to_a_verdict(metric, tmp_path):
    made = study(tmp_path, contrast().with_(metric=metric), screens=screens(metric), **FEW).run()
    assert made.folder.state.status == "finished"
    assert made.verdict.outcome in ("found", "not beaten", "not found")
    assert np.isfinite(made.evaluation.outcome.before).all()
    if made.evaluation.controls:
        unit = made.evaluation.outcome.unit
        words = {"nat": "nats", "logit": "logits", "nat/token": "nat/token", "ranks": "ranks", "share": "share"}
        assert f", in {words.get(unit, unit)}: " in str(made.verdict)
    assert made.evaluation.outcome.metric.startswith("log_likelihood" if metric not in BY_NAME else metric)


@pytest.mark.parametrize("metric", ["rank", "accuracy"])
def test_also_of_counterfactual_tasks(metric, tmp_path):
    made = study(tmp_path, counterfactual().with_(metric=metric), screens=screens(metric), **FEW).run()
    assert made.folder.state.status == "finished"


def test_the_point_that_is_picked_brings_the_answer_nearer_to_the_top(tmp_path):
    """Ranks from plain passes over the questions of the validation part, with and without the picked intervention.

    The answer is the word that the last layer's mean difference speaks for most, so that something can be picked.
    """
    lm, task = fresh("llama", check=False), contrast()
    difference = mean_difference(lm, task, ["L1.resid_post"]).difference(Site("resid_post", 1))
    ids = {word: lm.token(word) for word in (f"w{i}" for i in range(20, 40))}
    logits = lm.unembed(torch.as_tensor(difference, dtype=torch.float32)).detach()
    word = max(ids, key=lambda word: float(logits[ids[word]]))
    task = task.of([e.with_(answers=(word,), distractors=("w13",)) for e in task.examples]).with_(metric="rank")
    made = study(tmp_path, task, lm, screens=("magnitude_contrast",), objects=("resid_post",), kl_limit=50.0, **ONCE)
    made.run()
    assert made.search.picked is not None, "a study that picks nothing shows nothing"
    prompts = lm.prompts([e.question for e in made.parts.validation.examples])
    ranks = []
    for edit in (None, made.search.intervention):
        logits = lm.run(prompts, edit=edit).logits[:, -1]
        ranks.append(float(1 + (logits > logits[:, [ids[word]]]).sum(-1).double().mean()))
    assert ranks[1] < ranks[0]
    assert made.search.points[made.search.picked].effect.mean == pytest.approx(ranks[0] - ranks[1])
    assert made.search.unit == "ranks"


@pytest.mark.parametrize("metric", ["rank", "accuracy"])
def test_screens_without_a_gradient_to_read_are_refused_before_anything_is_run(metric, tmp_path):
    made = study(tmp_path, contrast().with_(metric=metric))
    told = f"screens: attribution_patching reads gradients .*{metric} has none.*" + r'\["magnitude_contrast"\].*probe'
    for work in (made.run, lambda: plan(made)):
        with pytest.raises(StudyError, match=told):
            work()
    assert made.folder is None


def test_a_readout_made_for_its_rows_is_refused_before_anything_is_run(tmp_path):
    """A study reads parts of its task, of which each would get the numbers of other examples."""
    lm, task = fresh("llama", check=False), counterfactual()
    near = task.with_(metric=kl_to_clean(lm, task))
    made = trimtab.study(near, model=lm, store=tmp_path, screens=["magnitude_contrast"])
    for work in (made.check, made.run, lambda: plan(made)):
        with pytest.raises(StudyError, match="kl_to_clean was made for 52 examples, and a study parts its task"):
            work()
    assert made.folder is None
    anywhere = Readout(lambda logits, rows: logits[:, -1, 10], name="of any rows")
    study(tmp_path, task.with_(metric=anywhere)).check()


def test_a_metric_of_ones_own_says_that_it_has_no_gradient(tmp_path):
    def first(logits, rows):
        return (logits[:, -1].argmax(-1) == 10).to(logits.dtype)

    check_gradients(("saliency",), first)
    first.differentiable = False
    with pytest.raises(StudyError, match="screens: saliency reads gradients of the metric, and first has none"):
        check_gradients(("saliency", "probe"), first)
    check_gradients(("probe",), first)
    made = study(tmp_path, contrast().with_(metric=first), screens=("magnitude_contrast",), **FEW).run()
    assert made.folder.state.status == "finished"


@pytest.mark.parametrize("name", sorted(n for n, m in methods().items() if unfit(m) is None))
def test_methods_that_read_gradients_of_the_metric_are_marked_and_no_others(name):
    """Each can do a metric that has a gradient, and those that are marked cannot do one that has none."""
    lm, method = fresh("gpt2", check=False), methods()[name]

    def works(metric: str) -> bool:
        for task in (counterfactual(3, 2), contrast(3, 2)):
            for sites in ("L*.resid_post", "L*.head", "L*.neuron"):
                try:
                    method(lm, task.with_(metric=metric), sites)
                    return True
                except EditError as error:
                    return "its gradient says nothing" not in str(error)
                except (TaskError, SiteError):
                    continue
        return True

    assert works("log_prob_diff")
    assert works("rank") is not does_differentiate(method)


@pytest.mark.parametrize("make", [contrast, counterfactual])
def test_what_promises_most_is_read_from_a_metric_that_has_a_gradient(make, tmp_path):
    site = Site("resid_post", 0)
    found = {}
    for metric in ("rank", "log_prob_diff", "logit_diff"):
        made = study(tmp_path, make().with_(metric=metric), screens=("magnitude_contrast",))
        context = Context(made.lm, made.parts, made.settings, lambda what, share: None)
        found[metric] = gradients(context, [site])[site]
    assert np.any(found["rank"])
    np.testing.assert_allclose(found["rank"], found["log_prob_diff"], rtol=1e-5)


def test_a_metric_without_a_gradient_that_does_not_say_so_is_told_how():
    def top(logits, rows):
        return logits[:, -1].argmax(-1).to(logits.dtype)

    with pytest.raises(SiteError, match=r"top does not depend on .*nothing to differentiate.*differentiable=False"):
        methods()["saliency"](fresh("llama", check=False), contrast(3, 2).with_(metric=top), "L*.resid_post")


def test_the_metric_of_a_built_in_task_is_a_setting():
    settings = Settings.of(task="sentiment", metric="rank", instruction="Praise it.", poles=("good", "bad"))
    task = Study(settings)._whole
    assert (task.metric, task.instruction, task.poles) == ("rank", "Praise it.", ("good", "bad"))
