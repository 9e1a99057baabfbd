"""K-steering: steps down the loss of a probe with several labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluate.tinies import questions
from tests.locate.tinytasks import pairs
from tests.model.tinies import IDS, lm_of
from tests.steer.planting import PLANTED, cosine, ending, is_cached_right, is_nothing_at_zero, planted, swapped
from tests.tiny import FAMILIES
from trimtab.errors import EditError, TaskError
from trimtab.steer.both_sides import both_sides
from trimtab.steer.k_steering import k_steering, labels_of, probe_of
from trimtab.values.edit import Edit, Intervention, Probe

LM = lm_of("llama", torch.float64)
TASK = questions(10)
TASKS = [TASK, pairs(8, name="pairs")]
SITE = "L0.resid_post"
FORMS = [
    (1, (), "softmax"),
    ((0, 2), (), "softmax"),
    ((), (1,), "softmax"),
    ((2,), (0, 1), "softmax"),
    (1, (), "sigmoid"),
    ((0, 2), (1,), "sigmoid"),
    ((), (0, 1), "sigmoid"),
]


def loss_of(x, probe):
    """The loss of a probe at x, as its docstring says it; independent of the code that descends."""
    z = x @ torch.tensor(probe.weight, dtype=x.dtype).T + torch.tensor(probe.bias, dtype=x.dtype)
    p = torch.softmax(z, -1) if probe.loss == "softmax" else torch.sigmoid(z)
    loss = torch.zeros_like(z[..., 0])
    for label in probe.targets:
        loss = loss - p[..., label].log() / len(probe.targets)
    for label in probe.avoid:
        loss = loss - (1 - p[..., label]).log() / len(probe.avoid)
    return loss


def stepped(probe, lm=LM, site=SITE, strength=1.0):
    """The site without and with the step."""
    edit = Edit(site, "gradient", probe, strength=strength)
    return (lm.run(IDS, site, edit=each)[site] for each in (None, edit))


@pytest.mark.parametrize(("target", "avoid", "loss"), FORMS)
@pytest.mark.parametrize("strength", [1.0, 0.3, -2.0])
def test_the_step_is_the_gradient_of_the_loss(target, avoid, loss, strength):
    rng = np.random.default_rng(0)
    probe = Probe(rng.standard_normal((3, 32)) / 9, rng.standard_normal(3), target, 0.3, avoid, loss)
    x, y = stepped(probe, strength=strength)
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(x, probe).sum(), x)
    torch.testing.assert_close(y, (x - strength * 0.3 * slope).detach())
    before, after = (loss_of(each, probe) for each in stepped(probe.with_(step=1e-3)))
    assert bool((after < before).all())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_probe_far_from_its_labels_stays_finite(loss):
    """Logits of ±10⁴, where 1 − p is zero in floating point."""
    weight = np.random.default_rng(1).standard_normal((3, 32)) * 1e4
    for target, avoid in ((0, ()), ((), (1,)), ((0,), (1, 2))):
        _, y = stepped(Probe(weight, np.zeros(3), target, 1e-6, avoid, loss))
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("tasks", [TASK, TASKS], ids=["one", "two"])
def test_strength_one_goes_as_far_as_the_means_lie_apart(tasks, loss):
    listed = [tasks] if tasks is TASK else tasks
    made = k_steering(LM, tasks, SITE, loss=loss)
    (edit,) = made
    at = [both_sides(LM, task, SITE)[0] for task in listed]
    assert edit.value.targets == tuple(range(0, 2 * len(listed), 2))
    away = np.concatenate([both.negative for both in at])
    x = torch.tensor(away, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_of(x, edit.value).sum(), x)
    apart = np.mean([both.positive.mean(0) for both in at], 0) - np.mean([both.negative.mean(0) for both in at], 0)
    moved = edit.value.step * slope.norm(dim=1)
    assert float(moved.mean()) == pytest.approx(np.linalg.norm(apart), rel=1e-4)
    assert (
        loss_of(torch.tensor(away) - 0.1 * edit.value.step * slope, edit.value).mean() < loss_of(x, edit.value).mean()
    )


@pytest.mark.parametrize("option", ["target", "avoid"])
def test_with_a_probe_for_each_task_the_unit_is_that_of_the_tasks_that_are_named(option):
    """How far the texts of two tasks lie apart is in no step."""
    sides = {"target": "positive", "avoid": "negative"}
    (one,) = k_steering(LM, TASK, SITE, loss="sigmoid", **{option: sides[option]})
    (both,) = k_steering(LM, TASKS, SITE, loss="sigmoid", **{option: f"questions:{sides[option]}"})
    assert both.value.step == pytest.approx(one.value.step, rel=1e-6)
    x, y, z = (LM.run(IDS, SITE, edit=each)[SITE] for each in (None, one, both))
    torch.testing.assert_close(z - x, y - x)
    (joint,) = k_steering(LM, TASKS, SITE, **{option: f"questions:{sides[option]}"})
    (alone,) = k_steering(LM, TASK, SITE, **{option: sides[option]})
    assert joint.value.step != pytest.approx(alone.value.step, rel=1e-2), "one holds of all: the others are left"
    (every,) = k_steering(LM, TASKS, SITE, loss="sigmoid", target=("questions:positive", "questions:negative"))
    assert np.isfinite(every.value.step)


def test_the_step_goes_towards_the_positive_side_and_fades_there():
    (edit,) = k_steering(planted(), ending(), "L0.resid_pre", read="last")
    moved = {}
    for word in ("w40", "w41"):
        x, y = (planted().run(f"w7 {word}", "L0.resid_pre", edit=each)["L0.resid_pre"][0, -1] for each in (None, edit))
        moved[word] = (y - x).numpy()
    assert moved["w40"] @ PLANTED > 0
    assert np.linalg.norm(moved["w40"]) == pytest.approx(np.linalg.norm(PLANTED), rel=1e-5), "all examples are there"
    far = planted().run("w7 w41", "L0.resid_pre")["L0.resid_pre"][0, -1].numpy() + 5 * PLANTED
    x = torch.tensor(far, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_of(x, edit.value), x)
    assert edit.value.step * float(slope.norm()) < 0.2 * np.linalg.norm(PLANTED)


def test_labels_are_recognised():
    """On the activations that it was trained on, the probe gives each side its own label the largest logit."""
    for loss in ("softmax", "sigmoid"):
        (edit,) = k_steering(LM, TASKS, SITE, loss=loss, C=100.0)
        sides = [
            side for task in TASKS for both in both_sides(LM, task, SITE) for side in (both.positive, both.negative)
        ]
        for label, rows in enumerate(sides):
            z = rows @ edit.value.weight.T + edit.value.bias
            other = label + 1 - 2 * (label % 2)
            assert np.mean(z[:, label] > z[:, other]) > 0.9
            if loss == "sigmoid":
                np.testing.assert_allclose(z[:, label], -z[:, other], atol=1e-3)


def test_the_labels_of_one_task_and_of_several():
    assert labels_of([TASK]) == ["positive", "negative"]
    assert labels_of(TASKS) == ["questions:positive", "questions:negative", "pairs:positive", "pairs:negative"]
    assert k_steering(LM, TASK, SITE) == k_steering(LM, TASK, SITE, target="positive") == k_steering(LM, [TASK], SITE)
    made = k_steering(LM, TASKS, SITE, target="pairs:positive", avoid=("questions:negative", "pairs:negative"))
    assert (made.edits[0].value.target, made.edits[0].value.avoid) == (2, (1, 3))
    assert made.name == "K-steering to pairs:positive, not questions:negative, not pairs:negative"
    only = k_steering(LM, TASKS, SITE, avoid="pairs:negative", loss="sigmoid")
    assert (only.edits[0].value.targets, only.edits[0].value.avoid) == ((), (3,))
    with pytest.raises(TaskError, match="need names of their own"):
        k_steering(LM, [TASK, TASK], SITE)


def test_avoiding_one_of_two_labels_is_reaching_the_other():
    reach, leave = (k_steering(LM, TASK, SITE, **option) for option in ({"target": "positive"}, {"avoid": "negative"}))
    torch.testing.assert_close(LM.run(IDS, edit=reach).logits, LM.run(IDS, edit=leave).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(LM.run(IDS, edit=reach).logits, LM.run(IDS).logits, atol=1e-2)


def test_swapped_sides_are_the_other_label():
    ahead, back = k_steering(LM, TASK, SITE, target="negative"), k_steering(LM, swapped(TASK), SITE, target="positive")
    x, y = (LM.run(IDS, SITE, edit=each)[SITE] - LM.run(IDS, SITE)[SITE] for each in (ahead, back))
    torch.testing.assert_close(x, y, atol=2e-3 * float(x.abs().max()), rtol=0)


def test_what_cannot_be_is_refused():
    with pytest.raises(
        EditError, match='target: no label "postive" \\(did you mean "positive"\\?\\): there are positive,'
    ):
        k_steering(LM, TASK, SITE, target="postive")
    with pytest.raises(EditError, match='avoid: no label "sad"'):
        k_steering(LM, TASK, SITE, avoid=("sad",))
    with pytest.raises(EditError, match="both in target and in avoid"):
        k_steering(LM, TASK, SITE, target="positive", avoid="positive")
    with pytest.raises(EditError, match="target names every label"):
        k_steering(LM, TASK, SITE, target=("positive", "negative"))
    with pytest.raises(EditError, match="target and avoid are empty"):
        k_steering(LM, TASK, SITE, target=())
    with pytest.raises(EditError, match="loss is one of softmax, sigmoid, got 'sigmiod' \\(did you mean \"sigmoid\""):
        k_steering(LM, TASK, SITE, loss="sigmiod")
    with pytest.raises(EditError, match="a gradient step acts on one vector"):
        k_steering(LM, TASK, "L1.head")
    with pytest.raises(EditError, match="embed: what is to be left and what is to be reached have the same mean"):
        k_steering(LM, TASK, "embed", read="0")


def test_progress_counts_the_prompts_of_all_tasks():
    told = []
    k_steering(LM, TASKS, SITE, progress=lambda *n: told.append(n))
    assert told[-1] == (2 * sum(map(len, TASKS)),) * 2
    assert told == sorted(told)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    lm = lm_of(family)
    for site, whole in ((SITE, SITE), ("L1.head[1]", "L1.head")):
        made = k_steering(lm, TASK, site, strength=0.05)
        x, y = (lm.run(IDS, whole, edit=each)[whole] for each in (None, made))
        x, y = (each if whole == site else each[:, :, 1] for each in (x, y))
        before, after = (loss_of(each.double(), made.edits[0].value).mean() for each in (x, y))
        assert after < before


def test_nothing_at_strength_zero_and_the_same_with_a_cache():
    sites = [SITE, "L1.head[2]", "L1.mlp_out"]
    is_nothing_at_zero(lambda lm, **options: k_steering(lm, TASK, sites, **options))
    is_cached_right(lambda lm, **options: k_steering(lm, TASK, sites, strength=20.0, **options))


# The probe as a value
# ---------------------------------------------------------------------------------------------------------------------


def test_a_probe_of_one_target_is_what_it_was(tmp_path):
    weight, bias = np.ones((2, 4)), np.zeros(2)
    one = Probe(weight, bias, 1, 0.5)
    assert one == Probe(weight, bias, (1,), 0.5, (), "softmax")
    assert repr(one) == "Probe(weight=array(2, 4), bias=array(2,), target=1, step=0.5)"
    for probe in (one, Probe(weight, bias, (), 0.5, [1, 0], "sigmoid"), Probe(weight, bias, (0, 1), 0.5)):
        made = Intervention.of(Edit(SITE, "gradient", probe))
        made.save(tmp_path / "it")
        assert Intervention.load(tmp_path / "it") == made
        assert Intervention.load(tmp_path / "it").edits[0].value.targets == probe.targets
    assert one != Probe(weight, bias, 1, 0.5, loss="sigmoid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ()}, "neither target nor avoid"),
        ({"target": (0, 1), "avoid": (1,)}, "both name class 1"),
        ({"target": 0, "avoid": (2,)}, "Probe.avoid must be one of the 2 classes, 0 to 1, got 2"),
        ({"target": (0, 5)}, "Probe.target must be one of the 2 classes, 0 to 1, got 5"),
        ({"target": -1}, "Probe.target must be a whole number"),
        ({"target": 0, "loss": "mse"}, 'Probe.loss is "softmax" or "sigmoid"'),
        ({"weight": np.ones((1, 4)), "bias": np.ones(1), "target": (), "avoid": (0,)}, "whose softmax is always 1"),
    ],
)
def test_probes_that_say_nothing_are_refused(options, message):
    with pytest.raises(EditError, match=message):
        Probe(**{"weight": np.ones((2, 4)), "bias": np.zeros(2), "step": 1.0} | options)


def test_the_probe_of_a_site_names_its_step():
    both = both_sides(LM, TASK, SITE)
    made, other = probe_of(both, [0], [], "softmax"), probe_of(both, [], [1], "softmax")
    assert made.step == pytest.approx(other.step, rel=1e-6)
    assert cosine(made.weight[0], both[0].difference) > 0
    np.testing.assert_allclose(made.weight[0], -made.weight[1])
