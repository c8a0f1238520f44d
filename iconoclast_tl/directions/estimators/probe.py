"""Logistic regression on what the model did, alone or together with the paired differences' principal axis."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.principal import pca
from iconoclast_tl.directions.estimators.sample import Estimate, Sample, Unsuited, one

LEAST_OF_A_CLASS = 10
LEAST_ACCURACY = 0.65
FOLDS = 5
INVERSE_PENALTY = 10.0
"""scikit-learn's C, for rows of mean squared length 1. Towards 0 the probe turns into the difference of class means."""


def probe(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
    """The weight vector of an L2-penalised logistic regression that tells responses with the behaviour from others.

    argmin_w ½‖w‖² + C Σ_i c_i log(1 + exp(−y_i (wᵀx_i + b))), classes balanced by c_i (scikit-learn); x centred and
    scaled by one number, so that the probe turns with the rows. y is what the model did, not which set a prompt is of.
    `accuracy` is balanced and cross-validated. With fewer than 10 responses of a class, or an accuracy under 0.65, the
    fallback is asked, and the reason said. (Alain and Bengio 1610.01644; inference-time intervention, Li et al.
    2306.03341.)
    """
    if sample.shown is None:
        raise ValueError("a probe needs to know what the model did")
    counts = int(sample.shown.sum()), int((~sample.shown).sum())
    if min(counts) < LEAST_OF_A_CLASS:
        return Unsuited(f"{counts[0]} responses with and {counts[1]} without the behaviour, want 10 of each")
    accuracy, weights = _fit(sample.rows, sample.shown, min(FOLDS, *counts))
    if accuracy < LEAST_ACCURACY:
        return Unsuited(f"cross-validated accuracy under {LEAST_ACCURACY}", {"accuracy": accuracy})
    return one(weights, accuracy=accuracy)


def probe_and_pca(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
    """a · probe + (1 − a) · pca with both normalised first, a = `probe_weight`; falls back as the probe does."""
    trained, axis = probe(sample, config), pca(sample, config)
    if isinstance(trained, Unsuited):
        return trained
    supervised, unsupervised = trained.vectors[0], axis.vectors[0]
    a, tiny = config.probe_weight, 1e-300
    mixed = a * supervised / (supervised.norm() + tiny) + (1 - a) * unsupervised / (unsupervised.norm() + tiny)
    return one(mixed, **trained.facts)


def _fit(rows: Float[Tensor, "n d"], shown: Bool[Tensor, "n"], folds: int) -> tuple[float, Float[Tensor, "d"]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    centred = rows - rows.mean(0)
    scaled = (centred / centred.square().sum(1).mean().sqrt().clamp(min=1e-300)).numpy()
    labels = shown.numpy()
    regression = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=500)
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy tells what came of it
        scores = cross_val_score(regression, scaled, labels, cv=splits, scoring="balanced_accuracy")
        fitted = regression.fit(scaled, labels)
    return float(scores.mean()), torch.from_numpy(fitted.coef_[0]).double()
