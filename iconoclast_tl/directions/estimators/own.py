"""Estimators that users bring: their functions, with one line for whatever is wrong with what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.sample import Estimate, Estimator, Sample, Unsuited
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.registry import called, source_digest

Takes = Literal["residuals", "sample"]
"""What a user's function is given: target and neutral residuals, or a whole sample with the settings."""


def as_estimator(name: str, found: Any) -> Estimator:
    """What an entry point names: an `Estimator`, or a function of target and neutral residuals."""
    if isinstance(found, Estimator):
        return found
    if callable(found):
        return own_estimator(name, found)
    raise UserError(
        f"the entry point {name} is no estimator", got=type(found).__name__, want="a function of target and neutral"
    )


def own_estimator(name: str, function: Callable[..., Any], *, takes: Takes = "residuals", **needs: Any) -> Estimator:
    """A user's function as an estimator that checks what it returns. needs: fields of `Estimator`."""
    whole = takes == "sample"
    if not callable(function) or takes not in ("residuals", "sample"):
        raise UserError(f"the estimator {name} is no function of residuals or of a sample", got=repr(function))
    if needs.get("labels") and not whole:
        raise UserError(f"the estimator {name} needs labels, which residuals are without", mend='pass takes="sample"')

    def estimate(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
        what = f"the estimator {name}"
        if whole:
            return _checked_estimate(what, called(what, function, sample, config), sample)
        vectors = _checked_vectors(what, called(what, function, sample.target, sample.neutral), sample)
        return Estimate(vectors, torch.ones(len(vectors), dtype=torch.float64))

    return Estimator(estimate=estimate, steady=not whole, digest=source_digest(function), **{"turns": False, **needs})


def _checked_estimate(what: str, found: Any, sample: Sample) -> Estimate | Unsuited:
    if isinstance(found, Unsuited):
        return found
    if not isinstance(found, Estimate):
        raise UserError(f"{what} returns no estimate", got=type(found).__name__, want="an Estimate, or Unsuited")
    vectors = _checked_vectors(what, found.vectors, sample)
    weights = torch.as_tensor(found.weights).detach().double().cpu()
    if weights.shape != vectors.shape[:1] or not bool(weights.isfinite().all()):
        raise UserError(f"{what} returns weights that do not fit", got=_shape(weights), want=f"{len(vectors)} finite")
    return Estimate(vectors, weights, found.facts)


def _checked_vectors(what: str, found: Any, sample: Sample) -> Tensor:
    """As (k, d), float64 on the CPU."""
    width = sample.target.shape[1]
    try:
        vectors = torch.as_tensor(found).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} returns no vector", got=type(found).__name__, want=f"{width} numbers") from error
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise UserError(f"{what} returns another shape", got=_shape(vectors), want=f"({width},) or (k, {width})")
    if not bool(vectors.isfinite().all()):
        raise UserError(
            f"{what} returns numbers that are not finite", got=f"{int((~vectors.isfinite()).sum())} of them"
        )
    return vectors


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
