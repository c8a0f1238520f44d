"""The Pareto front of (behaviour rate, KL), and rules that choose one point of a search.

A rate on n val prompts tells no difference under 1/n, and chance moves it by several times that. So the default rule
counts val and train prompts together, where the search generated from both, and takes the least KL among the points
that are not worse than the best beyond what chance explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.search.objective import Goal, KlKind, ValScores
from iconoclast_tl.search.spec import EditSpec
from iconoclast_tl.statistics.fisher import fisher_greater

Rule = Literal["interval", "lexicographic", "knee", "least-kl"]
WORSE = 0.2
"""One-sided p under which a share of missed prompts counts as larger than the best's. Of 108 prompts the best may miss
none, and a point that misses 2 passes (p = 0.25), one that misses 3 does not (0.12): a stricter level would pass points
that leave more of the behaviour than most users would want."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished trial, or a confirmed point of a gradient's trace: the spec of its edit and its scores."""

    number: int
    spec: EditSpec
    scores: ValScores
    proxy_rate: float | None = None
    """The search's estimate of the behaviour rate, before anything was generated; None where it made none."""
    train_rate: float | None = None
    """The behaviour rate of what was generated from train prompts; None where nothing was."""
    train_broken_rate: float = 0.0
    """The share of those responses that fell apart."""
    train_n: int = 0
    """Train prompts that were generated from."""
    choices: Mapping[str, Any] = field(default_factory=dict)
    """What a study's trial chose, by Optuna's names; empty for a gradient."""

    def train_shortfall(self, goal: Goal) -> float:
        """The share of train prompts at which the goal is missed; 0 where nothing was generated."""
        if self.train_rate is None:
            return 0.0
        return self.train_rate + self.train_broken_rate if goal == "suppress" else 1 - self.train_rate

    def missed(self, goal: Goal) -> tuple[int, int]:
        """At how many target prompts of val and train the goal is missed, and of how many."""
        n, n_train = self.scores.n, self.train_n if self.train_rate is not None else 0
        return round(self.scores.shortfall(goal) * n) + round(self.train_shortfall(goal) * n_train), n + n_train


def pareto_front(candidates: Sequence[Candidate], kl: KlKind, goal: Goal = "suppress") -> list[Candidate]:
    """The candidates that no other beats in one of (behaviour rate, KL) without losing in the other, by rising rate.

    Of equal rates the one that is less on train prompts counts as less; of equal points the earliest trial stands.
    """

    def missed(candidate: Candidate) -> tuple[float, float]:
        return candidate.scores.shortfall(goal), candidate.train_shortfall(goal)

    ordered = sorted(candidates, key=lambda c: (*missed(c), c.scores.kl(kl), c.number))
    front: list[Candidate] = []
    for candidate in ordered:
        if not front or candidate.scores.kl(kl) < front[-1].scores.kl(kl):
            front.append(candidate)
    return front


def choose(
    candidates: Sequence[Candidate], rule: Rule, max_rate: float, kl: KlKind, goal: Goal = "suppress"
) -> Candidate:
    """One candidate by rule.

    interval: the least KL among those that do not miss the goal more often than the one that misses it least, val and
    train prompts together, and that do not spill more than the one of these that spills least: by Fisher's exact test,
    one-sided, p < `WORSE`. lexicographic: fewest target prompts missed on val, then least spill there, then fewest
    missed on train, where the search generated from it, then least KL. knee: the point of the front farthest from the
    line between its ends, both axes scaled to their range. least-kl: the least KL among those with a
    behaviour rate of at most `max_rate`. Raises `UserError` where no candidate meets the rule.
    """
    if not candidates:
        raise UserError("no trial finished", want="at least one", mend="see study.journal for each trial's error")
    if rule == "interval":
        return min(_as_good(candidates, goal), key=lambda c: (c.scores.kl(kl), c.number))
    if rule == "knee":
        return _knee(pareto_front(candidates, kl, goal), kl, goal)
    if rule == "least-kl":
        low = [c for c in candidates if c.scores.shortfall(goal) <= max_rate]
        if not low:
            best = min(c.scores.shortfall(goal) for c in candidates)
            raise UserError(
                f"no trial has a behaviour rate of at most {max_rate:g}",
                got=f"{best:.3g} at best",
                mend="raise search.max_rate or search.n_trials",
            )
        return min(low, key=lambda c: (c.scores.kl(kl), c.number))

    def by_turns(candidate: Candidate) -> tuple[float, ...]:
        scores = candidate.scores
        missed, missed_train = scores.shortfall(goal), candidate.train_shortfall(goal)
        return missed, scores.spill_rate, missed_train, scores.kl(kl), candidate.number

    return min(candidates, key=by_turns)


def _as_good(candidates: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """The candidates that neither miss the goal nor spill more than the best beyond what chance explains."""

    def spilled(candidate: Candidate) -> tuple[int, int]:
        n = candidate.scores.n_neutral
        return round(candidate.scores.spill_rate * n), n

    good = _not_worse(candidates, lambda candidate: candidate.missed(goal))
    return _not_worse(good, spilled)


def _not_worse(candidates: Sequence[Candidate], counted: Callable[[Candidate], tuple[int, int]]) -> list[Candidate]:
    def share(candidate: Candidate) -> float:
        hits, n = counted(candidate)
        return hits / max(n, 1)

    best = counted(min(candidates, key=share))
    return [one for one in candidates if fisher_greater(*counted(one), *best) >= WORSE]


def changing(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with a strength other than 0; at a price so dear that all are 0 the base is left as it is.

    Raises `UserError` where there is no other.
    """
    found = [one for one in candidates if one.spec.changes]
    if not found:
        raise UserError(
            "no strengths change the behaviour",
            got=f"{len(candidates)} candidates, every strength 0",
            mend="lower search.gradient.prices, or choose other directions",
        )
    return found


def take(candidates: Sequence[Candidate], number: int) -> Candidate:
    """The candidate of this number; `UserError` where there is none."""
    found = next((candidate for candidate in candidates if candidate.number == number), None)
    if found is None:
        there = ", ".join(str(candidate.number) for candidate in candidates)
        raise UserError(f"there is no candidate {number}", want=f"one of {there}", mend="see pareto in results.json")
    return found


def _knee(front: Sequence[Candidate], kl: KlKind, goal: Goal) -> Candidate:
    rates = [c.scores.shortfall(goal) for c in front]
    costs = [c.scores.kl(kl) for c in front]
    width, height = rates[-1] - rates[0], costs[0] - costs[-1]
    if width <= 0 or height <= 0:
        return front[0]
    # Scaled to [0, 1]², the ends are (0, 1) and (1, 0); below their line, 1 − x − y grows with the distance from it.
    gains = [1 - (r - rates[0]) / width - (c - costs[-1]) / height for r, c in zip(rates, costs, strict=True)]
    return front[max(range(len(front)), key=lambda index: gains[index])]
