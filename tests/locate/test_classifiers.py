"""Classifiers: scikit-learn's own answers on the same features, and the answers that can be worked out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trimtab.errors import TrimtabError
from trimtab.locate.classifiers import KINDS, fit

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 2, 6)) * [1.0, 10.0, 0.1, 1.0, 3.0, 1.0] + 5.0
Y = np.arange(60) % 2
X[Y == 1] += [0.8, 0.0, 0.05, 0.0, 0.0, 0.3]
NEW = RNG.standard_normal((20, 2, 6)) + 5.0


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("logistic", lambda: LogisticRegression(C=0.3, max_iter=2000)),
        ("ridge", lambda: RidgeClassifier(alpha=1 / 0.3)),
        ("mlp", lambda: MLPClassifier((5,), solver="lbfgs", alpha=1 / 0.3, max_iter=200, random_state=3)),
    ],
)
def test_is_scikit_learn_on_the_same_features(kind, theirs):
    ours = fit(X, Y, kind, C=0.3, hidden=5, seed=3)
    for unit in range(2):
        model = make_pipeline(StandardScaler(), theirs()).fit(X[:, unit], Y)
        if kind == "mlp":
            p = model.predict_proba(NEW[:, unit])
            margin = np.log(p[:, 1] / p[:, 0])
        else:
            margin = model.decision_function(NEW[:, unit])
        np.testing.assert_allclose(ours.margins(NEW)[:, unit], margin, rtol=1e-6, atol=1e-9)


def test_mass_mean_is_linear_discriminant_analysis():
    ours = fit(X, Y, "mass_mean")
    within = np.concatenate([X[Y == 1, 0] - X[Y == 1, 0].mean(0), X[Y == 0, 0] - X[Y == 0, 0].mean(0)])
    estimator = LedoitWolf(assume_centered=True)
    covariance = estimator.fit(within).covariance_

    class Pooled(LedoitWolf):
        def fit(self, x, y=None):
            self.covariance_ = covariance
            return self

    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Pooled()).fit(X[:, 0], Y)
    np.testing.assert_allclose(ours.margins(NEW)[:, 0], theirs.decision_function(NEW[:, 0]), rtol=1e-6, atol=1e-9)


def test_the_difference_of_means_by_hand():
    x = np.array([[[4.0, 1.0]], [[2.0, 1.0]], [[0.0, 0.0]], [[0.0, 2.0]]])
    found = fit(x, np.array([1, 1, 0, 0]), "difference")
    np.testing.assert_allclose(found.weight, [[3.0, 0.0]])
    np.testing.assert_allclose(found.margins(np.array([[[1.5, 9.0]], [[2.5, -9.0]]])), [[0.0], [3.0]])


def test_mass_mean_is_the_optimal_direction_of_a_gaussian():
    rng = np.random.default_rng(0)
    mixing = np.array([[2.0, 0.0], [1.9, 0.3]])
    p, n = (rng.standard_normal((4000, 1, 2)) @ mixing.T + shift for shift in ([1.0, 0.0], [-1.0, 0.0]))
    found = fit(np.concatenate([p, n]), np.repeat([1, 0], 4000), "mass_mean")
    best = np.linalg.solve(mixing @ mixing.T, np.array([2.0, 0.0]))
    assert found.weight[0] @ best / np.linalg.norm(found.weight[0]) / np.linalg.norm(best) > 0.99
    assert abs(found.bias[0]) < 0.2 * np.linalg.norm(found.weight[0])


@pytest.mark.parametrize("kind", KINDS)
def test_units_do_not_hear_of_each_other(kind):
    both = fit(X, Y, kind).margins(NEW)
    np.testing.assert_allclose(fit(X[:, 1:], Y, kind).margins(NEW[:, 1:])[:, 0], both[:, 1], rtol=1e-9)


def test_a_network_reads_what_no_line_parts():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 1, 2))
    y = (x[:, 0, 0] * x[:, 0, 1] > 0).astype(int)
    right = {kind: ((fit(x, y, kind, C=10.0).margins(x)[:, 0] > 0) == y).mean() for kind in ("logistic", "mlp")}
    assert right["logistic"] < 0.7 < 0.9 < right["mlp"]


def test_errors():
    with pytest.raises(TrimtabError, match='did you mean "logistic"'):
        fit(X, Y, "logistics")
    with pytest.raises(TrimtabError, match="both labels"):
        fit(X, np.zeros(60, int), "logistic")
    with pytest.raises(TrimtabError, match="above 0"):
        fit(X, Y, "logistic", C=0.0)
