"""What a workspace refuses: a detector without room beside the model, and another one than a search went by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.detectors.classifier import ClassifierDetector
from iconoclast_tl.detectors.detector import HEADROOM, Exchange, Label
from iconoclast_tl.evaluation import baseline
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.stages import evaluation as evaluation_stage
from iconoclast_tl.stages import scoring as scoring_stage
from iconoclast_tl.stages.evaluation import evaluated_model
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.settings import merge
from iconoclast_tl.stages.workspace import Workspace
from tests.detectors.trained import LABELS, bert, save_tokenizer

Open = Callable[..., AbstractContextManager[Workspace]]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights."""
    folder = tmp_path_factory.mktemp("classifier")
    bert(len(save_tokenizer(folder)), list(LABELS)).save_pretrained(folder)
    return folder


@pytest.fixture
def opened(llama_folder: Path, classifier: Path, tmp_path: Path) -> Open:
    """Open a run folder whose detector is the classifier."""
    for name, first in (("target", "w1"), ("neutral", "w2")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{first} w{20 + i}\n" for i in range(10)))
    settings = {
        "model": {"name": str(llama_folder)},
        "prompts": {name: str(tmp_path / f"{name}.txt") for name in ("target", "neutral")},
        "search": {"method": "tpe", "n_trials": 2, "n_startup_trials": 1},
        "evaluation": {
            "max_new_tokens": 4, "kl_tokens": 2, "batch_size": 4, "detector": "classifier",
            "classifier": {"name": str(classifier), "labels": LABELS, "device": "cpu"},
        },
    }  # fmt: skip

    def _opened(out: str = "run", **evaluation: Any) -> AbstractContextManager[Workspace]:
        return open_workspace(merge(settings, {"evaluation": evaluation}), None, tmp_path / out)

    return _opened


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have so many bytes be free."""

    def _free(n_bytes: int) -> None:
        for module in (baseline, scoring_stage):
            monkeypatch.setattr(module, "free_bytes", lambda device: n_bytes)

    return _free


def test_a_search_is_refused_a_detector_without_room_beside_the_model_and_an_evaluation_is_not(
    opened: Open, free: Callable[[int], None]
) -> None:
    with opened() as found:
        footprint = found.detector.footprint()
        assert footprint is not None
        free(int(footprint.n_bytes * HEADROOM))
        assert found.val.shows.keys() == {"target", "neutral"}
    free(int(footprint.n_bytes * HEADROOM) - 1)
    for split in ("train", "val"):
        with (
            pytest.raises(UserError, match=r"classifier does not fit into memory beside the model: got 0.0 GB free"),
            opened() as found,
        ):
            found.asked(split)
    with opened() as found:
        assert found.asked("test").suite.keys() == {"target", "neutral"}
    free(0)
    with opened("markers", detector="markers") as found:
        assert found.val.shows.keys() == {"target", "neutral"}  # who has no model needs no room


Log = list[tuple[str, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Log:
    """(what, number of responses or weights) of all that is done with classifiers and the model."""
    log: Log = []
    label, close, release = ClassifierDetector.label, ClassifierDetector.close, evaluation_stage.release

    def labelling(self: ClassifierDetector, exchanges: list[Exchange], track: Track = silent) -> list[Label]:
        log.append(("asked", len(exchanges)))
        return label(self, exchanges, track)

    def closing(self: ClassifierDetector) -> None:
        if self.model._loaded is not None:
            log.append(("closed", 0))
        close(self)

    def releasing(model: Any) -> None:
        log.append(("released", 0))
        release(model)

    monkeypatch.setattr(ClassifierDetector, "label", labelling)
    monkeypatch.setattr(ClassifierDetector, "close", closing)
    monkeypatch.setattr(evaluation_stage, "release", releasing)
    return log


def test_an_evaluation_takes_the_model_out_before_its_own_detector_is_asked(
    opened: Open, free: Callable[[int], None], asked: Log
) -> None:
    """Every response once, and by a model that is alone in memory; beside one that has room nothing is taken out."""
    with opened() as found:
        results = evaluated_model(found, None)
        n = sum(len(questions.rows) for questions in found.asked("test").suite.values())
    assert [what for what, _ in asked] == ["asked", "closed"]
    assert asked[0][1] <= n
    assert results["detector"] == "classifier"
    free(0)
    asked.clear()
    with opened("crowded") as found:
        crowded = evaluated_model(found, None)
        assert not sum(one.numel() for one in found.model.hf.parameters())
    assert [what for what, _ in asked] == ["released", "asked", "closed"]
    assert crowded["base"] == results["base"]


def test_what_a_search_loaded_is_freed_before_an_evaluation_loads_its_own(opened: Open, asked: Log) -> None:
    with opened() as found:
        _ = found.val.shows
        assert [what for what, _ in asked] == ["asked"]
        evaluated_model(found, None)
    assert [what for what, _ in asked] == ["asked", "closed", "asked", "closed"]


def test_a_detector_that_fails_in_an_evaluation_loses_no_response(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise UserError("the classifier is gone")

    with monkeypatch.context() as patch, opened() as found:
        patch.setattr(ClassifierDetector, "label", refuse)
        with pytest.raises(UserError, match="is gone"):
            evaluated_model(found, None)
    monkeypatch.setattr(evaluation_stage, "ask_base_and_edited", refuse)  # nothing is asked of the model again
    with opened() as found:
        results = evaluated_model(found, None)
    assert results["base"]["behaviour_rate"]["n"] == 2


def test_responses_that_were_written_last_are_not_taken_for_those_of_an_earlier_evaluation(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two files: the first adapter's results stand beside the second one's responses."""
    with opened(detector="markers") as found:
        evaluation_stage._evaluate(found, {"adapter": "first"}, None)
    honest = evaluation_stage.write_transcript

    def killed(*given: Any) -> None:
        honest(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, opened(detector="markers") as found:
        patch.setattr(evaluation_stage, "write_transcript", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluation_stage._evaluate(found, {"adapter": "second"}, None)
    again: list[str] = []
    compare = evaluation_stage.ask_base_and_edited
    monkeypatch.setattr(
        evaluation_stage, "ask_base_and_edited", lambda *given: again.append("asked") or compare(*given)
    )
    with opened(detector="markers") as found:
        evaluation_stage._evaluate(found, {"adapter": "first"}, None)
    assert again == ["asked"]


def test_a_searched_folder_refuses_another_classifier_and_an_unsearched_one_does_not(
    opened: Open, tmp_path: Path
) -> None:
    other = {"min_confidence": 0.25, "template": "b: {response}"}
    with opened():
        pass
    with opened(classifier={"min_confidence": 0.5, "template": "a: {response}"}) as found:
        found.folder.journal.touch()
        assert found.folder.is_searched
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with (
        pytest.raises(
            UserError,
            match=r"holds a search by another classifier: got template 'b: \{response\}'; want .*leave its settings",
        ),
        opened(classifier=other),
    ):
        pass
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    with opened(nli={"min_confidence": 0.25}) as found:  # who did not search may change
        assert found.settings.evaluation.nli.min_confidence == 0.25
    with pytest.raises(UserError, match=r"another evaluation\.detector"), opened(detector="markers"):
        pass
