"""Several directions of a behaviour that is not one: clusters and maps of the target residuals."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.sample import Estimate, Sample, Unsuited

EPOCHS = 60
LAST_RADIUS = 0.4
"""Of a map's neighbourhood, in units of its grid: next to nothing reaches the next unit at the end."""


def cones(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
    """μ_c − μ_G for every cluster c of the target residuals, largest first: the edges of a concept cone.

    k-means for k = 2 … `components`; the k with the largest mean silhouette counts. Clusters of fewer than
    `min_cluster` prompts are skipped; where the silhouette is under `min_silhouette` or no cluster is left, there is
    one global direction, by the fallback. (Rousseeuw 1987; of several refusal directions, Wollschläger et al.
    2502.17420.)
    """
    most = min(config.components, len(torch.unique(sample.target, dim=0)), len(sample.target) - 1)
    if most < 2:
        return Unsuited("fewer than two distinct clusters are possible")
    silhouette, labels = max((_k_means(sample.target, k) for k in range(2, most + 1)), key=lambda found: found[0])
    if silhouette < config.min_silhouette:
        return Unsuited(f"silhouette under {config.min_silhouette:g}", {"silhouette": silhouette})
    sizes = torch.bincount(labels)
    kept = [c for c in sizes.argsort(descending=True, stable=True).tolist() if int(sizes[c]) >= config.min_cluster]
    skipped = int((sizes > 0).sum()) - len(kept)
    facts = {"silhouette": silhouette, "clusters": len(kept), "skipped": skipped}
    if not kept:
        return Unsuited(f"no cluster has {config.min_cluster} prompts", {"silhouette": silhouette})
    centres = torch.stack([sample.target[labels == c].mean(0) for c in kept])
    return Estimate(centres - sample.neutral.mean(0), torch.ones(len(kept), dtype=torch.float64), facts)


def som(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
    """m_u − μ_G for the units u of a self-organising map of the target residuals, at most `components`, by hits.

    A grid of units; in every epoch each takes the mean of all rows, weighted by exp(−‖u − w‖² / 2r²) with w the row's
    nearest unit and the radius r falling from half the grid to 0.4. It starts in the plane of the first two principal
    axes, so that nothing is random. Units that no row is nearest to are left out. (Kohonen, Proc. IEEE 78, 1990;
    of refusal directions, Piras et al. 2511.08379.)
    """
    units, hits = self_organising_map(sample.target, *config.som_grid)
    order = [u for u in hits.argsort(descending=True, stable=True).tolist() if int(hits[u])][: config.components]
    facts = {"units": int((hits > 0).sum()), "hits": int(hits[order].sum())}
    return Estimate(units[order] - sample.neutral.mean(0), torch.ones(len(order), dtype=torch.float64), facts)


def self_organising_map(
    rows: Float[Tensor, "n d"], n_rows: int, n_columns: int
) -> tuple[Float[Tensor, "unit d"], Int[Tensor, "unit"]]:
    """The units of a trained map, and how many rows are nearest to each."""
    mean = rows.mean(0)
    _, values, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    grid = torch.cartesian_prod(torch.arange(n_rows), torch.arange(n_columns)).to(rows)
    middle = torch.tensor([n_rows - 1, n_columns - 1]).to(rows) / 2
    spread = values[:2] / len(rows) ** 0.5
    plane = (grid - middle) / middle.clamp(min=0.5)
    units: Tensor = mean + (plane[:, : len(spread)] * spread) @ axes[:2]
    between = torch.cdist(grid, grid).square()
    first = max(n_rows, n_columns) / 2
    for epoch in range(EPOCHS):
        radius = first * (LAST_RADIUS / first) ** (epoch / (EPOCHS - 1))
        pull = (-between[_nearest(rows, units)] / (2 * radius**2)).exp()
        units = pull.T @ rows / pull.sum(0).clamp(min=1e-300)[:, None]
    return units, torch.bincount(_nearest(rows, units), minlength=len(units))


def _nearest(rows: Float[Tensor, "n d"], units: Float[Tensor, "unit d"]) -> Int[Tensor, "n"]:
    return torch.cdist(rows, units).argmin(1)


def _k_means(rows: Float[Tensor, "n d"], k: int) -> tuple[float, Int[Tensor, "n"]]:
    """The mean silhouette of k clusters (−1 where some are empty), and the cluster of every row."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: told by the silhouette
        labels = KMeans(k, n_init=3, random_state=0).fit_predict(rows.numpy())
    if not 1 < len(set(labels)) < len(rows):
        return -1.0, torch.from_numpy(labels).long()
    return float(silhouette_score(rows.numpy(), labels)), torch.from_numpy(labels).long()
