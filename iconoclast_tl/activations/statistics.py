"""Streaming statistics in float64: a mutable accumulator that yields a frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ActivationStats:
    """Mean and population variance over `n` rows."""

    n: int
    mean: Float[Tensor, "*site d_model"]
    variance: Float[Tensor, "*site d_model"]


class ResidualStats:
    """Mean and variance of rows that arrive in batches, by Chan's parallel update.

    Two passes' accuracy in one: no sum of squares whose difference cancels. Chan, Golub and LeVeque, Technical Report
    STAN-CS-79-773, 1979.
    """

    def __init__(self) -> None:
        """Start with no rows."""
        self._n = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    @property
    def n(self) -> int:
        """Rows that were seen."""
        return self._n

    def update(self, rows: Float[Tensor, "batch *site d_model"]) -> None:
        """Take in a batch of rows."""
        rows = rows.double().cpu()
        n, mean = rows.shape[0], rows.mean(0)
        squares = (rows - mean).square().sum(0)
        if self._mean is None or self._squares is None:
            self._n, self._mean, self._squares = n, mean, squares
            return
        total = self._n + n
        delta = mean - self._mean
        self._squares = self._squares + squares + delta.square() * (self._n * n / total)
        self._mean = self._mean + delta * (n / total)
        self._n = total

    def stats(self) -> ActivationStats:
        """What was seen so far; `ValueError` where that is nothing."""
        if self._mean is None or self._squares is None:
            raise ValueError("no rows were seen")
        return ActivationStats(self._n, self._mean, self._squares / self._n)
