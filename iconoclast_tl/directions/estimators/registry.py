"""All estimators by name: those of this package, and those that users bring by `itl.estimator` or an entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from iconoclast_tl.directions.estimators.clusters import cones, som
from iconoclast_tl.directions.estimators.differences import (
    geometric_median_difference,
    hybrid,
    mean_difference,
    median_difference,
    variance_scaled_difference,
)
from iconoclast_tl.directions.estimators.discriminant import lda, leace
from iconoclast_tl.directions.estimators.own import Takes, as_estimator, own_estimator
from iconoclast_tl.directions.estimators.principal import contrastive_pca, pca, pca_centred
from iconoclast_tl.directions.estimators.probe import probe, probe_and_pca
from iconoclast_tl.directions.estimators.sample import Estimator, single
from iconoclast_tl.foundation.registry import Registry

ESTIMATORS: Final = Registry[Estimator](
    "estimator",
    "iconoclast_tl.estimators",
    {
        "mean": Estimator(estimate=single(mean_difference), quick=True, steady=True),
        "median": Estimator(estimate=single(median_difference), turns=False, steady=True),
        "geometric-median": Estimator(estimate=single(geometric_median_difference), steady=True),
        "variance": Estimator(estimate=single(variance_scaled_difference), turns=False, steady=True),
        "hybrid": Estimator(estimate=hybrid, turns=False, steady=True),
        "pca": Estimator(estimate=pca, paired=True),
        "pca-centred": Estimator(estimate=pca_centred, least=2, paired=True),
        "contrastive-pca": Estimator(estimate=contrastive_pca, least=3),
        "lda": Estimator(estimate=lda, least=2),
        "probe": Estimator(estimate=probe, labels=True),
        "probe+pca": Estimator(estimate=probe_and_pca, labels=True, paired=True),
        "leace": Estimator(estimate=leace, least=2),
        "cones": Estimator(estimate=cones, least=3),
        "som": Estimator(estimate=som, least=3),
    },
    adapt=as_estimator,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def estimator(
    name: str,
    *,
    takes: Takes = "residuals",
    least: int = 1,
    paired: bool = False,
    labels: bool = False,
    turns: bool = False,
) -> Callable[[Function], Function]:
    """A decorator that makes a function an estimator by this name, in every setting and option that takes one.

        @itl.estimator("trimmed", least=3)
        def trimmed(target, neutral):
            return trimmed_mean(target) - trimmed_mean(neutral)

    takes: `residuals`: the function is given the train residuals of one point, `n d_model` of target and `m d_model` of
    neutral prompts, float64 on the CPU, and returns a vector of d_model, or several as rows, the main one first; of any
    length, since they are normalised, turned towards the target prompts and filtered afterwards. `sample`: it is given
    (`Sample`, `DirectionConfig`) and returns an `Estimate`, or `Unsuited` where there is nothing to go by.

    least: prompts that it needs of each side. paired: whether it takes target and neutral prompts in pairs, which a
    resample then keeps. labels: whether it needs `Sample.shown`, what the model did (with `takes="sample"`). turns:
    whether it turns with its rows, f(XQ) = f(X)Q for orthonormal Q: it may then be given them as coordinates in their
    own span, which is faster where there are fewer prompts than d_model.

    Raises `UserError` for a name that is taken. When it is used, one that raises an error, or returns another shape or
    what is not finite, is told in one line.
    """

    def decorate(function: Function) -> Function:
        made = own_estimator(name, function, takes=takes, least=least, paired=paired, labels=labels, turns=turns)
        ESTIMATORS.add(name, made, function)
        return function

    return decorate
