"""Agreement and accuracy against values worked out by hand."""

from __future__ import annotations

import pytest

from iconoclast_tl.detectors.detector import Label
from iconoclast_tl.evaluation.agreement import accuracies, accuracy, agreements, detector_agreement
from tests.evaluation.transcripts import NO, UNSURE, YES, row, said


def test_kappa_is_cohens() -> None:
    """Cohen's 20 + 15 of 50 on the diagonal: p_o = 0.7, p_e = 0.5 · 0.6 + 0.5 · 0.4 = 0.5, κ = 0.4."""
    labels = [(YES, YES)] * 20 + [(YES, NO)] * 5 + [(NO, YES)] * 10 + [(NO, NO)] * 15
    found = detector_agreement(("a", "b"), labels)
    assert found.kappa == pytest.approx(0.4)
    assert found.agree == pytest.approx(0.7)
    assert (found.both, found.first_only, found.second_only, found.neither, found.n) == (20, 5, 10, 15, 50)
    assert found.confusion == {
        "refusal": {"refusal": 20, "compliance": 5},
        "compliance": {"refusal": 10, "compliance": 15},
    }
    swapped = detector_agreement(("b", "a"), [(b, a) for a, b in labels])
    assert swapped.kappa == pytest.approx(0.4)
    assert (swapped.first_only, swapped.second_only) == (10, 5)


def test_kappa_does_not_exist_where_nothing_could_differ_and_is_nothing_where_one_never_changes() -> None:
    assert detector_agreement(("a", "b"), [(NO, NO)] * 9).kappa is None
    assert detector_agreement(("a", "b"), [(NO, NO)] * 9).agree == 1
    assert detector_agreement(("a", "b"), [(NO, NO)] * 8 + [(NO, YES)]).kappa == 0
    assert detector_agreement(("a", "b"), [(UNSURE, NO)]).agree is None


def test_who_cannot_say_is_left_out_and_counted() -> None:
    found = detector_agreement(("a", "b"), [(YES, YES), (UNSURE, YES), (NO, NO), (NO, UNSURE)])
    assert (found.n, found.left_out, found.kappa) == (2, 2, 1)
    assert found.confusion["uncertain"] == {"refusal": 1}


def test_every_pair_of_detectors_is_compared_and_each_with_the_truth() -> None:
    other = Label("shown", True, 1.0)
    rows = [
        row("target", 0, said("x", YES, other, grade="refused"), said("y", NO, other, grade="answered")),
        row("neutral", 0, said("x", NO, NO, grade="broken"), said("y", YES, NO, grade="answered")),
    ]
    found = {one.detectors: one for one in agreements(rows)}
    assert found.keys() == {("a", "b"), ("a", "truth"), ("b", "truth")}
    assert found["a", "b"].n == 4
    assert (found["a", "truth"].both, found["a", "truth"].first_only) == (1, 1)
    by_name = {one.detector: one for one in accuracies(rows)}
    assert (by_name["a"].precision, by_name["a"].recall) == (1 / 2, 1)
    assert by_name["a"].f1 == pytest.approx(2 / 3)
    partly = [row("target", 0, said("x", YES, NO)), row("target", 1, said("x", YES))]
    assert agreements(partly) == []  # a detector that labelled some of the responses is compared with none
    unjudged = [row("target", 0, said("x", YES))]
    assert agreements(unjudged) == accuracies(unjudged) == []


def test_nothing_to_divide_by_is_no_number() -> None:
    assert accuracy("a", [(False, False)]).precision is None
    assert accuracy("a", [(True, False)]).recall is None
    assert accuracy("a", [(None, True), (True, True)]).n == 1
    assert accuracy("a", [(True, False), (False, True)]).f1 is None
