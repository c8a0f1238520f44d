"""Diagnostics against slow versions of themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.diagnostics import Sides, diagnose, pair_agreement, separation_intervals, silhouette
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions, stability
from iconoclast_tl.directions.estimators.sample import Sample
from iconoclast_tl.directions.separation import auroc, d_prime, separation

GENERATOR = torch.Generator().manual_seed(0)
TARGET = torch.randn(24, 3, 10, generator=GENERATOR) + 0.6
NEUTRAL = torch.randn(20, 3, 10, generator=GENERATOR)
SIDES = Sides(TARGET[:14], NEUTRAL[:12], TARGET[14:], NEUTRAL[12:])


def sample() -> Sample:
    return Sample(TARGET[:, 1].double(), NEUTRAL[:, 1].double(), 10)


def test_pair_agreement_is_the_mean_cosine_of_paired_differences() -> None:
    differences = (TARGET[:20, 1] - NEUTRAL[:, 1]).double()
    units = torch.nn.functional.normalize(differences, dim=1)
    cosines = units @ units.T
    assert pair_agreement(sample()) == pytest.approx(float(cosines[~torch.eye(20, dtype=torch.bool)].mean()))
    apart = Sample(sample().target + 100, sample().neutral, 10)
    assert pair_agreement(apart) > 0.99


def test_silhouette_tells_two_clouds_from_one() -> None:
    apart = Sample(sample().target + 100, sample().neutral, 10)
    assert silhouette(apart) > 0.9 > 0.3 > silhouette(sample())
    assert silhouette(Sample(torch.ones(3, 4).double(), torch.ones(3, 4).double(), 4)) == 0


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    b, g = TARGET[:, 1, 0].double(), NEUTRAL[:, 1, 0].double()
    (value, low, high), (share, under, over) = separation_intervals(b, g)
    assert value == pytest.approx(float(d_prime(b, g)))
    assert share == pytest.approx(auroc(b, g))
    rng = np.random.default_rng(0)
    picks = [(rng.choice(b, len(b)), rng.choice(g, len(g))) for _ in range(1000)]
    primes = [float(d_prime(torch.from_numpy(x), torch.from_numpy(y))) for x, y in picks]
    shares = [np.mean([(t > g_) + 0.5 * (t == g_) for t in x for g_ in y]) for x, y in picks]
    # 0.1: the ends of two sets of a thousand resamples differ by chance.
    assert (low, high) == pytest.approx(tuple(np.quantile(primes, [0.025, 0.975])), abs=0.1)
    assert (under, over) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])), abs=0.05)
    assert low < value < high


def test_ties_count_half_and_the_share_is_of_targets_above() -> None:
    b, g = torch.tensor([2.0, 2.0, 3.0]).double(), torch.tensor([2.0, 1.0]).double()
    assert auroc(b, g) == pytest.approx((0.5 + 1 + 0.5 + 1 + 1 + 1) / 6)
    assert auroc(g, b) == pytest.approx(1 / 6)
    same = torch.full((8,), 2.0).double()
    assert separation_intervals(same, same)[1] == (0.5, 0.5, 0.5)


def test_every_point_is_described_and_estimators_are_compared() -> None:
    config = DirectionConfig(resamples=5, compare=("mean", "lda", "pca"))
    found = estimate_directions(SIDES.target_train, SIDES.neutral_train, config)
    apart = separation(found.vectors[0], SIDES.target_val, SIDES.neutral_val)
    directions = Directions(found.vectors, apart, found.weights)
    seen = diagnose(directions, SIDES, config)
    steady = stability(SIDES.target_train, SIDES.neutral_train, config)
    assert [point.stability for point in seen.points] == steady.tolist()
    assert [point.hook for point in seen.points] == [
        "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post",
    ]  # fmt: skip
    lda = estimate_directions(SIDES.target_train, SIDES.neutral_train, DirectionConfig(estimator="lda"))
    for number, point in enumerate(seen.points):
        assert set(point.cosines) == {"lda", "pca"}
        assert point.cosines["lda"] == pytest.approx(float(found.vectors[0, number] @ lda.vectors[0, number]), abs=1e-6)
        assert point.separation[0] == pytest.approx(float(apart[number]))
        assert point.stability is not None
        assert 0.3 < point.stability < 1
        assert point.n_directions == 1
        b, g = (rows[:, number].double().mean(0) for rows in (SIDES.target_train, SIDES.neutral_train))
        assert (point.difference_norm, point.neutral_norm) == pytest.approx((float((b - g).norm()), float(g.norm())))
        before = None if number == 0 else pytest.approx(float(found.vectors[0, number] @ found.vectors[0, number - 1]))
        assert point.cosine_previous == before
    names, cosines = seen.between_estimators
    assert names == ("mean", "lda", "pca")
    assert float(cosines[0, 1]) == pytest.approx(seen.points[seen.best].cosines["lda"])
    assert torch.allclose(
        seen.along_best["target"], (SIDES.target_val[:, seen.best] @ directions.main[seen.best]).double(), atol=1e-5
    )
    assert torch.allclose(seen.between_points.diagonal(), torch.ones(3, dtype=torch.float64))
    quick = diagnose(directions, SIDES, DirectionConfig(resamples=0, compare=()))
    assert quick.points[1].stability is None
    assert quick.points[1].cosines == {}
