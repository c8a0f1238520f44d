"""Estimators that users bring: what they are given, where their names count, and one line for what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.estimate import estimate_directions, stability
from iconoclast_tl.directions.estimators.registry import ESTIMATORS, estimator
from iconoclast_tl.directions.estimators.sample import Estimate, Sample, Unsuited
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.stage_config import validated
from iconoclast_tl.search.config import OuterConfig
from tests.plugins import own_registries

GENERATOR = torch.Generator().manual_seed(0)
TARGET = torch.randn(9, 3, 12, generator=GENERATOR) + torch.arange(12) / 4
NEUTRAL = torch.randn(7, 3, 12, generator=GENERATOR)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with own_registries():
        yield


def found(**settings: Any) -> Tensor:
    return estimate_directions(TARGET, NEUTRAL, DirectionConfig(**settings)).vectors


def test_a_function_of_residuals_is_an_estimator_with_filters_like_any_other() -> None:
    seen: list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]] = []

    @estimator("mine")
    def mine(target: Tensor, neutral: Tensor) -> Tensor:
        seen.append((target.dtype, tuple(target.shape), tuple(neutral.shape)))
        return 7 * (target.mean(0) - neutral.mean(0))

    assert seen == []
    for filters in ({}, {"orthogonalize": True, "benign_rank": 2}):
        assert torch.allclose(found(estimator="mine", **filters), found(**filters), atol=1e-6)
    assert set(seen) == {(torch.float64, (9, 12), (7, 12))}
    assert mine(TARGET[:, 0], NEUTRAL[:, 0]).shape == (12,)  # the decorator gives the function back
    assert not torch.allclose(found(estimator="median"), found(), atol=1e-3)  # the negative control


def test_several_rows_are_several_directions_and_numpy_will_do() -> None:
    @estimator("two")
    def two(target: Tensor, neutral: Tensor) -> np.ndarray:  # type: ignore[type-arg]
        return np.stack([(target.mean(0) - neutral.mean(0)).numpy(), target.numpy()[0]])

    vectors = found(estimator="two")
    assert vectors.shape == (2, 3, 12)
    assert torch.allclose(vectors[0], found()[0], atol=1e-6)
    assert torch.allclose((vectors[0] * vectors[1]).sum(-1), torch.zeros(3), atol=1e-6)


def test_a_function_of_a_sample_has_settings_facts_and_may_find_nothing() -> None:
    @estimator("picky", takes="sample", least=2)
    def picky(sample: Sample, config: DirectionConfig) -> Estimate | Unsuited:
        if config.components == 1:
            return Unsuited("one component is too few")
        return Estimate(sample.target[:2], torch.tensor([1.0, 0.5]), {"rows": len(sample.rows)})

    two = estimate_directions(TARGET, NEUTRAL, DirectionConfig(estimator="picky"))
    assert two.weights[:, 1].tolist() == [1, 0.5]
    assert two.facts[0] == {"rows": 16}
    fell = estimate_directions(TARGET, NEUTRAL, DirectionConfig(estimator="picky", components=1, fallback="median"))
    assert torch.equal(fell.vectors, found(estimator="median"))
    assert fell.notes("picky", "median") == ["picky fell back to median at points 0-2: one component is too few"]
    with pytest.raises(UserError, match="the estimator picky needs more prompts"):
        estimate_directions(TARGET[:1], NEUTRAL, DirectionConfig(estimator="picky"))


def test_its_name_counts_wherever_an_estimators_does() -> None:
    @estimator("mine")
    def mine(target: Tensor, neutral: Tensor) -> Tensor:
        return target.mean(0) - neutral.mean(0)

    @estimator("picky", takes="sample")
    def picky(sample: Sample, config: DirectionConfig) -> Unsuited:
        return Unsuited("never")

    config = validated(DirectionConfig, {"estimator": "picky", "compare": ("mine",), "fallback": "mine"})
    assert torch.allclose(estimate_directions(TARGET, NEUTRAL, config).vectors, found(), atol=1e-6)
    assert OuterConfig(estimators=("mine", "mean")).estimators == ("mine", "mean")
    for settings in ({"estimator": "yours"}, {"compare": ("mean", "yours")}, {"fallback": "yours"}):
        with pytest.raises(UserError, match=r"there is no estimator 'yours' \(.*want one of cones.* mine.*--plugin"):
            validated(DirectionConfig, settings)
    with pytest.raises(UserError, match="fallback does not fit: got 'picky'; want an estimator that always finds"):
        validated(DirectionConfig, {"fallback": "picky"})
    with pytest.raises(UserError, match="the estimator name 'mean' is taken"):
        estimator("mean")(mine)


def test_pairs_stay_pairs_when_prompts_are_resampled() -> None:
    pairs: list[bool] = []

    def looks(target: Tensor, neutral: Tensor) -> Tensor:
        pairs.append(len(target) == len(neutral) and bool((target[:, 0] == neutral[:, 0]).all()))
        return target.mean(0) - neutral.mean(0)

    estimator("pairs", paired=True)(looks)
    estimator("sides")(looks)
    neutral = TARGET.clone()
    neutral[..., 1:] -= 1
    for name, kept in (("pairs", True), ("sides", False)):
        pairs.clear()
        stability(TARGET, neutral, DirectionConfig(estimator=name, resamples=4))
        assert all(pairs) == kept


def test_one_that_turns_is_given_coordinates_and_finds_the_same() -> None:
    widths: set[int] = set()

    @estimator("turning", turns=True)
    def turning(target: Tensor, neutral: Tensor) -> Tensor:
        widths.add(target.shape[1])
        return target.mean(0) - neutral.mean(0)

    few = TARGET[:3], NEUTRAL[:3]
    vectors = estimate_directions(*few, DirectionConfig(estimator="turning")).vectors
    assert widths == {6}
    assert torch.allclose(vectors, estimate_directions(*few, DirectionConfig()).vectors, atol=1e-6)


def _raises(target: Tensor, neutral: Tensor) -> Tensor:
    return target @ neutral


WRONG: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "shape": (lambda b, g: b[0][:5], r"returns another shape: got \(1, 5\); want \(12,\) or \(k, 12\)"),
    "none": (lambda b, g: b[:0], r"returns another shape: got \(0, 12\)"),
    "nan": (lambda b, g: b[0] / 0 * 0, "returns numbers that are not finite: got 12 of them"),
    "text": (lambda b, g: "north", "returns no vector: got str; want 12 numbers"),
    "nothing": (lambda b, g: None, "returns no vector: got NoneType"),
    "raises": (_raises, r"raises an error: got RuntimeError: .* \(test_own\.py, line \d+\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_it_is_one_line_that_names_it(name: str) -> None:
    function, told = WRONG[name]
    estimator(name)(function)
    with pytest.raises(UserError, match=f"the estimator {name} {told}") as error:
        found(estimator=name)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_an_estimate_is_told_too() -> None:
    estimator("tuple", takes="sample")(lambda sample, config: sample.gap)
    estimator("weights", takes="sample")(lambda sample, config: Estimate(sample.target[:1], torch.tensor([torch.nan])))
    with pytest.raises(UserError, match="the estimator tuple returns no estimate: got Tensor; want an Estimate"):
        found(estimator="tuple")
    with pytest.raises(UserError, match="the estimator weights returns weights that do not fit"):
        found(estimator="weights")
    with pytest.raises(UserError, match='labels, which residuals are without: pass takes="sample"'):
        estimator("blind", labels=True)(_raises)
    assert "blind" not in ESTIMATORS
