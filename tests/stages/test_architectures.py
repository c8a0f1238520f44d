"""The whole job on a tiny random model of other architectures: gradient search, fold, merge, verification, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.execution.generation import generate
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.prompts.chat import ChatFormat
from iconoclast_tl.prompts.prompt import Prompt
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.fold import merged
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.pipeline import run_all
from iconoclast_tl.stages.search import searched
from iconoclast_tl.stages.settings import merge, parse_assignments
from tests.architectures import ARCHITECTURES, save_architecture, save_llama4

QUICK = [
    "evaluation.max_new_tokens=6",
    "evaluation.kl_tokens=4",
    "search.gradient.prices=[1, 0.001, 4]",
    "search.gradient.steps=6",
    "search.gradient.allow_negative=true",  # along a random direction either sign may be the one that helps
    "fold.merge=true",
]
TRIED = (
    "Gemma 2", "Gemma 3 (image and text)", "Falcon (new decoder)", "GPT-2", "OPT", "Mixtral", "gpt-oss",
    "DeepSeek-V3 (MLA, shared experts, first layer dense)",
)  # fmt: skip


@pytest.mark.parametrize("name", TRIED)
def test_a_whole_run(name: str, tmp_path: Path) -> None:
    folder = save_architecture(tmp_path / "model", name)
    options = named(tmp_path, folder)
    said: list[str] = []
    with open_workspace(merge(parse_assignments(QUICK), options), None, tmp_path / "run", say=said.append) as workspace:
        results = run_all(workspace)
    fidelity = results["fidelity"]
    assert fidelity["ok"]
    assert fidelity["preview_vs_merged"]["ok"]
    assert 0 < fidelity["n_matrices"] <= ARCHITECTURES[name].matrices
    assert fidelity["preview_vs_base"] > 100 * fidelity["preview_vs_merged"]["tolerance"]  # there is an edit to prove
    assert any("cannot be started" in line for line in said) is False


def test_a_merge_by_itself_knows_writers_of_other_names(tmp_path: Path) -> None:
    options = merge(parse_assignments(QUICK), named(tmp_path, save_architecture(tmp_path / "model", "OPT")))
    said: list[str] = []
    with open_workspace(options, None, tmp_path / "run", say=said.append) as workspace:
        activations = collected(workspace)
        searched(workspace, estimated(workspace, activations), activations)
        run, settings = workspace.folder, workspace.settings
    assert any("found by what they compute: model.decoder.layers.0.fc2 and 2 more" in line for line in said)
    assert merged(run, settings)["n_matrices"] > 0


def test_attention_alone_is_edited_where_the_mlp_is_not_known(tmp_path: Path) -> None:
    options = merge(parse_assignments(QUICK), named(tmp_path, save_llama4(tmp_path / "model")))
    with (
        open_workspace(options, None, tmp_path / "whole") as workspace,
        pytest.raises(UserError, match="pass --attention-only"),
    ):
        run_all(workspace)
    options = merge(options, parse_assignments(["edit.attention_only=true", "fold.merge=false"]))
    with open_workspace(options, None, tmp_path / "run") as workspace:
        results = run_all(workspace)
    assert results["fidelity"]["ok"]
    assert 0 < results["fidelity"]["n_matrices"] <= 3
    assert not any(results["chosen"]["strengths"]["mlp_out"])


def test_the_outer_study_asks_nothing_of_experts_that_they_have_not(tmp_path: Path) -> None:
    options = merge(parse_assignments(QUICK), named(tmp_path, save_architecture(tmp_path / "model", "Mixtral")))
    outer = ["search.method=outer", "search.n_trials=4", "search.n_startup_trials=2", "search.outer.rounds=1"]
    with open_workspace(merge(options, parse_assignments(outer)), None, tmp_path / "run") as workspace:
        results = run_all(workspace)
    assert results["search"]["trials"] == 4  # none failed
    assert results["fidelity"]["ok"]


def named(place: Path, folder: Path) -> dict[str, Any]:
    """The model, prompts and markers of what it says."""
    for side, first in (("target", "w1"), ("neutral", "w2")):
        lines = [f"{first} w{3 + i % 9} w{12 + i % 7} w{20 + i}" for i in range(15)]
        (place / f"{side}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "model": {"name": str(folder)},
        "prompts": {side: str(place / f"{side}.txt") for side in ("target", "neutral")},
        "evaluation": {"markers": sorted(words_said(folder, place / "target.txt"))},
    }


def words_said(folder: Path, prompts: Path) -> set[str]:
    """A word of what the model says to each of the first prompts: a behaviour that it shows on all splits."""
    model = load_model(ModelConfig(name=str(folder), device="cpu"))
    chat = ChatFormat(model.tokenizer, None, False)
    rows = [chat.encode(Prompt(line)) for line in prompts.read_text(encoding="utf-8").splitlines()]
    return {response.text.split()[0] for response in generate(model, rows, 6, len(rows)) if response.text}
