"""What holds of all detectors: who is asked about what, and what their labels and sizes mean."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from iconoclast_tl.detectors.detector import (
    NO_LABEL,
    NOTHING_SAID,
    Detector,
    Exchange,
    Footprint,
    Label,
    label_all,
    shown,
)
from iconoclast_tl.detectors.markers.detector import MarkerDetector
from iconoclast_tl.detectors.markers.markers import MarkerSet
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent


class Noting(MarkerDetector):
    """Writes down what it is asked about."""

    reads_prompts = True

    def __init__(self) -> None:
        super().__init__(MarkerSet(name="test", match="anywhere", phrases=("no",)), "markers")
        self.asked: list[Exchange] = []

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        self.asked += exchanges
        return super().label(exchanges, track)


class NotingResponses(Noting):
    """One that is shown no prompts."""

    reads_prompts = False


def test_equal_exchanges_are_asked_about_once_and_blank_responses_not_at_all() -> None:
    detector = Noting()
    assert isinstance(detector, Detector)
    given = [("no", "a"), ("yes", "a"), ("no", "b"), ("no", "a"), ("", "a"), (" \n", "a"), ("no", None)]
    found = label_all(detector, [Exchange(*one) for one in given])
    assert [label.shows for label in found] == [True, False, True, True, False, False, True]
    assert found[4:6] == [NOTHING_SAID] * 2
    # The same response to another prompt is another exchange.
    assert detector.asked == [Exchange(*one) for one in (("no", "a"), ("yes", "a"), ("no", "b"), ("no", None))]
    assert label_all(Noting(), [Exchange("")]) == [NOTHING_SAID]


def test_a_search_is_told_of_every_response_or_not_at_all() -> None:
    labels = [Label("x", True, 1.0), Label("y", False, 1.0), NOTHING_SAID]
    assert shown(labels) == [True, False, False]
    for unknown in (NO_LABEL, Label("uncertain", None, 0.4)):
        with pytest.raises(UserError, match=f"got 1 of 4 {unknown.name}; want a label of each"):
            shown([*labels, unknown])


def test_one_that_reads_no_prompts_is_asked_about_a_response_once() -> None:
    detector = NotingResponses()
    label_all(detector, [Exchange("no", "a"), Exchange("no", "b")])
    assert detector.asked == [Exchange("no")]


def test_a_model_needs_a_quarter_more_than_its_weights() -> None:
    assert Footprint("cpu", 400).fits(500)
    assert not Footprint("cpu", 400).fits(499)
