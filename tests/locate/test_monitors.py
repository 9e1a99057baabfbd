"""Fitting monitors: thresholds and calibrations by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from tests.locate.tinytasks import pairs, planted
from trimtab.errors import SiteError, TaskError, TrimtabError
from trimtab.locate.monitors import _calibrated, _threshold, fit_monitor
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.monitor import Calibration, Monitor
from trimtab.values.watched import Watched

TRAIN, SITE = pairs(16, groups=4, name="train"), "L1.resid_post"


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


def test_calibrations_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    margins = np.stack([rng.normal(1, 2, 80), rng.normal(-1, 2, 80)])

    x, y, new = margins.ravel(), np.repeat([1, 0], 80), np.linspace(-5, 5, 30)
    theirs = _SigmoidCalibration().fit(x, y).predict(new)
    np.testing.assert_allclose(_calibrated(margins, "platt").probability(new), theirs, atol=1e-3)
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y).predict(new)
    np.testing.assert_allclose(_calibrated(margins, "isotonic").probability(new), theirs, atol=1e-9)


@pytest.mark.parametrize("calibration", ["platt", "isotonic"])
def test_save_and_load(tmp_path, calibration):
    monitor = fit_monitor(planted(), TRAIN, SITE, calibration=calibration)
    monitor.save(tmp_path / "monitor.safetensors")
    again = Monitor.load(tmp_path / "monitor.safetensors")
    assert again == monitor
    x = np.random.default_rng(0).normal(size=(4, 32))
    np.testing.assert_array_equal(again.margin(x), monitor.margin(x))


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
    with pytest.raises(TrimtabError, match=r"least_tokens is .* at least 1, got 0"):
        fit_monitor(None, TRAIN, SITE, least_tokens=0)
    with pytest.raises(TrimtabError, match='did you mean "platt"'):
        fit_monitor(lm, TRAIN, SITE, calibration="plat")
    with pytest.raises(TrimtabError, match='no probe "mlp"'):
        fit_monitor(lm, TRAIN, SITE, kind="mlp")
