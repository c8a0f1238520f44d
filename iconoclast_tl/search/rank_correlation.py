"""Spearman's rank correlation of a proxy with what was generated."""

from __future__ import annotations

from collections.abc import Sequence


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's ρ of (proxy, generated) pairs; None for fewer than three pairs, or where one side is constant."""
    from scipy.stats import spearmanr

    if len(pairs) < 3 or any(len({pair[side] for pair in pairs}) == 1 for side in (0, 1)):
        return None
    proxies, rates = zip(*pairs, strict=True)
    return float(spearmanr(proxies, rates).statistic)
