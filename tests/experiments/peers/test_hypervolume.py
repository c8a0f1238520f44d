"""The hypervolume against a brute-force grid, and points worked out by hand."""

from __future__ import annotations

import math
import random

import pytest

from experiments.peers.hypervolume import Point, hypervolume

CELLS = 200


def on_a_grid(points: list[Point]) -> float:
    """The share of cells of [0, 1]² whose upper right corner some point dominates; exact for points on the grid."""
    corners = [(i + 1) / CELLS for i in range(CELLS)]
    dominated = sum(any(x < a and y < b for x, y in points) for a in corners for b in corners)
    return dominated / CELLS**2


@pytest.mark.parametrize("n", [1, 2, 7])
def test_agrees_with_counting_cells(n: int) -> None:
    rng = random.Random(n)
    for _ in range(5):
        points = [(rng.randrange(CELLS + 1) / CELLS, rng.randrange(CELLS + 1) / CELLS) for _ in range(n)]
        assert hypervolume(points) == pytest.approx(on_a_grid(points), abs=1e-12)


def test_by_hand() -> None:
    assert hypervolume([]) == 0
    assert hypervolume([(0.0, 0.0)]) == 1
    assert hypervolume([(1.0, 0.0)]) == 0  # the base itself
    assert hypervolume([(0.0, 2.0), (0.5, math.inf)]) == 0  # beyond the reference
    assert hypervolume([(0.5, 0.25), (0.25, 0.5)]) == pytest.approx(0.5 * 0.75 + 0.25 * 0.5)


def test_order_and_dominated_points_do_not_matter_but_a_better_point_does() -> None:
    front = [(0.1, 0.5), (0.4, 0.2)]
    area = hypervolume(front)
    assert hypervolume([*reversed(front), (0.6, 0.6), (0.1, 0.5)]) == area
    assert hypervolume([*front, (0.2, 0.3)]) > area


def test_not_a_number_is_no_point() -> None:
    with pytest.raises(ValueError, match="not a point"):
        hypervolume([(0.1, 0.1), (math.nan, 0.5)])
