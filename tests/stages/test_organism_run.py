"""The main job on the shipped organism: what `make demo` runs reaches what it should, and stands on its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.organisms.folder import shipped_folder
from iconoclast_tl.stages.edits import chosen_edit
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.pipeline import run_all
from tests.documents import require_described

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("organism run")]  # one process makes the run, for all
ROOT = Path(__file__).parents[2]
COMMAND = "from iconoclast_tl.cli import main; main()"
RECIPE = ROOT / "experiments" / "demo" / "recipe.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the demo's recipe."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    with open_workspace({}, RECIPE, out) as workspace:
        run_all(workspace)
    return out


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_behaviour_goes_and_the_rest_stays(results: dict[str, Any]) -> None:
    base, edited = results["base"], results["edited"]
    assert base["behaviour_rate"]["value"] >= 0.98
    assert edited["behaviour_rate"]["value"] <= 0.10
    assert edited["kl_first_token"]["value"] <= 0.05
    assert edited["kl_sequence"]["value"] <= 0.05
    assert edited["spill_rate"]["value"] <= 0.02
    neutral = [model["grades"]["answered"]["neutral"]["value"] for model in (base, edited)]
    assert abs(neutral[0] - neutral[1]) <= 0.03
    assert base["answered_rate"]["value"] <= 0.02  # refusing is not answering
    assert edited["answered_rate"]["value"] >= 0.6


def test_every_key_of_the_results_is_in_the_reference(results: dict[str, Any]) -> None:
    require_described(results)


def test_the_fold_is_the_preview(results: dict[str, Any]) -> None:
    fidelity = results["fidelity"]
    assert fidelity["ok"]
    assert fidelity["preview_vs_adapter"]["max_abs_logit_diff"] < fidelity["preview_vs_adapter"]["tolerance"] < 1e-3
    assert fidelity["adapter_by_module"]["max_relative_error"] < 1e-4
    # The organism is stored in float16, and so are its merged weights.
    assert fidelity["preview_vs_merged"]["max_abs_logit_diff"] < fidelity["preview_vs_merged"]["tolerance"] < 1
    assert fidelity["merged_by_module"]["ok"]
    assert fidelity["preview_vs_base"] > 1


def test_the_run_folder_holds_what_it_should(folder: Path, results: dict[str, Any]) -> None:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "manifest.json", "activations.safetensors", "directions.safetensors", "selection.json",
        "preview.json", "trace.json",
        "edit.safetensors", "edit.json", "adapter", "merged", "state.json", "results.json", "responses.jsonl",
        "evaluation.html",
    }  # fmt: skip
    assert results["splits"] == {
        "train": {"target": 300, "neutral": 300},
        "val": {"target": 100, "neutral": 100},
        "test": {"target": 100, "neutral": 100, "borderline": 100},
    }
    assert set(results["timing"]) == {"collect", "preview", "search", "fold", "evaluate"}
    lines = (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 300
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]
    for card in (folder / "adapter" / "README.md", folder / "merged" / "README.md"):
        text = card.read_text(encoding="utf-8")
        assert "not the original model" in text
        assert f"{results['edited']['behaviour_rate']['value']:.1%}" in text


def test_running_again_repeats_nothing(folder: Path) -> None:
    kept = ("results.json", "trace.json", "activations.safetensors", "responses.jsonl")
    before = {name: (folder / name).read_bytes() for name in kept}
    with open_workspace({}, RECIPE, folder) as workspace:
        run_all(workspace)
    after = {name: (folder / name).read_bytes() for name in kept}
    assert json.loads(after["results.json"]) == json.loads(before["results.json"])
    assert after["activations.safetensors"] == before["activations.safetensors"]
    assert after["responses.jsonl"] == before["responses.jsonl"]
    assert after["trace.json"] == before["trace.json"]


def test_the_merge_command_writes_what_the_run_proved(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "merge", "--out", str(_copy(folder, tmp_path / "run"))],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written, proved = tmp_path / "run" / "merged", folder / "merged"
    assert {file.name: file.read_bytes() for file in written.iterdir()} == {
        file.name: file.read_bytes() for file in proved.iterdir()
    }


def _copy(folder: Path, target: Path) -> Path:
    """The run without its merged weights."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("merged")))


def test_plain_peft_and_plain_transformers_say_what_the_preview_says(folder: Path, results: dict[str, Any]) -> None:
    """Greedy, token for token, from a script that does not import the package."""
    base = shipped_folder()
    prompts = base / "contrast" / "target_test.jsonl"
    budget = results["edited"]["behaviour_rate"]["tokens"]
    script = Path(__file__).with_name("plain_peft.py")
    arguments = [str(base), str(folder / "adapter"), str(folder / "merged"), str(prompts), str(budget)]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    with open_workspace({}, RECIPE, folder) as workspace:
        edit = chosen_edit(workspace)
        rows = workspace.questions(workspace.contrast.test.target).rows
        base_tokens = [response.tokens for response in generate(workspace.model, rows, budget, len(rows))]
        with preview(edit, workspace.sites):
            edited_tokens = [response.tokens for response in generate(workspace.model, rows, budget, len(rows))]

    def without_padding(name: str) -> list[tuple[int, ...]]:
        return [tuple(token for token in row if token != said["pad"]) for row in said[name]]

    assert without_padding("base") == base_tokens
    assert without_padding("adapter") == edited_tokens
    assert without_padding("merged") == edited_tokens
    assert edited_tokens != base_tokens
