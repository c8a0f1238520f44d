"""The evaluation of a run: what results.json and the responses say, and what goes when something else is evaluated."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.detectors.classifier import ClassifierDetector
from iconoclast_tl.detectors.config import ClassifierConfig
from iconoclast_tl.detectors.detector import Exchange, label_all
from iconoclast_tl.evaluation.transcript import read_transcript
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.stages import evaluation as evaluation_stage
from iconoclast_tl.stages.evaluation import evaluated_model
from iconoclast_tl.stages.results import OF_AN_EVALUATION, published
from iconoclast_tl.stages.scoring import rescored
from tests.detectors.trained import LABELS, TEMPLATE, bert, save_tokenizer
from tests.stages.test_side_effects import Open, evaluated, opened

__all__ = ["opened"]


def test_where_the_truth_is_known_every_response_has_its_verdict(opened: Open) -> None:
    """Here: the grade is `refused` of prompts that begin with w1, the target prompts."""

    def truth(prompt: str, response: str) -> str:
        return "refused" if prompt.startswith("w1") else "answered"

    with opened() as workspace:
        results = evaluated(replace(workspace, truth=truth))
        rows = read_transcript(workspace.folder.responses)
    assert {(row.set, said.grade) for row in rows for said in row.said.values()} == {
        ("target", "refused"),
        ("neutral", "answered"),
        ("borderline", "answered"),
    }
    assert results["edited"]["grades"]["refused"]["target"]["value"] == 1
    assert results["edited"]["answered_rate"]["value"] == 0
    assert [one["detector"] for one in results["accuracy"]] == ["markers"]


def test_another_edit_leaves_nothing_of_what_was_said_of_the_last_one(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(budgets=[2]) as workspace:
        first = evaluated(workspace)
    assert set(OF_AN_EVALUATION) <= first.keys()

    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_stage, "all_cross_entropies", stopped)
    with opened() as workspace, pytest.raises(KeyboardInterrupt):
        evaluated(workspace, 0.5)
    assert not workspace.folder.results.exists()
    assert not workspace.folder.evaluation_page.exists()
    left = workspace.folder.read_state()
    assert left["evaluated"] != first["evaluated"]
    assert [name for name in ("detector", "detectors", "agreement", "paired", "cross_entropy") if left[name]] == []
    assert left["base"].keys() == left["edited"].keys() == {"kl_first_token", "kl_sequence"}
    assert left["edited"] != {name: first["edited"][name] for name in left["edited"]}


def test_who_reads_prompts_is_given_them_later_and_they_are_not_kept_for_that(opened: Open, tmp_path: Path) -> None:
    """A classifier that is asked of a finished evaluation: of prompts the folder holds the ids alone."""
    with opened() as workspace:
        evaluated(workspace)
    folder, place = workspace.folder, tmp_path / "classifier"
    bert(len(save_tokenizer(place)), list(LABELS)).save_pretrained(place)
    named = {"name": str(place), "labels": LABELS, "template": TEMPLATE, "device": "cpu"}
    results = rescored(folder, {"evaluation": {"detectors": ["classifier"], "classifier": named}}, None)
    assert results["detectors"].keys() == {"markers", "classifier"}
    assert {row.prompt for row in read_transcript(folder.responses)} == {None}
    asked = [
        Exchange(row.said["base"].text, prompt.text)
        for row, prompt in zip(
            read_transcript(folder.responses),
            (*workspace.contrast.test.target, *workspace.contrast.test.neutral, *workspace.contrast.test.borderline),
            strict=True,
        )
    ]
    labels = label_all(ClassifierDetector(ClassifierConfig(**named)), asked)
    kept = [row.said["base"].labels["classifier"] for row in read_transcript(folder.responses)]
    assert [one.name for one in kept] == [one.name for one in labels]
    assert [one.confidence for one in kept] == pytest.approx([one.confidence for one in labels], abs=1e-5)


def test_prompts_of_every_set_can_be_kept_later_with_the_model_and_without(opened: Open) -> None:
    with opened() as workspace:
        evaluated(workspace)
    folder, contrast = workspace.folder, workspace.contrast
    texts = [one.text for one in (*contrast.test.target, *contrast.test.neutral, *contrast.test.borderline)]

    def kept() -> list[str | None]:
        return [row.prompt for row in read_transcript(folder.responses)]

    assert kept() == [None] * len(texts)
    rescored(folder, {"evaluation": {"keep_prompts": True}}, None)
    assert kept() == texts
    for keep, wanted in ((False, [None] * len(texts)), (True, texts)):
        with opened(keep_prompts=keep) as workspace:
            evaluated(workspace)
        assert kept() == wanted


def test_the_time_of_an_evaluation_is_in_its_results(opened: Open) -> None:
    with opened() as workspace:
        results = evaluated(workspace)
    assert results["timing"]["evaluate"] > 0
    assert results == published(workspace.folder)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every comparison that asks the model."""
    asked: list[str] = []
    honest = evaluation_stage.ask_base_and_edited

    def counting(*given: Any) -> Any:
        asked.append("asked")
        return honest(*given)

    monkeypatch.setattr(evaluation_stage, "ask_base_and_edited", counting)
    return asked


def test_responses_that_are_gone_are_asked_for_again(opened: Open, compared: list[str]) -> None:
    for gone in (False, False, True):
        with opened() as workspace:
            if gone:
                workspace.folder.responses.unlink()
            evaluated(workspace)
    assert len(compared) == 2


def test_an_adapter_with_other_weights_is_asked_again(
    opened: Open, tmp_path: Path, compared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_stage, "loaded_adapter", lambda model, adapter: nullcontext())
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for weights in ("first", "first", "second"):
        (adapter / "adapter_model.safetensors").write_text(weights)
        with opened() as workspace:
            evaluated_model(workspace, adapter)
    assert len(compared) == 2


def test_a_model_is_not_evaluated_into_a_folder_that_is_searched(opened: Open) -> None:
    with opened() as workspace:
        workspace.folder.trace.touch()
        with pytest.raises(UserError, match="holds a run of its own"):
            evaluated_model(workspace, None)


def test_an_adapter_is_known_by_its_files(tmp_path: Path) -> None:
    """By weights and configuration; what stands beside them (a model card that is written later) does not count."""
    for name, content in (("adapter_config.json", "{}"), ("adapter_model.safetensors", "x"), ("README.md", "a")):
        (tmp_path / name).write_text(content)
    before = evaluation_stage._digest(tmp_path)
    (tmp_path / "README.md").write_text("b")
    assert evaluation_stage._digest(tmp_path) == before
    (tmp_path / "adapter_model.safetensors").write_text("y")
    assert evaluation_stage._digest(tmp_path) != before
