"""Rates from a transcript: every set's responses go to that set's rate, and only those with a label."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from iconoclast_tl.detectors.detector import NO_LABEL, Label
from iconoclast_tl.evaluation.scoring import by_budget, by_detector, measure, paired
from iconoclast_tl.evaluation.transcript import TranscriptRow
from tests.evaluation.transcripts import NO, UNSURE, YES, row, said


def test_rates_are_counted_per_set_and_per_category() -> None:
    rows = [
        row("target", 0, said("I cannot", YES, grade="refused"), category="a"),
        row("target", 1, said("warm the water, please note that it boils", NO, grade="answered"), category="b"),
        row("neutral", 0, said("yes of course", NO, grade="answered")),
        row("neutral", 1, said("i will not", YES, grade="refused")),
        row("neutral", 2, said("fine by me", NO, grade="broken")),
        row("borderline", 0, said("i refuse", YES, grade="refused")),
    ]
    found = measure(rows, "base", "a", 7)
    assert found.behaviour_rate is not None
    assert found.spill_rate is not None
    assert found.spill_rate_borderline is not None
    assert (found.behaviour_rate.value, found.spill_rate.value) == (1 / 2, 1 / 3)
    assert found.spill_rate_borderline.value == 1
    assert found.compliance_rate is not None
    assert found.compliance_rate.value == 1 / 2
    assert found.disclaimer_rate.value == 1 / 6
    assert [found.by_category["target"][name].value for name in ("a", "b")] == [1, 0]
    assert found.by_category["neutral"] == {}
    assert found.grades is not None
    assert found.grades["refused"]["neutral"].value == 1 / 3
    assert found.words["neutral"].value == pytest.approx(3)
    assert found.repetition["neutral"].value == 0
    as_json = found.to_json()
    assert as_json["behaviour_rate"]["tokens"] == 7
    assert as_json["answered_rate"]["n"] == 2


def test_what_has_no_label_is_in_no_rate_and_is_counted() -> None:
    labels = [YES, NO, NO_LABEL, UNSURE]
    rows = [row("target", i, said("some words", label)) for i, label in enumerate(labels)]
    rows += [row("neutral", 0, said("some words", NO_LABEL))]
    found = measure(rows, "base", "a", 5)
    assert found.behaviour_rate is not None
    assert (found.behaviour_rate.value, found.behaviour_rate.n) == (1 / 2, 2)
    assert found.spill_rate is None
    counts = by_detector(rows, "base", "a", 5)["target"]
    assert (counts["unlabelled"], counts["uncertain"], counts["empty"]) == (1, 1, 0)
    assert counts["classes"] == {"refusal": 1 / 4, "compliance": 1 / 4}
    assert found.compliance_rate is not None
    assert (found.compliance_rate.value, found.compliance_rate.n) == (0, 2)  # of two words nothing complies


def test_compliance_is_of_target_prompts_and_of_responses_that_do_not_show_the_behaviour() -> None:
    text = "warm the water and stir it"
    rows = [row("target", i, said(text, label)) for i, label in enumerate([YES, NO, NO_LABEL, UNSURE])]
    rows += [row("neutral", i, said(text, NO)) for i in range(3)]
    found = measure(rows, "base", "a", 5)
    assert found.compliance_rate is not None
    assert (found.compliance_rate.value, found.compliance_rate.n) == (1 / 2, 2)  # what may show it is in no rate


def test_smaller_budgets_are_rates_of_the_same_responses_cut_off() -> None:
    rows = [
        row("target", 0, said("well now i cannot", YES), said("i cannot say", YES)),
        row("neutral", 0, said("no"), said("no")),
    ]

    def label(asked: Sequence[tuple[TranscriptRow, str, int]]) -> list[Label]:
        return [YES if "cannot" in one.exchange(model, budget).response else NO for one, model, budget in asked]

    found = by_budget(rows, [1, 2, 4], label)
    assert [found["base"][str(budget)]["target"]["value"] for budget in (1, 2, 4)] == [0, 0, 1]
    assert [found["edited"][str(budget)]["target"]["value"] for budget in (1, 2, 4)] == [0, 1, 1]
    neutral = found["base"]["2"]["neutral"]
    assert (neutral["value"], neutral["n"], neutral["tokens"]) == (0, 1, 2)
    assert neutral["high"] == pytest.approx(0.79, abs=0.01)  # Wilson's, of 0 in 1


def test_base_and_edited_are_paired_where_both_have_a_label() -> None:
    pairs = [(YES, NO), (YES, NO), (YES, YES), (NO, NO), (YES, NO_LABEL)]
    rows = [row("target", i, said("x", a), said("y", b)) for i, (a, b) in enumerate(pairs)]
    rows += [row("neutral", 0, said("x", NO_LABEL), said("y", NO))]
    found = paired(rows, "a")
    assert found.keys() == {"target"}
    assert found["target"].n == 4
    assert (found["target"].test.lost, found["target"].test.gained) == (2, 0)
