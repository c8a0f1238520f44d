"""Settings of directions: how they are estimated, filtered, refined, and chosen among."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from iconoclast_tl.foundation.stage_config import StageConfig, require_part


def _known(name: str) -> str:
    from iconoclast_tl.directions.estimators.registry import ESTIMATORS  # which needs this module

    return require_part(ESTIMATORS, name)


def _steady(name: str) -> str:
    from iconoclast_tl.directions.estimators.registry import ESTIMATORS

    if not ESTIMATORS.require(_known(name)).steady:
        steady = sorted(other for other in ESTIMATORS if ESTIMATORS[other].steady)
        raise ValueError(f"an estimator that always finds a direction: {', '.join(steady)}")
    return name


Difference = Literal["mean", "median", "geometric-median", "variance", "hybrid"]
EstimatorName = Annotated[str, AfterValidator(_known)]
"""A name in `directions.estimators.registry.ESTIMATORS`."""
SteadyName = Annotated[str, AfterValidator(_steady)]
"""Of one that others can fall back on."""
SelectionRule = Literal["separation", "arditi", "cosmic"]


SHOWN_ONLY = {"compare", "resamples"}
"""Settings of what `directions` shows, of which no direction depends."""


class SelectionConfig(StageConfig):
    """How one candidate is chosen among positions × residual points."""

    rule: SelectionRule = "separation"
    """`separation`: held-out d′, no forward pass; `arditi`: bypass, induce and KL scores; `cosmic`: cosines of
    activations, no output text."""
    prompts: int = Field(32, ge=1)
    """Val prompts of each side that the model is asked, by `arditi` and `cosmic`."""
    keep: float = Field(1.0, gt=0, le=1)
    """Share of the candidates that a pre-screen by held-out AUROC leaves for `arditi` and `cosmic`."""
    drop_last: float = Field(0.2, ge=0, lt=1)
    """Share of the last layers at which no direction is taken: they read it out rather than hold it."""
    max_kl: float = Field(0.1, gt=0)
    """Largest KL at the first token of neutral prompts under ablation, in nats (`arditi`)."""
    min_induce: float = 0.0
    """Least log-odds of the behaviour on neutral prompts when the direction is added (`arditi`)."""
    lowest: float = Field(0.1, gt=0, le=1)
    """Share of the layers, those in which target and neutral prompts are least alike, that `cosmic` looks at."""


class DirectionConfig(StageConfig):
    """How directions are estimated, filtered and chosen."""

    estimator: EstimatorName = "mean"
    """What is taken from target and neutral residuals; `iconoclast_tl.directions.estimators` has the formulas."""
    hybrid_weight: float = Field(0.5, ge=0, le=1)
    """The share a of the variance-scaled difference in `hybrid`."""
    components: int = Field(4, ge=1)
    """Most directions of a residual point, of those estimators that find several: contrastive-pca, cones and som."""
    contrast: float = Field(1.0, ge=0)
    """α of contrastive-pca: how much of the neutral covariance is subtracted."""
    probe_weight: float = Field(0.5, ge=0, le=1)
    """The share of the probe in `probe+pca`."""
    min_cluster: int = Field(5, ge=1)
    """Target prompts that a cluster of `cones` needs; smaller ones are skipped."""
    min_silhouette: float = Field(0.1, ge=-1, le=1)
    """Mean silhouette that the clusters of `cones` need; below it there is one global direction."""
    som_grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (3, 3)
    """Rows and columns of the self-organising map."""
    fallback: SteadyName = "mean"
    """What is estimated where probe, cones or contrastive-pca find nothing to go by; a line says where and why. One of
    mean, median, geometric-median, variance and hybrid, or a function of residuals of one's own."""
    orthogonalize: bool = False
    """Project out the neutral mean, so that an edit leaves what all neutral prompts share."""
    benign_rank: int = Field(0, ge=0)
    """Project out the top principal directions of the neutral residuals, this many."""
    winsorize: float | None = Field(None, gt=0.5, lt=1)
    """Cut the coordinates of every residual at this quantile of their own sizes, before anything is estimated; filters
    go by the cut residuals, too."""
    position: int | None = Field(None, le=-1)
    """The position that directions are taken from, -1 for the prompt's last token; unset: the selection's choice among
    `activations.positions`."""
    selection: SelectionConfig = SelectionConfig()
    """How one candidate is chosen among positions and residual points."""
    refine: int = Field(0, ge=0)
    """Rounds in which a further direction is estimated on the residuals of the edited model and added."""
    refine_gain: float = Field(0.05, ge=0)
    """Least share of the gap between target and neutral prompts' log-odds that a further round must close."""
    compare: tuple[EstimatorName, ...] = ("mean", "geometric-median", "pca", "lda", "leace")
    """Estimators beside the chosen one that `directions` shows the cosines of."""
    resamples: int = Field(10, ge=0)
    """Bootstrap resamples of the train prompts by which `directions` tells how stable a direction is."""
    file: str | None = None
    """Take the directions of this directions.safetensors instead of estimating them."""

    @model_validator(mode="after")
    def _a_map_has_units_enough(self) -> DirectionConfig:
        units = self.som_grid[0] * self.som_grid[1]
        if self.estimator == "som" and units < 2:
            raise ValueError(f"a self-organising map has at least two units; som_grid {self.som_grid} has {units}")
        return self
