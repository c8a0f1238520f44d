"""Arms against the reference arm: changes, corrected p, verdicts, and what the number of prompts resolves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.run_comparison.arms import Arm, Pair, arms, as_one, pairs
from iconoclast_tl.run_comparison.changes import KlChange, RateChange, kl_change, rate_change
from iconoclast_tl.run_comparison.runs import ComparedRun, RunSummary, require_same_terms, summarise
from iconoclast_tl.run_comparison.verdict import Rule, Verdict, decide
from iconoclast_tl.statistics.corrections import holm
from iconoclast_tl.statistics.means import Spread, spread
from iconoclast_tl.statistics.power import paired_difference, paired_n
from iconoclast_tl.statistics.rates import wilson

SCHEMA = 1
POWER = 0.8

LEAST_RESOLVED: Final = 0.001
"""A smaller difference takes millions of prompts, and the exact power of so many takes minutes."""


@dataclass(frozen=True)
class Resolution:
    """What exact McNemar resolves with a power of 80%, at alpha divided by the number of comparisons.

    The discordance is the upper end of its 95% interval. Runs over the same prompts count as one here: several resolve
    more, and never less.
    """

    discordance: float
    smallest: float | None
    """Difference of behaviour rates that the prompts at hand resolve; None where they resolve none."""
    difference: float
    """The one that was asked about."""
    n: int
    """Prompts that resolve it."""


@dataclass(frozen=True, kw_only=True)
class ArmContrast:
    """A candidate against the reference."""

    reference: str
    candidate: str
    pairs: tuple[Pair, ...]
    behaviour: RateChange
    p_holm: float
    """Of the behaviour, corrected for all contrasts."""
    spill: RateChange
    kl: KlChange
    verdict: Verdict
    resolution: Resolution

    def to_json(self) -> dict[str, Any]:
        """As it stands in comparison.json."""
        each = zip(self.pairs, self.behaviour.pairs, self.spill.pairs, self.kl.pairs, strict=True)
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            **self.verdict.to_json(),
            "behaviour": {**self.behaviour.to_json(), "p_holm": self.p_holm},
            "spill": self.spill.to_json(),
            "kl": self.kl.to_json(),
            "resolution": asdict(self.resolution),
            "pairs": [
                {
                    "reference": pair.reference.path,
                    "candidate": pair.candidate.path,
                    "behaviour": _between(behaviour.to_json()),
                    "spill": _between(spill.to_json()),
                    "kl_difference": kl.to_json(),
                }
                for pair, behaviour, spill, kl in each
            ],
        }


@dataclass(frozen=True)
class Comparison:
    """Everything that `compare` found."""

    rule: Rule
    arms: tuple[Arm, ...]
    """The reference first; one, where all runs are alike: then the contrast is of base and edited."""
    summaries: Mapping[str, RunSummary]
    """Path of a run → what is said of it by itself."""
    contrasts: tuple[ArmContrast, ...]

    @property
    def against_base(self) -> bool:
        """Whether base and edited are compared, there being one arm."""
        return len(self.arms) == 1

    @property
    def terms(self) -> Mapping[str, Any]:
        """Goal, behaviour, budget, tokens of the KL and detector, of all runs."""
        return self.arms[0].runs[0].terms

    @property
    def rule_in_words(self) -> str:
        """As it stands under the table."""
        return self.rule.words(str(self.terms["goal"]), self.against_base)

    def spread_of(self, arm: Arm, name: str, side: str = "edited") -> Spread:
        """Of one number per run: `behaviour`, `spill` or `kl`."""
        found = [self.summaries[run.path] for run in arm.runs]
        return spread([one.kl.value if name == "kl" else one.rates[name][side].value for one in found])

    def to_json(self) -> dict[str, Any]:
        """The contents of comparison.json."""
        return {
            "schema": SCHEMA,
            "terms": dict(self.terms),
            "rule": {**asdict(self.rule), "words": self.rule_in_words},
            "arms": [self._arm_json(arm) for arm in self.arms],
            "contrasts": [one.to_json() for one in self.contrasts],
            "runs": [
                {
                    "path": run.path,
                    "arm": arm.name,
                    "seed": run.seed,
                    "model": {"name": run.model, "fingerprint": run.fingerprint},
                    **self.summaries[run.path].to_json(),
                }
                for arm in self.arms
                for run in arm.runs
            ],
        }

    def _arm_json(self, arm: Arm) -> dict[str, Any]:
        spreads = {
            f"{name}_{side}": self.spread_of(arm, name, side).to_json()
            for name in ("behaviour", "spill")
            for side in ("base", "edited")
        }
        return {
            "name": arm.name,
            "runs": [run.path for run in arm.runs],
            "differs": {key: {"reference": one, "here": other} for key, (one, other) in arm.differs.items()},
            **spreads,
            "kl": self.spread_of(arm, "kl").to_json(),
        }


def compare_arms(runs: Sequence[ComparedRun], against: Sequence[ComparedRun], rule: Rule, resolve: float) -> Comparison:
    """Arms of runs against the reference; base against edited where there is one arm.

    resolve: a difference of rates of which is said how many prompts it takes. `UserError` for runs that were evaluated
    in different ways, or have no partner, and for a difference outside 0.001..1.
    """
    if not LEAST_RESOLVED <= resolve <= 1:
        want = f"--resolve of {LEAST_RESOLVED} to 1"
        raise UserError("the difference to resolve does not fit", got=resolve, want=want)
    everything = [*against, *runs]
    require_same_terms(everything)
    found = arms(runs, against)
    against_base = len(found) == 1
    reference, *candidates = as_one(found[0]) if against_base else found
    matched = [_of_one(arm) if against_base else pairs(reference, arm) for arm in candidates]
    summaries = {run.path: summarise(run) for run in everything}
    behaviours = [rate_change([_labels(pair, "target", against_base) for pair in some], "target") for some in matched]
    corrected = holm([one.p for one in behaviours])
    contrasts = []
    for arm, some, behaviour, p in zip(candidates, matched, behaviours, corrected, strict=True):
        spill = rate_change([_labels(pair, "neutral", against_base) for pair in some], "neutral")
        kl = kl_change([_nats(pair, against_base) for pair in some])
        verdict = decide(rule, everything[0].goal, behaviour, p, kl, against_base)
        resolution = _resolution(behaviour, rule.alpha / len(candidates), resolve)
        contrasts.append(
            ArmContrast(
                reference=reference.name,
                candidate=arm.name,
                pairs=tuple(some),
                behaviour=behaviour,
                p_holm=p,
                spill=spill,
                kl=kl,
                verdict=verdict,
                resolution=resolution,
            )
        )
    return Comparison(rule, tuple(found), summaries, tuple(contrasts))


def _of_one(arm: Arm) -> list[Pair]:
    return [Pair(run, run) for run in arm.runs]


def _labels(pair: Pair, name: str, against_base: bool) -> dict[str, tuple[bool | None, bool | None]]:
    """Prompt id → labels of the two that are compared, in one order whichever of them is the reference."""
    one, other = getattr(pair.reference, name), getattr(pair.candidate, name)
    return {id_: (one[id_][0] if against_base else one[id_][1], other[id_][1]) for id_ in sorted(one)}


def _nats(pair: Pair, against_base: bool) -> dict[str, tuple[float, float]]:
    one, other = pair.reference.kl, pair.candidate.kl
    return {id_: (0.0 if against_base else one[id_], other[id_]) for id_ in sorted(one)}


def _resolution(behaviour: RateChange, alpha: float, resolve: float) -> Resolution:
    _, most = wilson(round(behaviour.discordance * behaviour.n), behaviour.n)
    smallest = paired_difference(behaviour.n, most, POWER, alpha)
    return Resolution(most, smallest, resolve, paired_n(resolve, max(most, resolve), POWER, alpha))


def _between(rates: dict[str, Any]) -> dict[str, Any]:
    """Of two runs' edited models, and not of one run's base and edited."""
    return {{"base": "reference", "edited": "candidate"}.get(key, key): value for key, value in rates.items()}
