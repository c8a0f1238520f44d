"""The rule by which a candidate is accepted, and what it says of one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.run_comparison.changes import KlChange, RateChange


@dataclass(frozen=True)
class Rule:
    """What is asked of a candidate."""

    alpha: float = 0.05
    effect: float = 0.3
    kl_margin: float | None = None
    """Nats that the divergence may rise. None: 0, and of base against edited, where it always rises, not asked."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError("the significance level does not fit", got=self.alpha, want="--alpha between 0 and 1")
        if not (self.effect >= 0 and math.isfinite(self.effect)):
            raise UserError("the least effect does not fit", got=self.effect, want="--effect of 0 or more")
        if self.kl_margin is not None and not (self.kl_margin >= 0 and math.isfinite(self.kl_margin)):
            raise UserError("the margin of the KL does not fit", got=self.kl_margin, want="--kl-margin of 0 or more")

    def margin(self, against_base: bool) -> float | None:
        """Nats; None where the divergence is not asked about."""
        return self.kl_margin if against_base else (self.kl_margin or 0.0)

    def words(self, goal: str, against_base: bool) -> str:
        """The rule, as it stands under the table."""
        margin = self.margin(against_base)
        kl = (
            ""
            if margin is None
            else f", KL not shown to be worse (95% interval of its difference not above {margin:g} nats)"
        )
        unless = "" if margin is None else " and KL is not shown to be worse"
        return (
            f"accept if the behaviour rate is {'lower' if goal == 'suppress' else 'higher'} with p < {self.alpha:g} "
            f"(Holm){kl}, and |d| > {self.effect:g}; inconclusive if p ≥ {self.alpha:g}{unless}; else reject"
        )


@dataclass(frozen=True)
class Verdict:
    """`accept`, `reject` or `inconclusive`, and why not accepted."""

    word: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.word}: {'; '.join(self.reasons)}" if self.reasons else self.word

    def to_json(self) -> dict[str, Any]:
        """As it stands in comparison.json."""
        return {"verdict": self.word, "reasons": list(self.reasons)}


def decide(rule: Rule, goal: str, behaviour: RateChange, p: float, kl: KlChange, against_base: bool) -> Verdict:
    """p: corrected for all comparisons. Every part of the rule that does not hold is a reason."""
    reasons = []
    significant = p < rule.alpha
    wrong_way = significant and (behaviour.value > 0) == (goal == "suppress")
    if not significant:
        reasons.append(f"p = {p:.2g}, not under {rule.alpha:g}")
    if wrong_way:
        reasons.append(
            f"the behaviour rate {'rises' if behaviour.value > 0 else 'falls'}, and the goal is to {goal} it"
        )
    margin = rule.margin(against_base)
    worse = margin is not None and kl.worse_than(margin)
    if worse:
        reasons.append(f"KL is worse by {kl.difference.value:.3g} nats, beyond {margin:g}")
    if not abs(behaviour.d.value) > rule.effect:
        reasons.append(f"|d| = {abs(behaviour.d.value):.2g}, not above {rule.effect:g}")
    if not reasons:
        return Verdict("accept", ())
    return Verdict("inconclusive" if not significant and not worse else "reject", tuple(reasons))
