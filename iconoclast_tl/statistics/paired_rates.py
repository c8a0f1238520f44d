"""The rates of two sets of labels of the same prompts, and everything that is asked of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.statistics.effects import Effect, RiskDifference, cohens_d, paired_risk_difference
from iconoclast_tl.statistics.paired import McNemar, mcnemar


@dataclass(frozen=True, kw_only=True)
class PairedRates:
    """Of a base and an edited model, or of any first and second."""

    n: int
    """Prompts that both have a label of."""
    left_out: int
    """Prompts without a label of one or the other: they are in none of these numbers."""
    base: float
    edited: float
    difference: RiskDifference
    """edited − base, with its interval for paired data."""
    test: McNemar
    d: Effect
    """Over the pooled sd of the two samples of labels."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "n": self.n,
            "left_out": self.left_out,
            "base": self.base,
            "edited": self.edited,
            "risk_difference": self.difference.to_json(),
            "p": self.test.p,
            "lost": self.test.lost,
            "gained": self.test.gained,
            "cohens_d": self.d.to_json(),
        }


def paired_rates(base: Sequence[bool | None], edited: Sequence[bool | None]) -> PairedRates:
    """Labels of the same prompts in the same order; None where there is none, and the prompt is left out.

    `ValueError` where no prompt has both labels, and for sequences of other lengths.
    """
    if len(base) != len(edited):
        raise ValueError(f"{len(base)} and {len(edited)} labels are no pairs")
    pairs = [(one, other) for one, other in zip(base, edited, strict=True) if one is not None and other is not None]
    if not pairs:
        raise ValueError("no prompt has a label of both")
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    return PairedRates(
        n=len(pairs),
        left_out=len(base) - len(pairs),
        base=sum(first) / len(pairs),
        edited=sum(second) / len(pairs),
        difference=paired_risk_difference(first, second),
        test=mcnemar(first, second),
        d=cohens_d([float(one) for one in first], [float(one) for one in second]),
    )
