"""Rates from a labelled transcript: by detector, by category, by smaller budget, and base against edited.

A response that a detector could not label is left out of its rates and counted beside them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast_tl.detectors.detector import EMPTY, UNCERTAIN, UNLABELLED, Label
from iconoclast_tl.detectors.markers.markers import marker_set
from iconoclast_tl.evaluation.metrics.compliance import complies
from iconoclast_tl.evaluation.transcript import RecordedResponse, Transcript, TranscriptRow, by_set
from iconoclast_tl.statistics.means import Mean, mean
from iconoclast_tl.statistics.paired_rates import PairedRates, paired_rates
from iconoclast_tl.statistics.rates import Rate, rate

GRADES = ("answered", "refused", "broken")
NOT_SAID = (UNLABELLED, UNCERTAIN, EMPTY)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the responses of one model say, by one detector. A rate is None where no response has a label."""

    behaviour_rate: Rate | None
    spill_rate: Rate | None
    spill_rate_borderline: Rate | None
    disclaimer_rate: Rate
    """Over all prompts."""
    compliance_rate: Rate | None
    """Over target prompts, by the heuristic of `metrics.compliance`."""
    words: Mapping[str, Mean]
    """set → words a response."""
    repetition: Mapping[str, Mean]
    """set → share of word pairs that a response says again."""
    grades: Mapping[str, Mapping[str, Rate]] | None
    """grade → set → rate, where the truth is known."""
    by_category: Mapping[str, Mapping[str, Rate]]
    """set → category → behaviour rate, where prompts have categories."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        truth: dict[str, Any] = {}
        if self.grades is not None:
            grades = {grade: rates_json(rates) for grade, rates in self.grades.items()}
            truth = {"answered_rate": grades["answered"]["target"], "grades": grades}
        return {
            "behaviour_rate": self.behaviour_rate and self.behaviour_rate.to_json(),
            "spill_rate": self.spill_rate and self.spill_rate.to_json(),
            "spill_rate_borderline": self.spill_rate_borderline and self.spill_rate_borderline.to_json(),
            **truth,
            "disclaimer_rate": self.disclaimer_rate.to_json(),
            "compliance_rate": self.compliance_rate and self.compliance_rate.to_json(),
            "words": {name: one.to_json() for name, one in self.words.items()},
            "repetition": {name: one.to_json() for name, one in self.repetition.items()},
            "by_category": {name: rates_json(rates) for name, rates in self.by_category.items()},
        }


def measure(rows: Transcript, model: str, detector: str, budget: int) -> Measured:
    """Rates of one model's responses to the sets `target`, `neutral` and perhaps `borderline`."""
    sets = {name: [row.said[model] for row in found] for name, found in by_set(rows).items()}
    rates = {name: shown_rate([one.labels[detector] for one in said], budget) for name, said in sets.items()}
    everything = [one for said in sets.values() for one in said]
    return Measured(
        behaviour_rate=rates["target"],
        spill_rate=rates["neutral"],
        spill_rate_borderline=rates.get("borderline"),
        disclaimer_rate=rate([marker_set("disclaimers").found_in(one.text) for one in everything], budget),
        compliance_rate=_compliance(sets["target"], detector, budget),
        words={name: mean([one.numbers["words"] for one in said]) for name, said in sets.items()},
        repetition={name: mean([one.numbers["repetition"] for one in said]) for name, said in sets.items()},
        grades=_grades(sets, budget) if everything[0].grade is not None else None,
        by_category=_by_category(rows, model, detector, budget),
    )


def shown_rate(labels: Sequence[Label], budget: int) -> Rate | None:
    """The share of responses that show the behaviour, of those whose label says; None where none does."""
    known = [label.shows for label in labels if label.shows is not None]
    return rate(known, budget) if known else None


def by_detector(rows: Transcript, model: str, detector: str, budget: int) -> dict[str, Any]:
    """set → rate and classes by this detector, and how many it did not label, was not sure of, or saw nothing in."""
    found = {}
    for name, members in by_set(rows).items():
        labels = [row.said[model].labels[detector] for row in members]
        counts, known = Counter(label.name for label in labels), shown_rate(labels, budget)
        found[name] = {
            "behaviour_rate": known and known.to_json(),
            "classes": {one: n / len(labels) for one, n in sorted(counts.items()) if one not in NOT_SAID},
            **{one: counts[one] for one in NOT_SAID},
        }
    return found


def paired(rows: Transcript, detector: str) -> dict[str, PairedRates]:
    """set → base against edited, prompt by prompt, over those that have a label of both."""
    found = {}
    for name, members in by_set(rows).items():
        sides = {model: [row.said[model].labels[detector].shows for row in members] for model in ("base", "edited")}
        if any(before is not None and after is not None for before, after in zip(*sides.values(), strict=True)):
            found[name] = paired_rates(sides["base"], sides["edited"])
    return found


def by_budget(
    rows: Transcript,
    budgets: Sequence[int],
    label: Callable[[Sequence[tuple[TranscriptRow, str, int]]], Sequence[Label]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """model → budget → set → rate: what smaller budgets would have reported of the same responses.

    label: asks the detector about (row, model, budget), all in one go.
    """
    asked = [(row, model, budget) for row in rows for model in row.said for budget in budgets]
    labels: dict[tuple[str, int, str], list[Label]] = defaultdict(list)
    for (row, model, budget), found in zip(asked, label(asked), strict=True):
        labels[model, budget, row.set].append(found)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (model, budget, name), given in labels.items():
        known = shown_rate(given, budget)
        result.setdefault(model, {}).setdefault(str(budget), {})[name] = known and known.to_json()
    return result


def rates_json(rates: Mapping[str, Rate]) -> dict[str, Any]:
    """Rates by name, as JSON."""
    return {name: one.to_json() for name, one in rates.items()}


def _compliance(responses: Sequence[RecordedResponse], detector: str, budget: int) -> Rate | None:
    known = [(one.text, one.labels[detector].shows) for one in responses]
    found = [complies(text, shows) for text, shows in known if shows is not None]
    return rate(found, budget) if found else None


def _grades(sets: Mapping[str, Sequence[RecordedResponse]], budget: int) -> dict[str, dict[str, Rate]]:
    return {
        grade: {name: rate([one.grade == grade for one in said], budget) for name, said in sets.items()}
        for grade in GRADES
    }


def _by_category(rows: Transcript, model: str, detector: str, budget: int) -> dict[str, dict[str, Rate]]:
    found: dict[str, dict[str, Rate]] = {}
    for name, members in by_set(rows).items():
        groups: dict[str, list[Label]] = defaultdict(list)
        for row in members:
            if row.category is not None:
                groups[row.category].append(row.said[model].labels[detector])
        rates = {category: shown_rate(labels, budget) for category, labels in sorted(groups.items())}
        found[name] = {category: known for category, known in rates.items() if known is not None}
    return found
