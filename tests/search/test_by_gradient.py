"""What a search makes of its points: the proxy's front, its agreement with generation, edits that do nothing."""

from __future__ import annotations

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.by_gradient import proxy_correlation, proxy_front
from iconoclast_tl.search.objective import ValScores
from iconoclast_tl.search.pareto import changing
from iconoclast_tl.search.proxy import OnPolicy
from iconoclast_tl.search.trace import Point
from tests.search.specs import candidate, with_attention
from tests.search.specs import point as some_point


def point(proxy_rate: float, proxy_kl: float = 0.1, said: float = 0.0) -> Point:
    return some_point(proxy_rate=proxy_rate, proxy_kl=proxy_kl, said=OnPolicy(said, 0.0, 0))


def scores(rate: float) -> ValScores:
    return ValScores(rate, 0.0, 0.1, 0.1)


def test_only_what_nothing_beats_in_both_is_generated_from() -> None:
    points = [point(0.9, 0.1), point(0.5, 0.2), point(0.6, 0.3), point(0.0, 0.9), point(0.0, 0.9)]
    assert proxy_front(points, "suppress") == [0, 1, 3, 4]  # of equal ones both: either may be the better on val
    assert proxy_front(points, "strengthen") == [0]


def test_agreement_is_that_of_ranks_on_train_and_on_val() -> None:
    points = [point(0.1, said=0.0), point(0.2, said=0.3), point(0.7, said=0.2), point(0.9, said=1.0)]
    found = proxy_correlation(points, [scores(0.9), None, scores(0.5), scores(0.1)])
    assert found["train"] == pytest.approx(0.8)  # one neighbouring pair of four the wrong way round
    assert found["val"] == pytest.approx(-1.0)


@pytest.mark.parametrize("rates", [[0.1, 0.2], [0.3, 0.3, 0.3]])
def test_no_agreement_is_made_up_where_there_is_none(rates: list[float]) -> None:
    points = [point(0.1 * i, said=rate) for i, rate in enumerate(rates)]
    assert proxy_correlation(points, [scores(rate) for rate in rates]) == {"train": None, "val": None}


def test_strengths_of_zero_are_no_edit() -> None:
    still = candidate(0, with_attention(0.0, 0.0), scores(1.0))
    moves = candidate(1, with_attention(0.0, -0.1), scores(0.5))
    assert changing([still, moves]) == [moves]
    with pytest.raises(UserError, match="got 1 candidates, every strength 0"):
        changing([still])
