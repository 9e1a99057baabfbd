"""Linear probes as steering needs them: fitted on rows, with weights in the rows' own units.

scikit-learn does the work. `locate.probing` asks how well a place can be read; here only the direction is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from trimtab.errors import EditError, TaskError


def logistic(
    x: Float[np.ndarray, "row d"], labels: Int[np.ndarray, "row"], C: float = 0.1
) -> tuple[Float[np.ndarray, "label d"], Float[np.ndarray, "label"]]:
    """Weights and biases of a multinomial logistic regression, L2 penalty 1/C, labels counted alike.

    It is fitted on features that are standardised by the rows, and given for the features as they are: x·weight + bias
    are the logits. The labels are 0 up to their number less one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if not C > 0:
        raise EditError(f"C is the inverse of the penalty of a probe, above 0, got {C}")
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=C, max_iter=2000, class_weight="balanced").fit(scaler.transform(x), labels)
    weight = np.asarray(model.coef_) / np.asarray(scaler.scale_)
    bias = np.asarray(model.intercept_) - weight @ np.asarray(scaler.mean_)
    if len(weight) == 1:  # two labels are given as one log-odds
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def whitened(
    positive: Float[np.ndarray, "example d"], negative: Float[np.ndarray, "example d"]
) -> Float[np.ndarray, "d"]:
    """Σ⁻¹(mean⁺ − mean⁻), Σ the covariance within the two sides, shrunk as Ledoit and Wolf do."""
    from sklearn.covariance import LedoitWolf

    difference = positive.mean(0) - negative.mean(0)
    within = np.concatenate([positive - positive.mean(0), negative - negative.mean(0)])
    if not within.any():
        return difference
    covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
    return np.linalg.lstsq(covariance, difference, rcond=None)[0]


def group_folds(groups: Sequence[str], folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Examples to train on and to test on, in folds of whole groups. TaskError with fewer than two groups."""
    from sklearn.model_selection import GroupKFold

    known = len(set(groups))
    if known < 2 or folds < 2:
        raise TaskError(
            f"accuracy is taken on groups that a probe has not seen, which needs two groups and two folds at least; "
            f"got {known} group{'s' * (known != 1)} and folds={folds}"
        )
    rows = np.arange(len(groups))
    return list(GroupKFold(min(folds, known), shuffle=True, random_state=seed).split(rows, groups=list(groups)))
