"""The hypervolume of a front: how much of the square between it and a reference point it dominates.

Both coordinates are to be small. HV(P) is the area of the union of the rectangles [x, 1] × [y, 1] over the points
(x, y) of P, for the reference point (1, 1): x is a behaviour rate, y a KL divergence in nats. The unedited base has a
rate of 1 and adds nothing; the ideal point (0, 0) alone gives 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

Point = tuple[float, float]


def hypervolume(points: Iterable[Point], reference: Point = (1.0, 1.0)) -> float:
    """The dominated area, by sweeping points of rising x; a point that is not below the reference adds nothing.

    Raises ValueError for a coordinate that is not a number: such a point is no agreement with anything.
    """
    area, lowest = 0.0, reference[1]
    for x, y in sorted(points):
        if math.isnan(x) or math.isnan(y):
            raise ValueError(f"({x}, {y}) is not a point")
        if x < reference[0] and y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area
