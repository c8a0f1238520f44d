"""From residuals to unit directions at every point: filters, fallbacks, what several settings share, stability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iconoclast_tl.directions.config import Difference, DirectionConfig
from iconoclast_tl.directions.estimate import estimate_all, estimate_directions, stability
from iconoclast_tl.directions.estimators.registry import ESTIMATORS
from iconoclast_tl.directions.filters import filter_basis, winsorized
from iconoclast_tl.foundation.errors import UserError

GENERATOR = torch.Generator().manual_seed(1)
WIDTH = 30
TARGET = torch.randn(21, WIDTH, generator=GENERATOR) * torch.linspace(1, 3, WIDTH) + 2
NEUTRAL = torch.randn(24, WIDTH, generator=GENERATOR)
SHOWN = torch.arange(45) < 21
BOTH = torch.stack([TARGET, TARGET + 1], 1), torch.stack([NEUTRAL, NEUTRAL - 3], 1)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_directions_are_orthonormal_without_what_the_filters_remove(name: str) -> None:
    target, neutral = BOTH
    config = DirectionConfig(estimator=name, orthogonalize=True, benign_rank=2, min_silhouette=-1)
    filtered = estimate_directions(target, neutral, config, SHOWN)
    plain = estimate_directions(
        target, neutral, config.model_copy(update={"orthogonalize": False, "benign_rank": 0}), SHOWN
    )
    for point in range(2):
        there = filtered.vectors[:, point][filtered.vectors[:, point].any(-1)]
        assert torch.allclose(there @ there.T, torch.eye(len(there)), atol=1e-5)
        assert float(filtered.weights[0, point]) == 1
        g = neutral[:, point].double()
        centred = g - g.mean(0)
        top = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:]
        for removed in (g.mean(0), top[:, 0], top[:, 1]):
            assert float((there.double() @ removed).abs().max()) < 1e-5 * float(removed.norm())
        assert float((plain.vectors[:, point].double() @ g.mean(0)).abs().max()) > 1e-3


def test_the_filter_basis_is_orthonormal() -> None:
    basis = filter_basis(NEUTRAL, DirectionConfig(orthogonalize=True, benign_rank=3))
    assert torch.allclose(basis @ basis.T, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert filter_basis(NEUTRAL, DirectionConfig()).shape == (0, WIDTH)


def test_a_point_that_is_the_same_for_every_prompt_has_no_direction() -> None:
    same = torch.ones(5, 1, 6)
    assert not estimate_directions(same, same, DirectionConfig()).vectors.any()


def test_winsorised_rows_are_cut_at_the_quantile_of_their_own_sizes() -> None:
    rows = torch.cat([TARGET, torch.full((1, WIDTH), 1e4)])
    rows[0, 3] = -1e3
    limits = np.quantile(rows.abs().double().numpy(), 0.9, axis=1, keepdims=True)
    expected = np.clip(rows.double().numpy(), -limits, limits)
    assert np.allclose(winsorized(rows.double(), 0.9).numpy(), expected)
    assert torch.equal(winsorized(rows, None), rows)
    assert float(winsorized(rows.double(), 0.9)[0, 3]) > -10


def test_one_massive_coordinate_takes_over_unless_it_is_cut() -> None:
    target, neutral = TARGET.clone(), NEUTRAL.clone()
    target[:, 7] += 500
    neutral[:, 7] += 400
    found = [
        estimate_directions(target[:, None], neutral[:, None], DirectionConfig(winsorize=cut)).vectors[0, 0, 7].abs()
        for cut in (None, 0.95)
    ]
    assert float(found[0]) > 0.99
    assert float(found[1]) < 0.5


def test_settings_that_are_estimated_together_are_those_estimated_alone() -> None:
    target, neutral = BOTH
    configs = {name: DirectionConfig(estimator=name, winsorize=0.99 if name == "lda" else None) for name in ESTIMATORS}
    together = estimate_all(target, neutral, configs, SHOWN)
    for name, config in configs.items():
        alone = estimate_directions(target, neutral, config, SHOWN)
        assert torch.equal(together[name].vectors, alone.vectors)
    assert not torch.equal(together["mean"].vectors, together["median"].vectors)


def test_fallbacks_are_told_with_their_points() -> None:
    target, neutral = BOTH
    config = DirectionConfig(estimator="cones", min_silhouette=0.9)
    found = estimate_directions(target, neutral, config)
    plain = estimate_directions(target, neutral, DirectionConfig())
    assert torch.equal(found.vectors, plain.vectors)
    assert found.notes("cones", "mean") == ["cones fell back to mean at points 0-1: silhouette under 0.9"]
    other = estimate_directions(target, neutral, config.model_copy(update={"fallback": "median"}))
    assert torch.equal(other.vectors, estimate_directions(target, neutral, DirectionConfig(estimator="median")).vectors)
    assert plain.notes("mean", "mean") == []


@pytest.mark.parametrize("fallback", ["mean", "geometric-median"])
def test_a_fallback_is_what_it_is_alone_with_fewer_prompts_than_dimensions_too(fallback: Difference) -> None:
    """It may need rows in another form than what fell back, and of a resample the same prompts."""
    target, neutral = TARGET[:9, None], NEUTRAL[:9, None]
    cones = DirectionConfig(estimator="cones", min_silhouette=0.95, fallback=fallback, resamples=3)
    alone = DirectionConfig(estimator=fallback, resamples=3)
    found, wanted = (estimate_directions(target, neutral, config) for config in (cones, alone))
    assert found.fallbacks != wanted.fallbacks
    assert torch.equal(found.vectors, wanted.vectors)
    assert "silhouette" in found.facts[0]
    steady = stability(target, neutral, cones)
    assert torch.equal(steady, stability(target, neutral, alone))
    assert float(steady[0]) < 0.99


def test_weights_are_the_estimators_and_0_of_what_the_filters_take() -> None:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 60, 1, 8, generator=generator)
    target = noise[0] * torch.tensor([4.0, 3, 0, 0, 0, 0, 0, 0]) + torch.eye(8)[[0, 2]].sum(0)
    neutral = noise[1] * torch.tensor([0, 0.5, 0, 0, 0, 0, 0, 0])
    config = DirectionConfig(estimator="contrastive-pca", components=2)
    plain = estimate_directions(target, neutral, config)
    assert float(plain.weights[0, 0]) == 1
    assert 0.3 < float(plain.weights[1, 0]) < 0.8
    # Where the second axis is just what neutral prompts vary along, filters leave nothing of it.
    first, second = (target[:, 0, c] - target[:, 0, c].mean() for c in (0, 1))
    aligned = target.clone()
    aligned[:, 0, 1] = second - first * (first @ second) / first.square().sum()
    filtered = estimate_directions(aligned, neutral, config.model_copy(update={"benign_rank": 1}))
    assert filtered.weights[:, 0].tolist() == [1, 0]
    assert not filtered.vectors[1].any()


def test_a_singular_covariance_is_told() -> None:
    few = estimate_directions(TARGET[:5, None], NEUTRAL[:5, None], DirectionConfig(estimator="lda"))
    assert few.notes("lda", "mean") == [
        f"lda: the covariance is singular at point 0 (10 prompts for d_model {WIDTH}) and was shrunk"
    ]
    assert estimate_directions(BOTH[0], BOTH[1], DirectionConfig(estimator="lda")).notes("lda", "mean") == []


@pytest.mark.parametrize("name", [name for name, estimator in ESTIMATORS.items() if estimator.least > 1])
def test_too_few_prompts_are_the_users_line(name: str) -> None:
    least = ESTIMATORS[name].least  # type: ignore[index]
    config = DirectionConfig(estimator=name)
    with pytest.raises(UserError, match=f"at least {least} of each"):
        estimate_directions(TARGET[: least - 1, None], NEUTRAL[:, None], config, SHOWN)
    assert estimate_directions(TARGET[:least, None], NEUTRAL[:, None], config, SHOWN[: least + 24]).vectors.any()


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_duplicate_and_constant_residuals_are_no_error(name: str) -> None:
    target, neutral = TARGET[:1].expand(21, -1), NEUTRAL[:1].expand(24, -1)
    found = estimate_directions(target[:, None], neutral[:, None], DirectionConfig(estimator=name), SHOWN)
    assert bool(found.vectors.isfinite().all())
    if name not in ("pca-centred", "variance"):  # there is nothing but the difference of the two rows
        gap = torch.nn.functional.normalize(TARGET[0] - NEUTRAL[0], dim=0)
        assert float(found.vectors[0, 0] @ gap) == pytest.approx(1, abs=1e-4)


def test_a_direction_is_stable_as_far_as_prompts_agree_on_it() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(40, 1, 12, generator=generator), torch.randn(40, 1, 12, generator=generator)
    sure = torch.cat([noise[0] + 20 * torch.eye(12)[0], noise[0]], dim=1)
    found = stability(sure, torch.cat([noise[1], noise[1]], dim=1), DirectionConfig(resamples=10))
    assert float(found[0]) > 0.99
    assert float(found[1]) < 0.9
    assert torch.equal(found, stability(sure, torch.cat([noise[1], noise[1]], dim=1), DirectionConfig(resamples=10)))


def test_stability_is_of_the_winsorised_rows_that_the_directions_are_of() -> None:
    """One massive coordinate is the same in every resample, as long as it is not cut."""
    massive = 500 * torch.eye(WIDTH)[7]
    cut, whole = (
        float(stability((TARGET + massive)[:, None], (NEUTRAL + 0.8 * massive)[:, None], config)[0])
        for config in (DirectionConfig(winsorize=quantile, resamples=5) for quantile in (0.9, None))
    )
    assert whole > 0.999 > cut


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_target_prompts_lie_further_along_a_direction_whatever_is_filtered(name: str) -> None:
    target, neutral = BOTH
    for config in (DirectionConfig(estimator=name), DirectionConfig(estimator=name, orthogonalize=True, benign_rank=8)):
        main = estimate_directions(target, neutral, config, SHOWN).vectors[0]
        gaps = ((target.mean(0) - neutral.mean(0)) * main).sum(-1)
        assert bool((gaps >= 0).all())


def test_a_resample_of_pairs_keeps_the_pairs() -> None:
    """What two prompts of a pair share is large; their difference is small and always the same."""
    generator = torch.Generator().manual_seed(4)
    shared = 50 * torch.randn(40, 1, 12, generator=generator)
    target = shared + torch.eye(12)[0] + 0.05 * torch.randn(40, 1, 12, generator=generator)
    found = stability(target, shared, DirectionConfig(estimator="pca", resamples=5))
    assert float(found[0]) > 0.98
    apart = stability(target, shared.flip(0), DirectionConfig(estimator="pca", resamples=5))
    assert float(apart[0]) < 0.98
