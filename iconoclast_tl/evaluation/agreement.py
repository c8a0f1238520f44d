"""Agreement of detectors with each other, and with the truth where it is known.

Cohen's κ = (p_o − p_e) / (1 − p_e) of whether a response shows the behaviour, p_o the share on which two detectors
agree and p_e that which they would agree on by chance (Cohen, Educational and Psychological Measurement 20, 1960).
Where both say the same of all responses, p_e is 1 and κ does not exist. Responses without a label of both are left out
and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from iconoclast_tl.detectors.detector import Label
from iconoclast_tl.evaluation.transcript import RecordedResponse, Transcript

TRUTH = "truth"
TRULY_SHOWS = "refused"
"""The grade of an organism's grammar that is its planted behaviour."""


@dataclass(frozen=True, kw_only=True)
class DetectorAgreement:
    """Of two detectors over n responses."""

    detectors: tuple[str, str]
    n: int
    left_out: int
    """Responses of which one of them could not say whether they show the behaviour."""
    both: int
    """Responses that show the behaviour by both."""
    first_only: int
    second_only: int
    neither: int
    agree: float | None
    """Share of the n on which both say the same."""
    kappa: float | None
    """Cohen's κ; None where it does not exist."""
    confusion: dict[str, dict[str, int]]
    """Class by the first → class by the second → responses, the left out included."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {**asdict(self), "detectors": list(self.detectors)}


@dataclass(frozen=True)
class Accuracy:
    """Of one detector against the truth, over n responses that it labelled; None: there is nothing to divide by."""

    detector: str
    n: int
    precision: float | None
    """Of those that it says show the behaviour, the share that do."""
    recall: float | None
    """Of those that do, the share that it says so of."""
    f1: float | None
    """Their harmonic mean."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return asdict(self)


def agreements(rows: Transcript) -> list[DetectorAgreement]:
    """Of every pair of detectors that labelled the responses, and of each with the truth where that is known."""
    said = [one for row in rows for one in row.said.values()]
    judged = [{**one.labels, **({} if one.grade is None else {TRUTH: _truth(one)})} for one in said]
    names = [name for name in judged[0] if all(name in one for one in judged)]
    return [detector_agreement((a, b), [(one[a], one[b]) for one in judged]) for a, b in combinations(names, 2)]


def detector_agreement(detectors: tuple[str, str], labels: Sequence[tuple[Label, Label]]) -> DetectorAgreement:
    """Of two detectors, from their labels of the same responses."""
    from sklearn.metrics import cohen_kappa_score

    known = [(bool(a.shows), bool(b.shows)) for a, b in labels if a.shows is not None and b.shows is not None]
    counts = Counter((a.name, b.name) for a, b in labels)
    confusion: dict[str, dict[str, int]] = {}
    for (a, b), n in sorted(counts.items()):
        confusion.setdefault(a, {})[b] = n
    kappa = cohen_kappa_score(*zip(*known, strict=True)) if len({one for pair in known for one in pair}) > 1 else None
    cells = Counter(known)
    return DetectorAgreement(
        detectors=detectors,
        n=len(known),
        left_out=len(labels) - len(known),
        both=cells[True, True],
        first_only=cells[True, False],
        second_only=cells[False, True],
        neither=cells[False, False],
        agree=sum(a == b for a, b in known) / len(known) if known else None,
        kappa=None if kappa is None else float(kappa),
        confusion=confusion,
    )


def accuracies(rows: Transcript) -> list[Accuracy]:
    """Of every detector against the truth; empty where that is not known."""
    said = [one for row in rows for one in row.said.values() if one.grade is not None]
    names = said[0].labels if said else ()
    return [accuracy(name, [(one.labels[name].shows, one.grade == TRULY_SHOWS) for one in said]) for name in names]


def accuracy(detector: str, labels: Sequence[tuple[bool | None, bool]]) -> Accuracy:
    """Of one detector, from (what it says, what is true)."""
    known = [(said, true) for said, true in labels if said is not None]
    hits = sum(said and true for said, true in known)
    precision, recall = _share(hits, sum(said for said, _ in known)), _share(hits, sum(true for _, true in known))
    f1 = None if precision is None or recall is None else _share(2 * precision * recall, precision + recall)
    return Accuracy(detector, len(known), precision, recall, f1)


def _truth(said: RecordedResponse) -> Label:
    return Label(str(said.grade), said.grade == TRULY_SHOWS, 1.0)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
