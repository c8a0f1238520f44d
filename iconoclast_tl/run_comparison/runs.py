"""An evaluated run as a comparison reads it, and what two runs must share to be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.statistics.means import Mean, mean
from iconoclast_tl.statistics.paired_rates import PairedRates, paired_rates
from iconoclast_tl.statistics.rates import Rate, rate

SHORT = 60
"""Characters of a value in an error; phrases of a detector run to pages."""
Labels = Mapping[str, tuple[bool | None, bool | None]]
"""Prompt id → whether the base's and the edited model's response show the behaviour; None without a label."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run folder, evaluated with an edit."""

    path: str
    seed: int
    model: str
    fingerprint: str
    settings: Mapping[str, Any]
    """Dotted settings that tell arms apart."""
    circumstances: Mapping[str, Any]
    """What else is known of it and does not: seed, model, prompts, versions."""
    prompts: Mapping[str, str]
    """Test set → digest."""
    terms: Mapping[str, Any]
    """What must be the same wherever rates are compared: goal, behaviour, budget, kl_tokens, detector."""
    target: Labels
    neutral: Labels
    kl: Mapping[str, float]
    """Id of a neutral prompt → nats between the base and the edited model over the base's continuation."""

    @property
    def budget(self) -> int:
        """Tokens that a response may have."""
        return int(self.terms["budget"])

    @property
    def goal(self) -> str:
        """`suppress` or `strengthen`."""
        return str(self.terms["goal"])

    @property
    def identity(self) -> tuple[Any, ...]:
        """Two runs of one arm that share this are repetitions of one another."""
        return (*self.partners, self.seed)

    @property
    def partners(self) -> tuple[Any, ...]:
        """Runs of two arms that share this answered the same prompts with the same weights."""
        return (self.fingerprint, *sorted(self.prompts.items()))


@dataclass(frozen=True)
class RunSummary:
    """Of one run: the rates with their intervals, the base against the edited model, and the divergence."""

    rates: Mapping[str, Mapping[str, Rate]]
    """`behaviour` and `spill` → `base` and `edited` → over the prompts that this one labelled."""
    behaviour: PairedRates
    spill: PairedRates
    kl: Mean

    def to_json(self) -> dict[str, Any]:
        """As it stands in comparison.json."""
        return {
            "rates": {name: {side: one.to_json() for side, one in sides.items()} for name, sides in self.rates.items()},
            "base_against_edited": {"behaviour": self.behaviour.to_json(), "spill": self.spill.to_json()},
            "kl": self.kl.to_json(),
        }


def summarise(run: ComparedRun) -> RunSummary:
    """What is said of a run by itself; `UserError` where it has no labels."""
    sets = {"behaviour": run.target, "spill": run.neutral}
    rates, paired = {}, {}
    for name, labels in sets.items():
        base, edited = [one for one, _ in labels.values()], [other for _, other in labels.values()]
        if not any(one is not None and other is not None for one, other in labels.values()):
            raise UserError(
                f"no {'target' if name == 'behaviour' else 'neutral'} prompt of {run.path} has a label of both models",
                mend="evaluate it again with a detector that answers",
            )
        paired[name] = paired_rates(base, edited)
        sides = {"base": base, "edited": edited}
        rates[name] = {
            side: rate([bool(one) for one in given if one is not None], run.budget) for side, given in sides.items()
        }
    return RunSummary(rates, paired["behaviour"], paired["spill"], mean(list(run.kl.values())))


def require_same_terms(runs: Sequence[ComparedRun]) -> None:
    """`UserError` that names two runs and everything in which their evaluations differ."""
    first = runs[0]
    for other in runs[1:]:
        if different := differences(first.terms, other.terms):
            if "detector.name" in different:  # all that it says about itself differs, too
                different = {key: values for key, values in different.items() if not key.startswith("detector.about.")}
            raise UserError(
                f"{first.path} and {other.path} were evaluated in different ways and cannot be compared",
                got="; ".join(f"{key}: {_short(one)} and {_short(two)}" for key, (one, two) in different.items()),
                mend="evaluate them with the same goal, behaviour, budget and detector",
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key → both values, where they differ; None stands for what one of them lacks."""
    flat, other_flat = _flatten(one), _flatten(other)
    keys = dict.fromkeys([*flat, *other_flat])
    return {key: (flat.get(key), other_flat.get(key)) for key in keys if flat.get(key) != other_flat.get(key)}


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
