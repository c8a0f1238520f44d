"""Match every target prompt with a similar neutral prompt, so that a part's output on one can replace the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iconoclast_tl.prompts.tokens import Tokens


def matched(targets: Sequence[Tokens], neutrals: Sequence[Tokens]) -> list[int]:
    """The index of a neutral prompt for every target prompt: the assignment of least total distance.

    No neutral prompt is used twice where there are enough.

    The distance of two prompts is the number of positions at which they differ, aligned at their ends.
    """
    from scipy.optimize import linear_sum_assignment

    cost = np.array([[distance(target, neutral) for neutral in neutrals] for target in targets])
    if len(neutrals) < len(targets):
        return [int(row.argmin()) for row in cost]
    return [int(column) for column in linear_sum_assignment(cost)[1]]


def distance(one: Tokens, other: Tokens) -> int:
    """Positions at which two rows of tokens differ, aligned at their ends; positions that only one has count."""
    same = sum(a == b for a, b in zip(reversed(one), reversed(other), strict=False))
    return max(len(one), len(other)) - same
