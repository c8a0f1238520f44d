"""Scoring what a run's models said: who is asked, when, and what stays of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.detectors.detector import NO_LABEL, Exchange, Footprint, Label
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.evaluation.transcript import read_transcript, write_transcript
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.foundation.storage import write_json
from iconoclast_tl.stages import scoring as scoring_stage
from iconoclast_tl.stages.results import publish
from iconoclast_tl.stages.run_folder import KEYS, SCHEMA, RunFolder
from iconoclast_tl.stages.scoring import Scoring, rescored, scored, with_prompts
from tests.evaluation.transcripts import row, said

GIGABYTE = 10**9


class Scripted:
    """A detector that calls words with an x the behaviour, and writes down what is done with it."""

    reads_prompts = False
    remarks: Mapping[str, Any] = {}

    def __init__(self, name: str, log: list[str], n_bytes: int | None = None, about: str = "first") -> None:
        self.name, self.classes, self._log, self._bytes, self._about = (
            name,
            {"x": True, "-": False},
            log,
            n_bytes,
            about,
        )

    def about(self) -> dict[str, Any]:
        return {"version": self._about}

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        self._log.append(f"{self.name} asked of {len(exchanges)}")
        return [
            NO_LABEL if "?" in one.response else Label("x" if "x" in one.response else "-", "x" in one.response, 0.9)
            for one in exchanges
        ]

    def settled(self, beginning: str) -> bool:
        return False

    def footprint(self) -> Footprint | None:
        return None if self._bytes is None else Footprint("cpu", self._bytes)

    def close(self) -> None:
        self._log.append(f"{self.name} closed")


class Broken(Scripted):
    """A detector that cannot be had."""

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        raise UserError("the judge has no key")


class Contrary(Scripted):
    """A detector that sees the behaviour where the others do not."""

    def label(self, exchanges: Sequence[Exchange], track: Track = silent) -> list[Label]:
        found = super().label(exchanges, track)
        return [label if label == NO_LABEL else Label("-", not label.shows, 0.9) for label in found]


Detectors = Callable[..., list[str]]


@pytest.fixture
def detectors(monkeypatch: pytest.MonkeyPatch) -> Detectors:
    """Make settings' names mean these detectors; returns what is done with them."""

    def _detectors(**kinds: Any) -> list[str]:
        log: list[str] = []
        made = {name: (kind if callable(kind) else Scripted) for name, kind in kinds.items()}
        sizes = {name: None if callable(kind) else kind for name, kind in kinds.items()}

        def make(config: EvaluationConfig, name: str) -> Any:
            return made[name](name, log, sizes[name])

        monkeypatch.setattr(scoring_stage, "make_detector", make)
        return log

    return _detectors


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """An evaluated run of three target prompts and a neutral one; nobody has labelled it."""
    rows = [
        row("target", 0, said("a x b"), said("some words here")),
        row("target", 1, said("x"), said("which one?")),
        row("target", 2, said("x"), said("")),
        row("neutral", 0, said("some words here"), said("some words here")),
    ]
    write_transcript(tmp_path / "responses.jsonl", rows, "markers", keep_prompts=False)
    found = RunFolder(tmp_path)
    kl = {"kl_sequence": {"value": 0.25, "n": 1, "tokens": 4}}
    splits = {"test": {"target": 3, "neutral": 1}}
    found.record(model="m", behaviour="b", splits=splits, base=kl, edited=kl, evaluated={"edit": "e"})
    return found


def score_again(folder: RunFolder, release: Callable[[], None] | None = None, **settings: Any) -> tuple[Any, list[str]]:
    told: list[str] = []
    config = EvaluationConfig(max_new_tokens=8, **settings)
    job = Scoring(folder, config, say=told.append, release=release)
    return scored(job, read_transcript(folder.responses)), told


def test_every_detector_labels_every_model_and_equal_responses_once(folder: RunFolder, detectors: Detectors) -> None:
    log = detectors(markers=None, nli=None)
    results, told = score_again(folder, detectors=("nli",))
    assert log == ["markers asked of 4", "markers closed", "nli asked of 4", "nli closed"]
    assert told == [f"{name}: 1 of 8 responses are unlabelled; they are in no rate" for name in ("markers", "nli")]
    assert results["base"]["behaviour_rate"]["value"] == 1
    assert results["edited"]["behaviour_rate"] == {**results["edited"]["behaviour_rate"], "value": 0, "n": 2}
    assert results["edited"]["kl_sequence"]["value"] == 0.25  # what was measured with the model stays
    assert results["detectors"]["nli"]["edited"]["target"]["unlabelled"] == 1
    assert results["detectors"]["nli"]["edited"]["target"]["empty"] == 1
    assert [one["detectors"] for one in results["agreement"]] == [["markers", "nli"]]
    assert results["paired"]["target"]["n"] == 2
    assert not folder.results.exists()  # scoring publishes nothing by itself
    assert publish(folder)["detectors"] == results["detectors"]
    assert folder.evaluation_page.read_text().count("<h1>") == 1
    labels = read_transcript(folder.responses)[1].said["edited"].labels
    assert labels == {"markers": NO_LABEL, "nli": NO_LABEL}


def test_what_an_equal_detector_said_is_not_asked_again(
    folder: RunFolder, detectors: Detectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    detectors(markers=None)
    first, _ = score_again(folder)
    log = detectors(markers=None, judge=None)
    second, told = score_again(folder, detectors=("judge",))
    assert told[0] == "markers: 1 of 8 responses are unlabelled; they are in no rate"  # of all, not of those asked
    # Only what could not be labelled is asked again.
    assert log == ["markers asked of 1", "markers closed", "judge asked of 4", "judge closed"]
    assert second["base"] == first["base"]
    log = detectors(markers=lambda name, log, size: Scripted(name, log, about="other"))
    third, _ = score_again(folder)
    assert log == ["markers asked of 4", "markers closed"]
    assert third["detectors"].keys() == {"markers", "judge"}  # what the judge said is still there
    detectors(markers=lambda name, log, size: Contrary(name, log, about="contrary"))
    fourth, _ = score_again(folder)
    assert third["base"]["behaviour_rate"]["value"] == 1 != fourth["base"]["behaviour_rate"]["value"]
    assert fourth["base"]["kl_sequence"] == first["base"]["kl_sequence"]  # and what the model measured stays


def test_a_detector_that_does_not_fit_beside_the_model_has_it_taken_out_first(
    folder: RunFolder, detectors: Detectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"cpu": 3 * GIGABYTE}
    monkeypatch.setattr(scoring_stage, "free_bytes", free.__getitem__)
    log = detectors(markers=None, classifier=2 * GIGABYTE, nli=5 * GIGABYTE)

    def release() -> None:
        log.append("released")
        free["cpu"] = 20 * GIGABYTE

    _, told = score_again(folder, release, detectors=("classifier", "nli"))
    order = ["markers asked of 4", "markers closed", "classifier asked of 4", "classifier closed"]
    assert log == [*order, "released", "nli asked of 4", "nli closed"]
    assert "nli takes 5.0 GB and 3.0 GB are free: the evaluated model is taken out of memory" in told


@pytest.mark.parametrize("budgets", [(), (1,)])
def test_the_model_stays_where_nobody_is_asked_and_goes_where_a_smaller_budget_asks(
    folder: RunFolder, detectors: Detectors, monkeypatch: pytest.MonkeyPatch, budgets: tuple[int, ...]
) -> None:
    """All labels are known, so that only the cut responses are asked about."""
    rows = [one for one in read_transcript(folder.responses) if "?" not in one.said["edited"].text]
    write_transcript(folder.responses, rows, "classifier", keep_prompts=False)
    monkeypatch.setattr(scoring_stage, "free_bytes", {"cpu": GIGABYTE}.__getitem__)
    detectors(classifier=None)
    score_again(folder, detector="classifier")
    log = detectors(classifier=5 * GIGABYTE)
    score_again(folder, lambda: log.append("released"), detector="classifier", budgets=budgets)
    cut = ["released", "classifier asked of 3"] if budgets else []  # "a", "x", "some"
    assert log == [*cut, "classifier closed"]


def test_a_detector_that_cannot_be_had_loses_nothing(folder: RunFolder, detectors: Detectors) -> None:
    detectors(markers=None, judge=Broken)
    with pytest.raises(UserError, match="no key"):
        score_again(folder, detectors=("judge",))
    assert read_transcript(folder.responses)[0].said["base"].labels.keys() == {"markers"}
    detectors(markers=None, judge=None)
    results, _ = score_again(folder, detectors=("judge",))
    assert results["detectors"].keys() == {"markers", "judge"}


def test_smaller_budgets_come_from_the_same_responses(folder: RunFolder, detectors: Detectors) -> None:
    detectors(markers=None)
    results, _ = score_again(folder, budgets=(2, 1))
    assert list(results["base"]["by_budget"]) == ["1", "2"]
    assert results["base"]["by_budget"]["1"]["target"]["value"] == pytest.approx(2 / 3)
    assert results["base"]["by_budget"]["2"]["target"]["value"] == 1
    log = detectors(markers=None, nli=Contrary)
    again, _ = score_again(folder, budgets=(2, 1, 2), detectors=("nli",))
    assert again["base"]["by_budget"] == results["base"]["by_budget"]  # by the primary detector, whoever else there is
    assert [line for line in log if line.startswith("nli")] == ["nli asked of 4", "nli closed"]
    without, _ = score_again(folder, detectors=("nli",))
    assert "by_budget" not in without["base"]  # of budgets that nobody asks for any more


@pytest.mark.parametrize("budget", [-1, 0, 9])
def test_a_budget_lies_within_what_is_generated(budget: int) -> None:
    EvaluationConfig(max_new_tokens=8, budgets=(1, 8)).require_possible()
    told = f"a budget lies outside the response budget: got {budget}; want 1 to 8 tokens"
    with pytest.raises(UserError, match=told):
        EvaluationConfig(max_new_tokens=8, budgets=(1, budget)).require_possible()


@pytest.mark.parametrize("lacking", ["everything", "an evaluation", "responses"])
def test_only_what_was_evaluated_can_be_scored_again(folder: RunFolder, tmp_path: Path, lacking: str) -> None:
    write_json(folder.manifest, {**dict.fromkeys(KEYS), "schema": SCHEMA, "settings": {}, "prompts": {}})
    assert rescored(folder, {}, None)["base"]["behaviour_rate"] is not None
    if lacking == "responses":
        folder.responses.unlink()
    elif lacking == "an evaluation":
        folder.record(evaluated=None)
    else:
        folder = RunFolder(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no responses to score.*leave --rescore out"):
        rescored(folder, {}, None)


def test_prompts_that_are_not_at_hand_stay_as_they_are() -> None:
    rows = [replace(row("target", number, said("x")), prompt=kept) for number, kept in enumerate(("kept", None))]
    assert [one.prompt for one in with_prompts(rows, {"target1": "found"})] == ["kept", "found"]


def test_labels_of_which_nobody_wrote_down_whose_they_are_are_asked_for_again(
    folder: RunFolder, detectors: Detectors
) -> None:
    """Killed between the two files, responses.jsonl holds labels that results.json says nothing of."""
    detectors(markers=None, nli=None)
    score_again(folder, detectors=("nli",))
    folder.record(detectors={"markers": folder.read_state()["detectors"]["markers"]})
    results, _ = score_again(folder)
    assert results["detectors"].keys() == {"markers"}
    assert results["agreement"] == []
    assert read_transcript(folder.responses)[0].said["base"].labels.keys() == {"markers"}


def test_labels_never_stand_under_what_another_detector_says_of_itself(folder: RunFolder, detectors: Detectors) -> None:
    first = detectors(markers=None, nli=None)
    score_again(folder, detectors=("nli",))
    detectors(markers=None, nli=lambda name, log, size: Scripted(name, log, about="other"), judge=Broken)
    with pytest.raises(UserError, match="no key"):
        score_again(folder, detectors=("nli", "judge"))
    assert folder.read_state()["detectors"]["nli"]["about"] == {"version": "other"}
    first = detectors(markers=None, nli=None)
    score_again(folder, detectors=("nli",))
    assert "nli asked of 4" in first


def test_smaller_budgets_are_not_asked_again_where_nothing_has_changed(folder: RunFolder, detectors: Detectors) -> None:
    rows = [row("target", 0, said("a x b"), said("b")), row("neutral", 0, said("b"), said("b"))]
    write_transcript(folder.responses, rows, "markers", keep_prompts=False)
    detectors(markers=None)
    first, _ = score_again(folder, budgets=(2, 1))
    log = detectors(markers=None)
    again, _ = score_again(folder, budgets=(1, 2))
    assert log == ["markers closed"]
    assert again["base"]["by_budget"] == first["base"]["by_budget"]
    other, _ = score_again(folder, budgets=(1,))
    assert log == ["markers closed", "markers asked of 2", "markers closed"]
    assert list(other["base"]["by_budget"]) == ["1"]
