"""What else an edit moved: measured on base and edited, and not again where nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.evaluation import side_effects
from iconoclast_tl.evaluation.corpora import on_distribution
from iconoclast_tl.evaluation.metrics.cross_entropy import cross_entropy
from iconoclast_tl.evaluation.task_results import TaskResult, TaskResults, TaskScore
from iconoclast_tl.execution import memory
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.stages import evaluation as evaluation_stage
from iconoclast_tl.stages import side_effects as side_effects_stage
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.workspace import Workspace
from tests.edits.edits import random_edit, scaled

Open = Callable[..., Any]


@pytest.fixture
def opened(llama_folder: Path, tmp_path: Path) -> Open:
    """Open the same run folder, with other settings of the evaluation."""
    for name, first in (("target", "w1"), ("neutral", "w2")):
        lines = [f"{first} w{3 + i % 9} w{12 + i % 7} w{20 + i}" for i in range(15)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "texts.txt").write_text("w3 w4 w5 w6\nw7 w8 w9\n")
    (tmp_path / "borderline.txt").write_text("w2 w1 w9\nw2 w1 w8\n")
    prompts = {name: str(tmp_path / f"{name}.txt") for name in ("target", "neutral", "borderline")}

    def _opened(harness: Any = None, **evaluation: Any) -> Any:
        common = {"max_new_tokens": 6, "kl_tokens": 4, "markers": ["w3", "w4", "w5"]}
        settings = {
            "model": {"name": str(llama_folder)}, "prompts": prompts, "evaluation": {**common, **evaluation},
            "harness": harness or {},
        }  # fmt: skip
        return open_workspace(settings, None, tmp_path / "run")

    return _opened


def evaluated(workspace: Workspace, factor: float = 1.0) -> Any:
    edit = scaled(random_edit(), factor)
    return evaluation_stage._evaluate(workspace, {"edit": edit.digest()}, lambda: preview(edit, workspace.sites))


def test_an_edit_moves_the_loss_on_every_corpus(opened: Open, tmp_path: Path) -> None:
    texts = str(tmp_path / "texts.txt")
    with opened(corpora=["on-distribution", texts]) as workspace:
        found = evaluated(workspace)["cross_entropy"]
    assert found.keys() == {"on-distribution", texts}
    for losses in found.values():
        assert losses["change"]["value"] == pytest.approx(losses["edited"]["value"] - losses["base"]["value"])
        assert losses["change"]["value"] != 0


def test_without_strength_nothing_moves(opened: Open) -> None:
    with opened() as workspace:
        found = evaluated(workspace, 0.0)["cross_entropy"]["on-distribution"]
    assert found["change"]["value"] == pytest.approx(0, abs=1e-6)


def test_what_was_measured_of_the_same_texts_is_not_measured_again(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    honest = side_effects.cross_entropy

    def counting(model: Model, corpus: Any, *given: Any) -> Any:
        asked.append(corpus.name)
        return honest(model, corpus, *given)

    monkeypatch.setattr(side_effects, "cross_entropy", counting)
    with opened() as workspace:
        first = evaluated(workspace)
    texts = str(tmp_path / "texts.txt")
    with opened(corpora=[texts, "on-distribution"]) as workspace:
        second = evaluated(workspace)
    assert list(second["cross_entropy"]) == [texts, "on-distribution"]  # as asked for, before what was there
    assert asked == ["on-distribution"] * 2 + [texts] * 2  # base and edited
    assert second["cross_entropy"]["on-distribution"] == first["cross_entropy"]["on-distribution"]
    with opened(corpora=[texts], corpus_tokens=3) as workspace:
        third = evaluated(workspace)
    assert third["cross_entropy"][texts]["base"]["tokens"] < second["cross_entropy"][texts]["base"]["tokens"]
    assert third["cross_entropy"]["on-distribution"] == first["cross_entropy"]["on-distribution"]  # it stays
    (tmp_path / "texts.txt").write_text("w3 w4 w5 w6 w7\nw8 w9\n")  # other texts under the same name
    with opened(corpora=[texts], corpus_tokens=3) as workspace:
        changed = evaluated(workspace)
    assert changed["cross_entropy"][texts] != third["cross_entropy"][texts]
    with opened(corpora=[texts, "on-distribution"], corpus_tokens=3, corpus_texts=1) as workspace:
        fourth = evaluated(workspace)
    assert [third["cross_entropy"][texts]["base"]["n"], fourth["cross_entropy"][texts]["base"]["n"]] == [2, 1]


def test_on_distribution_is_what_the_base_says_to_neutral_prompts(opened: Open) -> None:
    with opened() as workspace:
        found = evaluated(workspace)["cross_entropy"]["on-distribution"]
        base = workspace.asked("test")
        losses = {
            name: cross_entropy(
                base.model,
                on_distribution(asked.rows, [one.tokens for one in base.responses[name]]),
                base.config.batch_rows,
            ).to_json()
            for name, asked in base.suite.items()
        }
    assert found["base"] == losses["neutral"]
    assert found["base"] != losses["target"]


def test_a_text_is_read_no_further_than_the_model_can(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"w{3 + i % 40}" for i in range(200)) + "\n")
    long = str(tmp_path / "long.txt")
    with opened(corpora=[long], corpus_tokens=150) as workspace:
        found = evaluated(workspace)["cross_entropy"][long]
        assert workspace.model.context_length == 64
    assert found["base"]["tokens"] < 64


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A harness that finds two tasks, one without a main metric; under a change three of four answers are lost."""
    asked: list[str] = []

    def run(model: Model, change: Any, config: Any, batch_size: int, system: str | None) -> TaskResults:
        asked.append(",".join(config.tasks))
        correct = {"base": (True, True, True, True)}
        if change is not None:
            with change():
                correct["edited"] = (True, False, False, False)
        scores = {name: {"acc,none": TaskScore(sum(found) / 4, 0.1, True)} for name, found in correct.items()}
        documents = tuple(f"sums/{number}" for number in range(4))
        told = TaskResult(
            name="sums", version="1", n=4, shots=0, subtasks=(), scores=scores, main="acc,none",
            documents=documents, correct=correct,
        )  # fmt: skip
        return TaskResults("0", True, 4, {"sums": told, "essays": replace(told, main=None)})

    monkeypatch.setattr(side_effects_stage, "run_tasks", run)
    monkeypatch.setattr("iconoclast_tl.stages.opening.require_tasks", lambda *given: None)
    return asked


def test_tasks_are_paired_base_against_edited_and_run_once(opened: Open, harness: list[str]) -> None:
    with opened(harness={"tasks": ["sums"], "limit": 4}) as workspace:
        found = evaluated(workspace)["tasks"]
    pairs = found["tasks"]["sums"]["paired"]
    assert (pairs["n"], pairs["lost"], pairs["gained"]) == (4, 3, 0)
    assert pairs["risk_difference"]["value"] == -3 / 4
    assert "paired" not in found["tasks"]["essays"]  # nothing says right or wrong of a document
    with opened() as workspace:
        assert evaluated(workspace)["tasks"] == found  # what was asked for stays asked for
    assert harness == ["sums"]
    with opened(harness={"tasks": ["sums"], "limit": 3}) as workspace:
        evaluated(workspace)
    with opened(harness={"tasks": ["sums", "essays"]}) as workspace:
        evaluated(workspace)
    assert harness == ["sums", "sums", "sums,essays"]


def test_a_corpus_that_is_none_is_told_before_the_model_loads(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iconoclast_tl.stages.opening.load_model", None)  # would fail otherwise
    with (
        pytest.raises(UserError, match=r"there is no corpus 'alpacca'.*did you mean alpaca"),
        opened(corpora=["alpacca"]),
    ):
        pass


def test_a_model_that_is_taken_out_of_memory_holds_nothing(llama: Model) -> None:
    before = sum(one.numel() for one in llama.hf.parameters())
    assert before > 0
    memory.release(llama.hf)
    assert not sum(one.numel() for one in (*llama.hf.parameters(), *llama.hf.buffers()))
