"""`Run`: stages as methods, resumable on disk; the command line goes through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.stages import opening
from iconoclast_tl.stages.run import Run
from tests.cli.conftest import Cli, cli

__all__ = ["cli"]

SETTINGS: dict[str, Any] = {
    "search.method": "tpe", "search.n_trials": 3, "search.n_startup_trials": 2, "evaluation.max_new_tokens": 4,
    "evaluation.kl_tokens": 2, "evaluation.batch_size": 4, "model.device": "cpu",
}  # fmt: skip
MARKERS = ["w3", "w4", "w5", "w6", "w7", "w8"]


@pytest.fixture
def settings(llama_folder: Path, tmp_path: Path) -> dict[str, Any]:
    for name, first in (("target", "w1"), ("neutral", "w2")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{first} w{20 + i} w{3 + i % 5}\n" for i in range(15)))
    prompts = {f"prompts.{name}": str(tmp_path / f"{name}.txt") for name in ("target", "neutral")}
    return {**SETTINGS, **prompts, "model.name": str(llama_folder), "evaluation": {"markers": MARKERS}}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every model that is loaded."""
    loaded: list[str] = []
    honest = opening.load_model

    def load(*given: Any, **more: Any) -> Any:
        loaded.append("loaded")
        return honest(*given, **more)

    monkeypatch.setattr(opening, "load_model", load)
    return loaded


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    return {**results, "timing": None, "token_passes": None}


def test_stage_by_stage_is_the_whole_and_the_command_line(
    settings: dict[str, Any], tmp_path: Path, cli: Cli, loads: list[str]
) -> None:
    whole = Run(tmp_path / "whole", settings=settings)
    results = whole.all()
    assert results == whole.results
    assert repr(whole) == f"Run({tmp_path / 'whole'}: collected, searched, folded, evaluated)"
    parts = Run(str(tmp_path / "parts"), settings=settings)
    loads.clear()
    with parts.open() as workspace:
        assert parts.collect().n_points == workspace.model.n_layers + 1
        edit = parts.search()
        assert parts.fold() == workspace.folder.read_state()["fidelity"]
        with pytest.raises(UserError, match="was not evaluated"):
            _ = parts.results
        parts.evaluate()
    assert loads == ["loaded"]
    assert parts.edit.digest() == edit.digest() == whole.edit.digest()
    assert timeless(parts.results) == timeless(results)
    flags = [part for key, value in settings.items() if key != "evaluation" for part in ("--set", f"{key}={value}")]
    markers, out = f"evaluation.markers={json.dumps(MARKERS)}", str(tmp_path / "run")
    said = cli("run", *flags, "--set", markers, "--out", out, "--json")
    assert said.code == 0, said.err
    assert timeless(json.loads(said.out)) == timeless(results)


def test_it_resumes_and_what_it_was_made_with_need_not_be_said_again(settings: dict[str, Any], tmp_path: Path) -> None:
    first = Run(tmp_path / "run", settings=settings)
    edit = first.search()
    inode = first.folder.activations.stat().st_ino
    again = Run(tmp_path / "run")
    assert again.edit.digest() == edit.digest()
    assert again.all()["chosen"]["edit"] == edit.digest()
    assert again.folder.activations.stat().st_ino == inode
    with pytest.raises(UserError, match=r"another evaluation\.max_new_tokens"):
        Run(tmp_path / "run", settings={"evaluation.max_new_tokens": 5}).evaluate()


def test_a_recipe_and_settings_of_either_form_are_taken(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("seed = 7\n[evaluation]\nmax_new_tokens = 3\n")
    said: list[str] = []
    del settings["evaluation.max_new_tokens"]
    run = Run(tmp_path / "run", recipe=tmp_path / "recipe.toml", settings=settings, say=said.append)
    with run.open() as workspace:
        assert (workspace.settings.seed, workspace.settings.evaluation.max_new_tokens) == (7, 3)
        assert list(workspace.settings.evaluation.markers) == MARKERS
        assert workspace.say is run.say


def test_a_preview_and_directions_are_the_stages(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings=settings)
    with run.open():
        directions = run.directions()
        strong, weak = run.preview(point=1), run.preview(point=1, strength=0.0)
        some = run.preview(point=1, layers=[0])
    assert torch.equal(run.directions().vectors, directions.vectors)
    kl = [one.divergences["edited"].sequence for one in (strong, some, weak)]
    assert kl[0] > 0
    assert kl[1] not in (0, kl[0])
    assert kl[2] == pytest.approx(0, abs=1e-6)


def test_the_folder_is_free_again_after_a_mistake(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings={**settings, "edit.scope": "stream"})
    for _ in range(2):
        with pytest.raises(UserError, match=r"edit\.scope stream"):
            run.all()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["results", "edit"])
def test_what_is_not_there_is_told_in_a_line(settings: dict[str, Any], tmp_path: Path, part: str) -> None:
    run = Run(tmp_path / "run", settings=settings)
    assert repr(run).endswith("run: nothing yet)")
    with pytest.raises(UserError, match="there is no run in"):
        getattr(run, part)
    run.collect()
    with pytest.raises(UserError, match="was not evaluated" if part == "results" else "has no edit yet"):
        getattr(run, part)


def test_settings_that_there_are_not_are_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown setting search\.trails"):
        Run(tmp_path / "run", settings={"search.trails": 3}).all()
    with pytest.raises(UserError, match="there is no recipe"):
        Run(tmp_path / "run", recipe=tmp_path / "none.toml").all()
