"""Scoring monitors: what is planted is found on held-out groups, and every number is one that can be worked out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from scipy.stats import t as student
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from tests.locate.tinytasks import pairs, planted
from trimtab.errors import TaskError
from trimtab.locate.monitor_report import _calibration, _estimate, _rate, score_monitor
from trimtab.locate.monitors import fit_monitor
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import sides
from trimtab.values.monitor import MonitorReport, auroc, calibration_error

TRAIN, TEST = pairs(16, groups=4, name="train"), pairs(12, groups=3, start=60, name="test")
SITE = "L1.resid_post"


@pytest.mark.parametrize("calibration", ["platt", "isotonic"])
def test_what_is_planted_is_found_on_held_out_groups(calibration):
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, SITE, calibration=calibration)
    report = score_monitor(lm, monitor, TEST)
    assert report.auroc.mean > 0.95
    assert report.balanced_accuracy.mean > 0.9
    assert report.ece.mean < 0.3
    null = [score_monitor(lm, fit_monitor(lm, TRAIN.shuffled(seed), SITE), TEST).auroc.mean for seed in range(6)]
    assert np.mean(null) < report.auroc.mean - 0.2
    assert str(report).startswith("train at L1.resid_post on test, 12 examples in 3 groups")


def test_a_report_is_what_can_be_worked_out_from_activations():
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, SITE, validation=pairs(12, groups=3, start=50, name="validation"), C=1e-4)
    report = score_monitor(lm, monitor, TEST, bins=5)
    means = mean_difference(lm, TEST, SITE)
    p, n = (side @ monitor.probe.direction.astype(float) + monitor.probe.bias for side in means.sides(SITE))
    np.testing.assert_allclose(report.positive, p, rtol=1e-5)
    margins, labels = np.concatenate([p, n]), np.repeat([1, 0], 12)
    assert report.auroc.mean == pytest.approx(roc_auc_score(labels, margins))
    probability = monitor.probability(margins)
    true, said = calibration_curve(labels, probability, n_bins=5)
    counts = np.histogram(probability, np.linspace(0, 1, 6))[0]
    assert report.ece.mean == pytest.approx(np.abs(true - said) @ counts[counts > 0] / 24, abs=1e-9)
    found, alarmed = p > monitor.threshold, n > monitor.threshold
    assert report.true_positive_rate.mean == found.mean()
    assert report.false_positive_rate.mean == alarmed.mean()
    assert report.balanced_accuracy.mean == pytest.approx((found.mean() + 1 - alarmed.mean()) / 2)
    assert [part.n for part in report.by_group] == [4, 4, 4]
    assert np.mean([part.balanced_accuracy for part in report.by_group]) == pytest.approx(report.balanced_accuracy.mean)
    assert report.worst.balanced_accuracy == min(part.balanced_accuracy for part in report.by_group)


def test_the_streaming_rates_are_those_of_the_texts():
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, SITE, false_positive_rate=0.25, least_tokens=2)
    report = score_monitor(lm, monitor, TEST)
    rates = []
    for side in sides(lm, TEST):
        flagged = []
        for row in range(len(TEST)):
            one = side.rows([row], trim=True)
            margins = monitor.margin(lm.run(one, SITE, logits=False)[SITE][0].double().numpy())[1:]
            so_far = np.cumsum(margins) / np.arange(1, len(margins) + 1)
            flagged.append((so_far[1:] > monitor.stream_threshold).any())
        rates.append(np.mean(flagged))
    assert report.stream_true_positive_rate.mean == pytest.approx(rates[0])
    assert report.stream_false_positive_rate.mean == pytest.approx(rates[1])
    assert monitor.stream_threshold != monitor.threshold


def test_what_a_monitor_was_fitted_or_calibrated_on_does_not_judge_it():
    """Whatever the groups are called: by a text that both have, and by no name."""
    lm = planted()
    validation = pairs(12, groups=3, start=50, name="validation")
    monitor = fit_monitor(lm, TRAIN, SITE, validation=validation, kind="difference")
    renamed = TRAIN.of([example.with_(group=f"new {i}") for i, example in enumerate(TRAIN.examples)])
    for task in (TRAIN, renamed, validation, TEST.of([*TEST.examples, TRAIN.examples[0]])):
        with pytest.raises(TaskError, match="fitted or calibrated on a text of ") as refused:
            score_monitor(lm, monitor, task)
        assert (TRAIN if task is not validation else validation).examples[0].positive[:57] in str(refused.value)
    namesake = TEST.of([example.with_(group=TRAIN.examples[i].group) for i, example in enumerate(TEST.examples)])
    score_monitor(lm, monitor, namesake)


def test_right_probabilities_are_not_said_to_be_wrong():
    """Labels drawn by the very probabilities: the error is never 0, and its interval has 0 in it."""
    rng, found, errors, chance = np.random.default_rng(0), [], [], []
    for _ in range(100):
        margins = rng.normal(0, 2, 600)
        labels = rng.random(600) < 1 / (1 + np.exp(-margins))
        p = 1 / (1 + np.exp(-np.stack([margins[labels][:60], margins[~labels][:60]])))
        groups = tuple(f"{i % 40}" for i in range(60))
        estimate, expected = _calibration(p, groups, 10, samples=200)
        found.append(estimate.low)
        errors.append(estimate.mean)
        chance.append(expected)
    assert np.mean(np.array(found) <= 0) > 0.9
    assert np.min(errors) > 0.01
    assert np.mean(errors) == pytest.approx(np.mean(chance), abs=0.01)
    wrong, _ = _calibration(np.full((2, 60), 0.9), groups, 10)
    assert wrong.low > 0.2, "says 0.9 and is right half of the time"


def test_numbers_by_hand():
    assert auroc(np.array([1.0]), np.array([1.0, 0.0, 2.0])) == 0.5
    assert calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0.0
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    rate = _rate(values, tuple("aabbcc"))
    # leaving a group out gives 1/4, 1/2 and 3/4: variance 2/3 · 1/8 = 1/12; t(5) = 2.57 and t(2) = 4.30
    draws = 0.25 * 12 * (student.ppf(0.975, 5) / student.ppf(0.975, 2)) ** 2
    low, high = beta.ppf([0.025, 0.975], [0.5 * draws, 0.5 * draws + 1], [0.5 * draws + 1, 0.5 * draws])
    assert (rate.mean, rate.low, rate.high, rate.n) == (0.5, pytest.approx(low), pytest.approx(high), 6)
    assert np.isnan(_rate(values, tuple("aaaaaa")).low)
    assert np.isnan(_rate(np.full(6, np.nan), tuple("aabbcc")).mean)


def test_no_error_in_few_groups_is_no_proof_that_there_is_none():
    """Ten groups without an error, however large, say as much as ten draws: a rate of 31 % shows none once in forty."""
    groups = tuple(str(i % 10) for i in range(50))
    none, every = _rate(np.zeros(50), groups), _rate(np.ones(50), groups)
    assert (none.mean, none.low, none.high) == (0.0, 0.0, pytest.approx(1 - 0.025**0.1))
    assert (every.mean, every.low, every.high) == (1.0, pytest.approx(0.025**0.1), 1.0)
    p, n = np.arange(50) + 50.0, np.arange(50.0)
    apart = _estimate(lambda rows: auroc(p[rows], n[rows]), groups)
    assert (apart.mean, apart.low, apart.high) == (1.0, pytest.approx(0.025**0.1), 1.0)
    sure, _ = _calibration(np.stack([np.ones(50), np.zeros(50)]), groups, 10)
    assert (sure.mean, sure.low, sure.high) == (0.0, 0.0, pytest.approx(1 - 0.025**0.1))


@pytest.mark.parametrize("true", [0.02, 0.1, 0.5])
def test_the_intervals_have_the_rate_in_them(true):
    """In 95 of 100 draws at least, with examples of a group alike in half of the cases; and they stay in 0…1."""
    rng, inside = np.random.default_rng(0), []
    groups = tuple(str(i % 12) for i in range(48))
    for _ in range(200):
        own, shared = rng.random(48) < true, np.tile(rng.random(12) < true, 4)
        found = _rate(np.where(rng.random(48) < 0.5, shared, own).astype(float), groups)
        assert 0 <= found.low < found.high <= 1
        inside.append(found.low <= true <= found.high)
    assert np.mean(inside) > 0.92


def test_save_and_load(tmp_path):
    lm = planted()
    report = score_monitor(lm, fit_monitor(lm, TRAIN, SITE), TEST)
    report.save(tmp_path / "report.safetensors")
    assert MonitorReport.load(tmp_path / "report.safetensors") == report
