"""Monitors: thresholds and calibrations by hand, held-out groups, and margins on the way equal to a second pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import _SigmoidCalibration, calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from tests.locate.tinytasks import NEGATIVE, POSITIVE, pairs, planted
from tests.model.tinies import RAGGED, SIDES, exact, fresh, lm_of, untouched
from tests.tiny import FAMILIES, words
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.monitors import (
    _calibrated,
    _calibration,
    _estimate,
    _threshold,
    fit_monitor,
    score_monitor,
    watch,
    watch_stream,
)
from trimtab.tasks.means import mean_difference
from trimtab.tasks.measure import sides
from trimtab.values.edit import Edit
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.monitor import Calibration, Monitor, MonitorReport, auroc, calibration_error
from trimtab.values.watched import Watched

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


def test_the_threshold_keeps_to_its_rate():
    negative = np.random.default_rng(0).permutation(100.0 * np.arange(20))
    for rate, above in ((0.0, 0), (0.05, 1), (0.049, 0), (0.3, 6), (0.99, 19)):
        assert (negative > _threshold(negative, rate)).sum() == above


def monitor_of(**options):
    probe = LinearProbe("L1.resid_post", [1.0, 0.0], 0.0, 1.0, task="m")
    return Monitor(probe, Calibration("platt"), 0.5, 0.05, **options)


def test_a_threshold_for_every_token_keeps_to_its_rate_where_one_for_whole_texts_does_not():
    """Negative texts of scattered tokens: looked at after each token many pass the threshold for whole texts somewhere,
    and at most the given share passes the one that is calibrated for that."""
    rng = np.random.default_rng(0)
    known, new = rng.standard_normal((2, 400, 40))
    monitor = monitor_of(stream_threshold=0.0, least=4)
    whole = monitor.with_(threshold=_threshold(known.mean(1), 0.05))
    streamed = monitor.with_(stream_threshold=_threshold(np.nanmax(monitor.looked_at(known), 1), 0.05))
    assert whole.flags(whole.running(new)).any(1).mean() > 0.3
    assert streamed.stream_flags(known).any(1).mean() <= 0.05
    assert streamed.stream_flags(new).any(1).mean() < 0.09
    ragged = np.array([[9.0, 0.0, 0.0, 0.0, 0.0], [9.0, 3.0, np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(monitor.looked_at(ragged), [[np.nan] * 3 + [2.25, 1.8], [np.nan, 6.0] + [np.nan] * 3])
    seen = Watched([list("pabcde"), list("pab")], (1, 1), {"m": monitor}, {"m": np.c_[np.zeros(2), ragged]})
    assert seen.flagged("m") == (3, 1)
    assert "5% of negatives, at any token" in repr(seen)
    with pytest.raises(TrimtabError, match="fit it again"):
        seen.with_(monitors={"m": monitor_of()}).flagged("m")


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
    lm = planted()
    validation = pairs(12, groups=3, start=50, name="validation")
    monitor = fit_monitor(lm, TRAIN, SITE, validation=validation, kind="difference")
    for task in (TRAIN, validation, TEST.of([*TEST.examples, TRAIN.examples[0]])):
        with pytest.raises(TaskError, match=r"fitted or calibrated on the group '(train|validation) 0'"):
            score_monitor(lm, monitor, task)


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


def test_a_prompt_s_margin_is_that_of_its_text_without_the_template():
    lm = fresh("llama", torch.float64)
    lm.tokenizer.chat_template = "{% for m in messages %}w90 w91 {{ m['content'] }} w92{% endfor %} w93"
    monitor = fit_monitor(lm, TRAIN, SITE, kind="difference")
    texts = [words(40, 41, 42), words(50, 51)]
    found = watch(lm, texts, monitor, chat=True, max_new_tokens=1)
    made = lm.prompts(texts, chat=True, spans={"text": texts})
    for row, places in enumerate(made.spans["text"]):
        margins = found.margins["train"][row]
        assert [found.tokens[row][i] for i in places] == texts[row].split()
        np.testing.assert_allclose(found.of_prompt("train")[row], margins[list(places)].mean())
        assert found.prompt[row] > len(places) + 1


def test_calibrations_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    margins = np.stack([rng.normal(1, 2, 80), rng.normal(-1, 2, 80)])

    x, y, new = margins.ravel(), np.repeat([1, 0], 80), np.linspace(-5, 5, 30)
    theirs = _SigmoidCalibration().fit(x, y).predict(new)
    np.testing.assert_allclose(_calibrated(margins, "platt").probability(new), theirs, atol=1e-3)
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y).predict(new)
    np.testing.assert_allclose(_calibrated(margins, "isotonic").probability(new), theirs, atol=1e-9)


def test_numbers_by_hand():
    assert auroc(np.array([1.0]), np.array([1.0, 0.0, 2.0])) == 0.5
    assert calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0.0
    same = _estimate(lambda rows: float(rows.mean()), tuple("aabb"))
    # leaving a group out gives 2.5 and 0.5: error sqrt(1/2 · 2), t(1) = 12.7; kept inside 0 and 1
    assert (same.mean, same.low, same.high) == (1.5, 0.0, 1.0)
    assert np.isnan(_estimate(lambda rows: 1.0, tuple("aa")).low)


@pytest.mark.parametrize("family", FAMILIES)
def test_margins_on_the_way_are_those_of_a_second_pass(family):
    lm = exact(family, padded=True)
    monitors = {"stream": fit_monitor(lm, TRAIN, SITE, kind="difference")}
    monitors["head"] = fit_monitor(lm, TRAIN, "L0.head[2]", kind="difference", read="last")
    prompts, edit = lm.prompts(RAGGED, padding=SIDES[len(family) % 2]), Edit("L0.resid_post", "scale", 1.3)
    heard = []
    with untouched(lm):
        found = watch(lm, prompts, monitors, edit, on_token=heard.append, max_new_tokens=4)
    plain = lm.generate(prompts, edit, max_new_tokens=4)
    streamed = list(watch_stream(lm, prompts, monitors, edit, max_new_tokens=4))
    for row, ids in enumerate(RAGGED):
        assert tuple(piece.ids[row] for piece in heard if piece.ids[row] is not None) == plain.ids[row]
        again = lm.run([ids + list(plain.ids[row])], [m.site for m in monitors.values()], edit)
        for name, monitor in monitors.items():
            margins = monitor.margin(again[monitor.site][0].double().numpy())
            size = np.abs(margins).max()
            np.testing.assert_allclose(found.margins[name][row, : len(margins)], margins, atol=1e-4 * size)
            said = [piece.margins[name][row] for piece in streamed[: len(plain.ids[row])]]
            np.testing.assert_allclose(said, margins[len(ids) :], atol=1e-4 * size)
            if monitor.pooled:
                text = margins[len(ids) :].mean()
                np.testing.assert_allclose(found.running(name)[row, len(plain.ids[row]) - 1], text, atol=1e-4 * size)
                np.testing.assert_allclose(found.of_prompt(name)[row], margins[1 : len(ids)].mean(), atol=1e-4 * size)
            else:
                np.testing.assert_allclose(found.of_prompt(name)[row], margins[len(ids) - 1], atol=1e-4 * size)


def test_a_text_that_turns_is_flagged_where_it_does():
    lm = planted()
    monitor = fit_monitor(lm, TRAIN, "embed", kind="difference", false_positive_rate=0.0, least_tokens=1)
    turn = {NEGATIVE: None, POSITIVE: 0}
    for token, first in turn.items():
        found = watch(lm, [[40, 41, 42]], monitor, f"logits[{token}] add 1000", max_new_tokens=3)
        assert found.flagged("train") == (first,)
        assert found.tokens[0][3:] == (f"w{token}",) * 3
    assert "train" in found._repr_html_()
    assert len(found.to_frame()) == 6


def test_a_row_that_ended_is_nan():
    lm = lm_of("llama")
    monitor = fit_monitor(lm, TRAIN, SITE, kind="difference")
    found = watch(lm, RAGGED, monitor, Edit("logits[2]", "add", 1000.0, rows=(1,)), max_new_tokens=3)
    assert np.isnan(found.new("train")[1]).tolist() == [False, True, True]
    assert found.tokens[1][-1] == "</s>"


def test_save_and_load(tmp_path):
    lm = planted()
    for calibration in ("platt", "isotonic"):
        monitor = fit_monitor(lm, TRAIN, SITE, calibration=calibration)
        report, found = score_monitor(lm, monitor, TEST), watch(lm, RAGGED, monitor, max_new_tokens=2)
        for value, kind in ((monitor, Monitor), (report, MonitorReport), (found, Watched)):
            value.save(tmp_path / "value.safetensors")
            again = kind.load(tmp_path / "value.safetensors")
            assert again == value
        x = torch.randn(4, 32).numpy()
        np.testing.assert_array_equal(again.monitors["train"].margin(x), monitor.margin(x))


def test_errors():
    lm = planted()
    with pytest.raises(SiteError, match="leave the positions out"):
        fit_monitor(lm, TRAIN, "L1.resid_post@-1")
    with pytest.raises(SiteError, match="one site"):
        fit_monitor(lm, TRAIN, "L*.resid_post")
    with pytest.raises(TaskError, match="share the group"):
        fit_monitor(lm, TRAIN, SITE, validation=TRAIN)
    with pytest.raises(TrimtabError, match="false_positive_rate"):
        fit_monitor(lm, TRAIN, SITE, false_positive_rate=1.0)
    with pytest.raises(TrimtabError, match='did you mean "platt"'):
        fit_monitor(lm, TRAIN, SITE, calibration="plat")
    with pytest.raises(TrimtabError, match='no probe "mlp"'):
        fit_monitor(lm, TRAIN, SITE, kind="mlp")
    monitor = fit_monitor(lm, TRAIN, SITE)
    with pytest.raises(TrimtabError, match="leave read out"):
        watch(lm, RAGGED, monitor, read="embed")
    with pytest.raises(TrimtabError, match="no monitor"):
        watch(lm, RAGGED, {})
    with pytest.raises(TrimtabError, match='no monitor "trian"'):
        watch(lm, RAGGED, monitor, max_new_tokens=1).running("trian")
    other = fit_monitor(lm_of("opt-350m"), TRAIN, "L0.head[2]")
    with pytest.raises(SiteError, match="fitted on"):
        watch(lm_of("llama-bias"), RAGGED, other, max_new_tokens=1)
