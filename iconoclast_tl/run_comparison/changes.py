"""What differs between two arms, over all their pairs of runs: rates with labels, divergences with nats.

A prompt that stands in several runs (seeds, models) counts once, with the mean of its differences. Of a single pair of
runs the labels are tested by exact McNemar, which is what sign flips come to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.run_comparison.runs import Labels
from iconoclast_tl.statistics.effects import Effect, cohens_d, cohens_dz
from iconoclast_tl.statistics.means import Mean, mean
from iconoclast_tl.statistics.paired import SignFlips, cluster_means, sign_flips
from iconoclast_tl.statistics.paired_rates import PairedRates, paired_rates


@dataclass(frozen=True, kw_only=True)
class RateChange:
    """A rate of the candidate less that of the reference."""

    value: float
    low: float | None
    """The 95% interval: Newcombe's for one pair of runs, BCa bootstrap over prompts for several."""
    high: float | None
    p: float
    test: str
    """`mcnemar`, or `sign flips`: exact or of random signs."""
    d: Effect
    """Over all labels of all pairs."""
    n: int
    """Prompts."""
    left_out: int
    """How often a prompt had a label in one run of a pair and not in the other, or in neither."""
    discordance: float
    """The share of labels that differ between the runs of a pair."""
    pairs: tuple[PairedRates, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in comparison.json, without the pairs."""
        return {
            "difference": {"value": self.value, "low": self.low, "high": self.high},
            "p": self.p,
            "test": self.test,
            "cohens_d": self.d.to_json(),
            "n": self.n,
            "left_out": self.left_out,
            "discordance": self.discordance,
        }


@dataclass(frozen=True)
class KlChange:
    """Nats of the candidate less those of the reference, per neutral prompt."""

    difference: Mean
    test: SignFlips
    d_z: Effect
    pairs: tuple[Mean, ...]

    def worse_than(self, margin: float) -> bool:
        """Whether the interval lies above the margin; the value, where one prompt has no interval."""
        low = self.difference.low
        return (self.difference.value if low is None else low) > margin

    def to_json(self) -> dict[str, Any]:
        """As it stands in comparison.json, without the pairs."""
        return {
            "difference": self.difference.to_json(),
            "p": self.test.p,
            "exact": self.test.exact,
            "cohens_dz": self.d_z.to_json(),
        }


def rate_change(pairs: Sequence[Labels], what: str) -> RateChange:
    """Prompt id → labels of reference and candidate, pair by pair; `UserError` where a pair has none of both."""
    rates, first, second, ids = [], [], [], []
    for labels in pairs:
        known = {one: (a, b) for one, (a, b) in sorted(labels.items()) if a is not None and b is not None}
        if not known:
            raise UserError(f"no {what} prompt has a label in both runs of a pair", mend="evaluate them again")
        rates.append(paired_rates([a for a, _ in labels.values()], [b for _, b in labels.values()]))
        ids += list(known)
        first += [float(a) for a, _ in known.values()]
        second += [float(b) for _, b in known.values()]
    differences = cluster_means([b - a for a, b in zip(first, second, strict=True)], ids)
    value, low, high, p, test = _single(rates[0]) if len(rates) == 1 else _over_prompts(differences, rates)
    changed = sum(one.test.lost + one.test.gained for one in rates)
    left_out = sum(one.left_out for one in rates)
    d = cohens_d(first, second)
    return RateChange(
        value=value,
        low=low,
        high=high,
        p=p,
        test=test,
        d=d,
        n=len(differences),
        left_out=left_out,
        discordance=changed / len(ids),
        pairs=tuple(rates),
    )


def kl_change(pairs: Sequence[Mapping[str, tuple[float, float]]]) -> KlChange:
    """Prompt id → nats of reference and candidate, pair by pair."""
    ids = [one for nats in pairs for one in sorted(nats)]
    each = [[nats[one][1] - nats[one][0] for one in sorted(nats)] for nats in pairs]
    differences = cluster_means([value for some in each for value in some], ids)
    means = tuple(mean(some) for some in each)
    return KlChange(mean(differences), sign_flips(differences), cohens_dz(differences), means)


def _single(rates: PairedRates) -> tuple[float, float | None, float | None, float, str]:
    return rates.difference.value, rates.difference.low, rates.difference.high, rates.test.p, "mcnemar"


def _over_prompts(
    differences: Sequence[float], rates: Sequence[PairedRates]
) -> tuple[float, float | None, float | None, float, str]:
    """Where all prompts differ alike, resampling them shows nothing: the widest of the pairs' own intervals then."""
    over, flips = mean(differences), sign_flips(differences)
    low, high = over.low, over.high
    if over.low == over.high:
        low, high = min(one.difference.low for one in rates), max(one.difference.high for one in rates)
    return over.value, low, high, flips.p, f"sign flips, {'exact' if flips.exact else 'random'}"
