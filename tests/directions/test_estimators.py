"""Estimators against their formulas: worked out in numpy, by minimisation, or by scikit-learn in all of d_model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimators.clusters import cones, self_organising_map, som
from iconoclast_tl.directions.estimators.differences import (
    geometric_median,
    hybrid,
    hybrid_difference,
    mean_difference,
    median_difference,
    variance_scaled_difference,
)
from iconoclast_tl.directions.estimators.discriminant import lda, leace, ledoit_wolf
from iconoclast_tl.directions.estimators.principal import contrastive_pca, pca, pca_centred
from iconoclast_tl.directions.estimators.probe import probe, probe_and_pca
from iconoclast_tl.directions.estimators.registry import ESTIMATORS
from iconoclast_tl.directions.estimators.sample import Estimate, Estimation, Sample, Unsuited
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.directions.span import span_of

GENERATOR = torch.Generator().manual_seed(1)
TARGET = torch.randn(21, 6, generator=GENERATOR) * torch.arange(1, 7) + 2
NEUTRAL = torch.randn(33, 6, generator=GENERATOR)
CONFIG = DirectionConfig()


def sample(target: Tensor = TARGET, neutral: Tensor = NEUTRAL, shown: Tensor | None = None) -> Sample:
    if shown is None:
        shown = torch.arange(len(target) + len(neutral)) < len(target)
    return Sample(target.double(), neutral.double(), target.shape[1], shown)


def vector(found: Estimate | Unsuited) -> Tensor:
    assert isinstance(found, Estimate)
    return normalize(found.vectors)[0]


def test_mean_median_and_variance_follow_their_formulas() -> None:
    b, g = TARGET.double().numpy(), NEUTRAL.double().numpy()
    assert np.allclose(mean_difference(TARGET, NEUTRAL), b.mean(0) - g.mean(0))
    assert np.allclose(median_difference(TARGET, NEUTRAL), np.median(b, 0) - np.median(g, 0))
    assert np.allclose(median_difference(TARGET[:20], NEUTRAL), np.median(b[:20], 0) - np.median(g, 0))
    pooled = (21 * b.var(0) + 33 * g.var(0)) / 54
    expected = (b.mean(0) - g.mean(0)) / np.sqrt(pooled + 1e-6 * pooled.mean())
    assert np.allclose(variance_scaled_difference(TARGET, NEUTRAL), expected)
    assert not np.allclose(expected, b.mean(0) - g.mean(0))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_hybrid_lies_between_mean_and_variance(weight: float) -> None:
    unit = torch.nn.functional.normalize
    mean = unit(mean_difference(TARGET, NEUTRAL), dim=0)
    scaled = unit(variance_scaled_difference(TARGET, NEUTRAL), dim=0)
    assert torch.allclose(hybrid_difference(TARGET, NEUTRAL, weight), (1 - weight) * mean + weight * scaled)
    by_settings = hybrid(sample(), DirectionConfig(hybrid_weight=weight)).vectors[0]
    assert torch.equal(by_settings, hybrid_difference(TARGET, NEUTRAL, weight))


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    centre = geometric_median(TARGET)

    def cost(x: Tensor) -> float:
        return float((TARGET.double() - x).norm(dim=1).sum())

    generator = torch.Generator().manual_seed(3)
    for scale in (1e-1, 1e-3, 1e-5):
        for _ in range(20):
            assert (
                cost(centre) <= cost(centre + scale * torch.randn(6, generator=generator, dtype=torch.float64)) + 1e-9
            )
    assert cost(centre) < cost(TARGET.double().mean(0))


def test_the_geometric_median_of_points_on_a_line_may_be_one_of_them() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 5.0], [1.0, -5.0]])
    assert torch.allclose(geometric_median(rows), torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-8)


def test_an_iteration_that_meets_a_row_leaves_it_unless_it_is_the_median() -> None:
    """The first step stands on the mean, which is one of the rows here."""
    stays = torch.tensor([[0.0, 0.0], [-4.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
    assert torch.equal(geometric_median(stays), torch.zeros(2, dtype=torch.float64))
    leaves = torch.tensor([[-0.1], [0.0], [0.1], [2.0], [8.0]]) * torch.tensor([[1.0, 0.0]])
    assert float((geometric_median(leaves)[0] - 0.1).abs()) < 1e-3


def test_an_outlier_moves_the_mean_and_not_the_geometric_median() -> None:
    wild = torch.cat([TARGET, torch.full((1, 6), 1e6)])
    moved = geometric_median(wild) - geometric_median(TARGET)
    assert float(moved.norm()) < 2
    assert float((mean_difference(wild, NEUTRAL) - mean_difference(TARGET, NEUTRAL)).norm()) > 1e4


def test_pca_is_the_axis_of_most_squares_of_paired_differences() -> None:
    differences = TARGET.double() - NEUTRAL[:21].double()
    found, centred = vector(pca(sample(), CONFIG)), vector(pca_centred(sample(), CONFIG))
    largest = torch.linalg.eigh(differences.T @ differences).eigenvectors[:, -1]
    assert abs(float(found @ largest)) == pytest.approx(1)
    deviations = differences - differences.mean(0)
    other = torch.linalg.eigh(deviations.T @ deviations).eigenvectors[:, -1]
    assert abs(float(centred @ other)) == pytest.approx(1)
    assert abs(float(largest @ other)) < 0.99


@pytest.mark.parametrize("estimation", [pca, pca_centred, contrastive_pca, leace, lda])
def test_axes_have_no_sign_of_their_own_and_are_turned_towards_target_prompts(estimation: Estimation) -> None:
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        target, neutral = (torch.randn(20, 6, generator=generator) * scale for scale in (2, 1))
        given = sample(target, neutral)
        found = estimation(given, CONFIG)
        assert isinstance(found, Estimate)
        assert bool((found.vectors @ given.gap >= 0).all())


def test_contrastive_pca_finds_where_targets_vary_more_and_not_where_both_do() -> None:
    generator = torch.Generator().manual_seed(2)
    neutral = torch.randn(400, 6, generator=generator) * torch.tensor([9.0, 1, 1, 1, 1, 1])
    target = torch.randn(400, 6, generator=generator) * torch.tensor([9.0, 1, 4, 3, 1, 1]) + 1
    target[:, 0] = neutral[:, 0]  # varies most, and as much on either side
    found = contrastive_pca(sample(target, neutral), DirectionConfig(components=2))
    assert isinstance(found, Estimate)
    assert abs(float(found.vectors[0, 2])) > 0.95
    assert abs(float(found.vectors[1, 3])) > 0.9
    assert found.weights.tolist() == pytest.approx([1, (9 - 1) / (16 - 1)], abs=0.15)
    plain = contrastive_pca(sample(target, neutral), DirectionConfig(contrast=0))  # the ordinary axis of most variance
    assert isinstance(plain, Estimate)
    assert abs(float(plain.vectors[0, 0])) > 0.99
    nothing = contrastive_pca(sample(target, neutral), DirectionConfig(contrast=100))
    assert isinstance(nothing, Unsuited)


def test_ledoit_and_wolfs_shrinkage_and_lda_are_those_of_scikit_learn() -> None:
    from sklearn.covariance import ledoit_wolf_shrinkage
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    given = sample()
    centred = torch.cat([given.target - given.target.mean(0), given.neutral - given.neutral.mean(0)])
    gamma = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
    assert ledoit_wolf(centred, 6) == pytest.approx(gamma)
    assert 0 < gamma < 1
    oracle = LinearDiscriminantAnalysis(solver="eigen", shrinkage=gamma)
    # Its covariance is the mean of both classes'; with as many prompts of each it is the pooled one.
    even = sample(TARGET, NEUTRAL[:21])
    rows = torch.cat([even.target - even.target.mean(0), even.neutral - even.neutral.mean(0)])
    oracle.shrinkage = ledoit_wolf(rows, 6)
    oracle.fit(even.rows.numpy(), [1] * 21 + [0] * 21)
    found = vector(lda(even, CONFIG))
    assert float(found @ normalize(torch.from_numpy(oracle.coef_[0]))) == pytest.approx(1, abs=1e-9)
    assert float(found @ normalize(even.gap)) < 0.98


@pytest.mark.parametrize(
    "name", ["mean", "geometric-median", "pca", "pca-centred", "contrastive-pca", "lda", "leace", "probe"]
)
def test_coordinates_in_the_span_give_the_same_direction(name: str) -> None:
    """Fewer prompts than dimensions, as always in a large model; the median depends on the basis and is not in this."""
    generator = torch.Generator().manual_seed(4)
    target, neutral = torch.randn(14, 60, generator=generator) + 1, torch.randn(15, 60, generator=generator)
    whole = sample(target, neutral)
    span = span_of(whole.rows)
    assert span.coordinates.shape == (29, 29)
    assert torch.allclose(span.back(span.coordinates), whole.rows, atol=1e-12)
    reduced = Sample(span.coordinates[:14], span.coordinates[14:], 60, whole.shown)
    estimator = ESTIMATORS[name]  # type: ignore[index]
    assert estimator.turns
    direct, by_span = estimator.estimate(whole, CONFIG), estimator.estimate(reduced, CONFIG)
    assert isinstance(direct, Estimate)
    assert isinstance(by_span, Estimate)
    # 1e-5: what the logistic regression's own stopping rule leaves.
    assert float(vector(direct) @ normalize(span.back(by_span.vectors))[0]) == pytest.approx(1, abs=1e-5)
    wrong = ESTIMATORS["median"].estimate(reduced, CONFIG)
    assert isinstance(wrong, Estimate)
    right = vector(ESTIMATORS["median"].estimate(whole, CONFIG))
    assert float(right @ normalize(span.back(wrong.vectors))[0]) < 0.999


def test_leace_reads_what_no_linear_rule_can_read_afterwards() -> None:
    from sklearn.linear_model import LogisticRegression

    given = sample()
    labels = [1] * 21 + [0] * 33
    a = vector(leace(given, CONFIG))
    rows = given.rows - given.rows.mean(0)
    u = rows[:21].mean(0) - rows[21:].mean(0)
    erased = rows - torch.outer(rows @ a, u) / (a @ u)  # LEACE's own, oblique projection
    assert float((erased[:21].mean(0) - erased[21:].mean(0)).norm()) < 1e-9
    before, after = (LogisticRegression(C=1e6).fit(x.numpy(), labels).coef_ for x in (rows, erased))
    assert np.abs(after).max() < 1e-3 < np.abs(before).max()
    assert float(a @ normalize(given.gap)) < 0.98  # not the difference of means


def test_lda_and_leace_find_a_signal_in_more_dimensions_than_prompts() -> None:
    generator = torch.Generator().manual_seed(9)
    target, neutral = torch.randn(100, 500, generator=generator), torch.randn(100, 500, generator=generator)
    target[:, 0] += 6
    for estimate in (lda, leace):
        found = estimate(sample(target, neutral), CONFIG)
        assert float(vector(found)[0]) > 0.8
        assert found.facts["singular"] == "200 prompts for d_model 500"


def test_the_probe_goes_by_what_the_model_did() -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(120, 6, generator=generator)
    shown = rows[:, 3] > 0  # whatever set a prompt is of
    found = probe(sample(rows[:60], rows[60:], shown), CONFIG)
    assert isinstance(found, Estimate)
    assert float(vector(found)[3]) > 0.98
    assert float(found.facts["accuracy"]) > 0.9  # type: ignore[arg-type]
    by_set = probe(sample(rows[:60] + torch.eye(6)[0] * 3, rows[60:]), CONFIG)
    assert isinstance(by_set, Estimate)
    assert float(vector(by_set)[0]) > 0.9


def test_the_probe_is_scikit_learns_of_rows_of_unit_size_with_balanced_classes() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(9)
    rows = 30 * torch.randn(120, 6, generator=generator, dtype=torch.float64) + 50
    noise = 20 * torch.randn(120, generator=generator)
    shown = rows @ torch.tensor([1.0, 0.5, 0, 0, 0, 0]).double() + noise > 110  # of about a fifth
    assert 10 < int(shown.sum()) < 40
    found = vector(probe(Sample(rows[:60], rows[60:], 6, shown), CONFIG))
    centred = rows - rows.mean(0)
    scaled = (centred / centred.square().sum(1).mean().sqrt()).numpy()

    def oracle(x: np.ndarray, balance: str | None) -> Tensor:
        fitted = LogisticRegression(C=10.0, class_weight=balance, max_iter=500).fit(x, shown.numpy())
        return normalize(torch.from_numpy(fitted.coef_[0]))

    assert float(found @ oracle(scaled, "balanced")) == pytest.approx(1, abs=1e-7)
    for other in (oracle(scaled, None), oracle(centred.numpy(), "balanced")):
        assert float(found @ other) < 1 - 1e-5


def test_a_probe_that_says_what_most_responses_did_has_learnt_nothing() -> None:
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(10))
    assert isinstance(probe(sample(rows[:100], rows[100:], torch.arange(200) % 10 == 0), CONFIG), Unsuited)


def test_resampled_rows_keep_what_the_model_did_on_them() -> None:
    shown = torch.arange(54) % 3 == 0
    picked = sample(shown=shown).resampled(torch.tensor([0, 2, 2]), torch.tensor([1, 0]))
    assert picked.shown is not None
    assert picked.shown.tolist() == [bool(shown[row]) for row in (0, 2, 2, 21 + 1, 21)]
    assert torch.equal(picked.rows, torch.cat([TARGET[[0, 2, 2]], NEUTRAL[[1, 0]]]).double())


def test_a_probe_falls_back_with_few_responses_of_a_kind_or_nothing_to_tell_them_by() -> None:
    few = probe(sample(shown=torch.arange(54) < 9), CONFIG)
    assert isinstance(few, Unsuited)
    assert "9 responses with" in few.reason
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(200, 6, generator=generator)
    blind = probe(sample(noise[:100], noise[100:]), CONFIG)
    assert isinstance(blind, Unsuited)
    assert "0.65" in blind.reason
    assert isinstance(probe_and_pca(sample(noise[:100], noise[100:]), CONFIG), Unsuited)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_probe_and_pca_mixes_unit_vectors(weight: float) -> None:
    first, second = vector(probe(sample(), CONFIG)), vector(pca(sample(), CONFIG))
    mixed = vector(probe_and_pca(sample(), DirectionConfig(probe_weight=weight)))
    assert torch.allclose(mixed, normalize(weight * first + (1 - weight) * second))


def three_clusters(spread: float) -> tuple[Sample, Tensor]:
    generator = torch.Generator().manual_seed(7)
    centres = torch.eye(8)[:3] * 10
    rows = [
        centre + spread * torch.randn(n, 8, generator=generator) for centre, n in zip(centres, (30, 20, 3), strict=True)
    ]
    return sample(torch.cat(rows), torch.randn(40, 8, generator=generator)), centres


def test_cones_are_the_clusters_and_small_ones_are_skipped() -> None:
    given, _ = three_clusters(0.5)
    found = cones(given, CONFIG)
    assert isinstance(found, Estimate)
    assert (found.facts["clusters"], found.facts["skipped"]) == (2, 1)
    expected = torch.stack([given.target[:30].mean(0), given.target[30:50].mean(0)]) - given.neutral.mean(0)
    assert torch.allclose(found.vectors, expected)
    just = cones(given, DirectionConfig(min_cluster=20))
    assert isinstance(just, Estimate)
    assert len(just.vectors) == 2
    everything = cones(given, DirectionConfig(min_cluster=1))
    assert isinstance(everything, Estimate)
    assert len(everything.vectors) == 3


def test_without_clusters_there_is_one_global_direction() -> None:
    generator = torch.Generator().manual_seed(8)
    cloud = sample(torch.randn(80, 20, generator=generator) + 1, torch.randn(80, 20, generator=generator))
    found = cones(cloud, CONFIG)
    assert isinstance(found, Unsuited)
    assert "silhouette" in found.reason
    assert isinstance(cones(cloud, DirectionConfig(min_silhouette=-1)), Estimate)


def test_rows_that_are_the_same_make_no_clusters() -> None:
    same = sample(torch.ones(20, 6), NEUTRAL)
    assert isinstance(cones(same, CONFIG), Unsuited)
    found = som(same, DirectionConfig(components=9))
    assert isinstance(found, Estimate)
    assert len(found.vectors) == 1  # units that no row is nearest to are left out


def test_a_map_lies_where_the_rows_are() -> None:
    given, centres = three_clusters(0.5)
    units, hits = self_organising_map(given.target, 3, 3)
    assert int(hits.sum()) == 53
    assert bool((torch.cdist(centres.double(), units).min(1).values < 1.5).all())
    again, _ = self_organising_map(given.target, 3, 3)
    assert torch.equal(units, again)
    found = som(given, DirectionConfig(components=2))
    assert isinstance(found, Estimate)
    top = hits.argsort(descending=True, stable=True)[:2]
    assert torch.allclose(found.vectors, units[top] - given.neutral.mean(0))
    alone, _ = self_organising_map(given.target, 1, 1)
    assert torch.allclose(alone[0], given.target.mean(0))
