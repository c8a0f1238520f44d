"""Whether one of two shares of independent trials is the larger one: Fisher's exact test, one-sided.

Fisher (1935). Under the null hypothesis, with both totals and the total of hits given, the hits of the first are
hypergeometric: P(X = x) = C(n, x) · C(m, h − x) / C(n + m, h), with h the hits of both.
"""

from __future__ import annotations

from math import comb


def fisher_greater(hits: int, n: int, other_hits: int, other_n: int) -> float:
    """The probability of at least `hits` of n, were both shares the same; 1 where there is nothing to tell."""
    total, both = n + other_n, hits + other_hits
    ways = sum(comb(n, x) * comb(other_n, both - x) for x in range(hits, min(n, both) + 1))
    return ways / comb(total, both)
