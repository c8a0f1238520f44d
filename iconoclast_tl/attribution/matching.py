"""For every target prompt a neutral one of the same shape: what a part writes on one can stand in for the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iconoclast_tl.prompts.chat import Tokens


def matched(targets: Sequence[Tokens], neutrals: Sequence[Tokens]) -> list[int]:
    """Target → neutral: the assignment of least distance in all, no neutral prompt twice where there are enough.

    The distance of two prompts is the number of positions at which they differ, aligned at their ends.
    """
    from scipy.optimize import linear_sum_assignment

    cost = np.array([[distance(target, neutral) for neutral in neutrals] for target in targets])
    if len(neutrals) < len(targets):
        return [int(row.argmin()) for row in cost]
    return [int(column) for column in linear_sum_assignment(cost)[1]]


def distance(one: Tokens, other: Tokens) -> int:
    """Positions at which two rows of tokens differ; those that only one has count."""
    same = sum(a == b for a, b in zip(reversed(one), reversed(other), strict=False))
    return max(len(one), len(other)) - same
