"""Classifiers of activations: fitted on rows of features, and asked for a margin, above 0 on the side of label 1.

The linear kinds are a direction and a bias in the features' own units, whatever they were scaled by while they were
fitted; what scales them comes from the training rows alone. scikit-learn does the fitting. Nothing here knows of
models, tasks or groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from trimtab.errors import TrimtabError, nearest

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

Kind = Literal["logistic", "ridge", "difference", "mass_mean", "mlp"]
KINDS: tuple[str, ...] = get_args(Kind)
SMALLEST = 1e-300
"""Probabilities are taken to be at least this, so that margins of networks are finite."""


@dataclass(frozen=True, eq=False)
class Linear:
    """One direction (unit d) and bias (unit) for each unit."""

    weight: Float[np.ndarray, "unit d"]
    bias: Float[np.ndarray, "unit"]

    def margins(self, x: Float[np.ndarray, "row unit d"]) -> Float[np.ndarray, "row unit"]:
        """x·direction + bias."""
        return np.einsum("rud,ud->ru", x.astype(np.float64), self.weight) + self.bias


@dataclass(frozen=True, eq=False)
class Networks:
    """A small network for each unit, behind the scaling of its training rows."""

    fitted: Sequence[tuple[StandardScaler, MLPClassifier]]

    def margins(self, x: Float[np.ndarray, "row unit d"]) -> Float[np.ndarray, "row unit"]:
        """log p(label 1) − log p(label 0)."""
        found = []
        for unit, (scaler, network) in enumerate(self.fitted):
            p = np.asarray(network.predict_proba(scaler.transform(x[:, unit].astype(np.float64))))
            found.append(np.log(np.maximum(p[:, 1], SMALLEST)) - np.log(np.maximum(p[:, 0], SMALLEST)))
        return np.stack(found, 1)


Classifier = Linear | Networks


def fit(
    x: Float[np.ndarray, "row unit d"],
    labels: Int[np.ndarray, "row"],
    kind: Kind = "logistic",
    *,
    C: float = 0.1,
    hidden: int = 16,
    seed: int = 0,
) -> Classifier:
    """A classifier for each unit, of rows whose label is 1 against those whose label is 0.

    Args:
        kind: "logistic" and "ridge" (least squares on ±1): linear, with L2 penalty 1/`C`, on features that are
            standardised by the rows. "difference": along the difference of the two means, cut half way. "mass_mean":
            along Σ⁻¹ of that, Σ the covariance within the labels (Ledoit–Wolf), cut half way: linear discriminant
            analysis with equal priors. "mlp": one layer of `hidden` ReLUs on standardised features, L2 penalty 1/`C`.
        seed: of the network's first weights.
    """
    check_kind(kind)
    if not C > 0 or hidden < 1:
        raise TrimtabError(f"C and hidden must be above 0, got {C} and {hidden}")
    x, labels = x.astype(np.float64), np.asarray(labels)
    if set(np.unique(labels)) != {0, 1}:
        raise TrimtabError(
            f"a classifier is fitted on rows of both labels, 0 and 1, got {sorted(set(labels.tolist()))}"
        )
    units = range(x.shape[1])
    if kind == "mlp":
        return Networks([_network(x[:, unit], labels, C, hidden, seed) for unit in units])
    if kind in ("logistic", "ridge"):
        fitted = [_scaled(x[:, unit], labels, kind, C) for unit in units]
        return Linear(np.stack([w for w, _ in fitted]), np.array([b for _, b in fitted]))
    ones, zeros = x[labels == 1], x[labels == 0]
    weight = ones.mean(0) - zeros.mean(0)
    if kind == "mass_mean":
        weight = np.stack([_whitened(ones[:, unit], zeros[:, unit], w) for unit, w in enumerate(weight)])
    return Linear(weight, -np.einsum("ud,ud->u", (ones.mean(0) + zeros.mean(0)) / 2, weight))


def check_kind(kind: str, kinds: Sequence[str] = KINDS) -> None:
    """TrimtabError for a kind that is not there."""
    if kind not in kinds:
        raise TrimtabError(f'no probe "{kind}"{nearest(str(kind), kinds)}: there are {", ".join(kinds)}')


def _scaled(x: np.ndarray, labels: np.ndarray, kind: Kind, C: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=C, max_iter=2000) if kind == "logistic" else RidgeClassifier(alpha=1 / C)
    model.fit(scaler.transform(x), labels)
    weight = np.ravel(model.coef_) / np.asarray(scaler.scale_)
    return weight, float(np.ravel(model.intercept_)[0] - weight @ np.asarray(scaler.mean_))


def _whitened(ones: np.ndarray, zeros: np.ndarray, difference: np.ndarray) -> np.ndarray:
    from sklearn.covariance import LedoitWolf

    within = np.concatenate([ones - ones.mean(0), zeros - zeros.mean(0)])
    covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
    return np.linalg.lstsq(covariance, difference, rcond=None)[0]


def _network(
    x: np.ndarray, labels: np.ndarray, C: float, hidden: int, seed: int
) -> tuple[StandardScaler, MLPClassifier]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    network = MLPClassifier((hidden,), solver="lbfgs", alpha=1 / C, max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is a penalty too, and no error
        network.fit(scaler.transform(x), labels)
    return scaler, network
