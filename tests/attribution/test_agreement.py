"""Agreement of methods, matched prompts, and what direct attribution overlooks, on numbers written down by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from iconoclast_tl.attribution.agreement import method_agreement, overlooked
from iconoclast_tl.attribution.matching import distance, matched
from iconoclast_tl.attribution.parts import Part
from iconoclast_tl.attribution.result import Attribution, PositionSums
from iconoclast_tl.attribution.study import require_different
from iconoclast_tl.foundation.errors import UserError

PARTS = tuple(Part(layer, "head", head) for layer in range(3) for head in range(4))


def attribution(method: str, means: list[float], noise: float = 0.0, n: int = 20) -> Attribution:
    generator = torch.Generator().manual_seed(len(method))
    values = torch.tensor(means) + noise * torch.randn(n, len(means), generator=generator)
    return Attribution(method, "score", PARTS[: len(means)], values)


def test_the_rank_correlation_is_scipys_and_its_interval_holds_it() -> None:
    one = attribution("one", [float(i) for i in range(12)], noise=2.0)
    other = attribution("other", [float(i % 5) for i in range(12)], noise=2.0)
    found = method_agreement(one, other, 4)
    expected = spearmanr(one.means.numpy(), other.means.numpy()).statistic
    value, low, high = found.rank_correlation
    assert value == pytest.approx(expected, abs=1e-9)
    assert low < value < high
    common = set(one.top(4)) & set(other.top(4))
    assert found.overlap[0] == pytest.approx(len(common) / 4)
    assert method_agreement(one, one, 4).rank_correlation == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    up, down = (attribution(name, [sign * i for i in range(12)]) for name, sign in (("up", 1.0), ("down", -1.0)))
    assert method_agreement(up, down, 4).rank_correlation[0] == pytest.approx(-1)


def test_methods_are_compared_over_the_parts_that_both_have() -> None:
    wide = attribution("wide", [float(i) for i in range(12)])
    narrow = Attribution("narrow", "score", PARTS[6:], wide.values[:, 6:])
    assert method_agreement(wide, narrow, 3).rank_correlation[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="run on different prompts"):
        method_agreement(wide, attribution("few", [1.0, 2.0], n=3), 1)


def test_a_gate_that_writes_next_to_nothing_is_named() -> None:
    direct = attribution("direct-contrast", [10.0, 0.01, 5.0, 0.01])
    effects = attribution("ablate", [2.0, 3.0, 0.1, 0.0], noise=0.1)
    (found,) = overlooked(direct, [effects], gap=10.0)
    assert found.part == PARTS[1]
    assert found.effect == pytest.approx(0.3, abs=0.02)
    assert found.direct_share < 0.01
    assert not overlooked(attribution("direct-contrast", [10.0, 1.0, 5.0, 0.01]), [effects], gap=10.0)
    swings = torch.tensor([60.0, -60.0]).repeat(10)[:, None]  # a mean of 3 that other prompts might have made −3
    uncertain = Attribution("ablate", "score", effects.parts, effects.means.float() + swings)
    assert float(uncertain.means[1]) == pytest.approx(float(effects.means[1]), abs=1e-4)
    assert not overlooked(direct, [uncertain], gap=10.0)


def test_intervals_are_those_of_the_mean() -> None:
    found = attribution("one", [1.0, -2.0], noise=1.0, n=400)
    low, high = found.intervals[0].tolist()
    error = float(found.values[:, 0].std()) / 20
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < float(found.means[0]) < high


def test_prompts_are_matched_by_tokens_aligned_at_their_ends() -> None:
    targets = [[1, 2, 3, 9], [5, 6, 7, 8, 9], [1, 1]]
    neutrals = [[4, 6, 7, 8, 9], [2, 1], [1, 2, 4, 9], [1, 2, 3]]
    assert matched(targets, neutrals) == [2, 0, 1]
    assert matched(targets, neutrals[:1]) == [0, 0, 0]  # fewer than targets: some serve twice
    assert distance([1, 2, 3], [2, 3]) == 1
    assert distance([1, 2, 3], [1, 2]) == 3


def test_positions_are_counted_from_the_end_and_averaged_over_the_prompts_that_have_them() -> None:
    sums = PositionSums(1)
    values = torch.tensor([[[1.0], [2.0], [3.0]], [[9.0], [4.0], [5.0]]])
    sums.add(values, torch.tensor([[1, 1, 1], [0, 1, 1]]), 1, torch.tensor([0, 1]))
    found = sums.result()
    assert found.positions == (-1, 0, 1)
    assert found.n.tolist() == [1, 2, 2]
    assert found.values[:, 0].tolist() == [1.0, 3.0, 4.0]


def test_a_score_that_tells_nothing_apart_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    target, neutral = torch.randn(30, generator=generator), torch.randn(30, generator=generator)
    with pytest.raises(UserError, match="the score logit does not differ between target and neutral prompts"):
        require_different(target, neutral, "logit")
    require_different(target + 2, neutral, "logit")
