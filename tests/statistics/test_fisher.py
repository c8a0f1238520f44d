"""Fisher's exact test against counting every table, and by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from iconoclast_tl.statistics.fisher import fisher_greater


@pytest.mark.parametrize(("hits", "n", "other", "m"), [(3, 5, 1, 4), (0, 4, 2, 3), (4, 4, 0, 3), (2, 3, 2, 5)])
def test_it_is_the_share_of_ways_to_deal_the_hits(hits: int, n: int, other: int, m: int) -> None:
    dealt = list(combinations(range(n + m), hits + other))
    as_many = sum(sum(place < n for place in places) >= hits for places in dealt)
    assert fisher_greater(hits, n, other, m) == pytest.approx(as_many / len(dealt))


def test_hits_on_one_side_alone() -> None:
    assert fisher_greater(2, 108, 0, 108) == pytest.approx(107 / 215 / 2)
    assert fisher_greater(0, 50, 0, 50) == 1
    assert fisher_greater(0, 0, 0, 0) == 1
    assert fisher_greater(0, 10, 9, 10) == 1  # fewer is never shown to be more
