"""All estimators by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from iconoclast_tl.directions.config import EstimatorName
from iconoclast_tl.directions.estimators.clusters import cones, som
from iconoclast_tl.directions.estimators.differences import (
    geometric_median_difference,
    hybrid,
    mean_difference,
    median_difference,
    variance_scaled_difference,
)
from iconoclast_tl.directions.estimators.discriminant import lda, leace
from iconoclast_tl.directions.estimators.principal import contrastive_pca, pca, pca_centred
from iconoclast_tl.directions.estimators.probe import probe, probe_and_pca
from iconoclast_tl.directions.estimators.sample import Estimator, single

ESTIMATORS: Final[Mapping[EstimatorName, Estimator]] = {
    "mean": Estimator(single(mean_difference), quick=True),
    "median": Estimator(single(median_difference), turns=False),
    "geometric-median": Estimator(single(geometric_median_difference)),
    "variance": Estimator(single(variance_scaled_difference), turns=False),
    "hybrid": Estimator(hybrid, turns=False),
    "pca": Estimator(pca, paired=True),
    "pca-centred": Estimator(pca_centred, least=2, paired=True),
    "contrastive-pca": Estimator(contrastive_pca, least=3),
    "lda": Estimator(lda, least=2),
    "probe": Estimator(probe, labels=True),
    "probe+pca": Estimator(probe_and_pca, labels=True, paired=True),
    "leace": Estimator(leace, least=2),
    "cones": Estimator(cones, least=3),
    "som": Estimator(som, least=3),
}
