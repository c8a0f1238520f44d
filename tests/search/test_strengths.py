"""`search_strengths`: the same edit as a search in a run folder, without one; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import iconoclast_tl as itl
from iconoclast_tl.activations.store import Activations
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import ContrastSet
from iconoclast_tl.search import strengths as strengths_module
from iconoclast_tl.search.assemble import Inputs
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.strengths import estimated_by, search_strengths
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.search import searched
from iconoclast_tl.stages.settings import merge
from iconoclast_tl.stages.workspace import Workspace

GRADIENT: dict[str, Any] = {"prices": [0.01, 0.001, 2], "prompts": 6, "steps": 2}
TPE: dict[str, Any] = {"method": "tpe", "n_trials": 4, "n_startup_trials": 3}
TALK: dict[str, Any] = {"max_new_tokens": 6, "kl_tokens": 4, "markers": ["w3", "w4", "w5"], "batch_size": 16}
SETTINGS: dict[str, Any] = {
    "gradient": {"gradient": GRADIENT},
    "heads": {"gradient": {**GRADIENT, "profile": "head"}},
    "ranked": {"gradient": GRADIENT, "top_k": 2, "by": "direct"},
    "tpe": TPE,
    "outer": {"method": "outer", "n_trials": 2, "n_startup_trials": 2, "gradient": GRADIENT, "outer": {"rounds": 1}},
}


@pytest.fixture
def workspace(llama_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    for name, first in (("target", "w1"), ("neutral", "w2")):
        lines = [f"w{3 + i % 9} w{12 + i % 7} w{20 + i} {first} {first}" for i in range(15)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    common = {
        "model": {"name": str(llama_folder)},
        "prompts": {name: str(tmp_path / f"{name}.txt") for name in ("target", "neutral")},
        "evaluation": TALK,
        "attribution": {"score": "log-odds", "prompts": 32},
    }

    def opened(search: dict[str, Any]) -> Any:
        return open_workspace(merge(common, {"search": search}), None, tmp_path / "run")

    return opened


def in_folder(workspace: Workspace) -> tuple[Edit, Directions, Activations]:
    acts = collected(workspace)
    directions = estimated(workspace, acts)
    return searched(workspace, directions, acts), directions, acts


def plainly(workspace: Workspace, directions: Directions, acts: Activations | None, **more: Any) -> itl.Found:
    settings = workspace.settings
    given = {"evaluation": settings.evaluation, "seed": settings.seed, **more}
    return search_strengths(workspace.model, workspace.contrast, directions, acts=acts, **given)


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_finds_the_edit_that_a_search_in_a_run_folder_finds(
    workspace: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    with workspace(SETTINGS[kind]) as opened:
        edit, directions, acts = in_folder(opened)
        found = plainly(opened, directions, acts, **SETTINGS[kind])
        assert found.edit.digest() == edit.digest()
        assert found.edit_of(found.chosen).digest() == edit.digest()
        assert found.chosen in found.candidates
        assert set(map(id, found.front())) <= set(map(id, found.candidates))
        assert f"{len(found.candidates)} candidates by {found.config.method}, chosen " in repr(found)
        if kind == "tpe":
            other = plainly(opened, directions, acts, **{**TPE, "seed": 9})
            assert [one.spec for one in other.candidates] != [one.spec for one in found.candidates]


def test_filtered_directions_compete_with_the_same_unfiltered(workspace: Callable[..., Any]) -> None:
    with workspace(SETTINGS["gradient"]) as opened:
        acts = collected(opened)
        filtered, plain = (itl.estimate(acts, orthogonalize=one, benign_rank=2 * one) for one in (True, False))
        unknown = replace(filtered, provenance={})
        n = {name: plainly(opened, one, None, gradient=GRADIENT).about["families"] for name, one in (
            ("filtered", filtered), ("plain", plain), ("unknown", unknown),
        )}  # fmt: skip
    assert n["filtered"] == 2 * n["plain"] == 2 * n["unknown"]
    assert estimated_by(unknown) is None


def test_edits_are_affine_where_they_can_be_kept_so_and_of_the_kind_that_is_set(
    workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(affine: bool | None, method: str = "gradient", kept: bool = True) -> tuple[bool, ...]:
        monkeypatch.setattr("iconoclast_tl.search.assemble.affine_can_be_kept", lambda model, merge: kept)
        search, edit = SearchConfig.model_validate({"method": method}), EditConfig(affine=affine)
        return Inputs(
            model=opened.model, directions=itl.estimate(acts), acts=acts, search=search, edit=edit,
            scores=opened.settings.scores, estimated=None, seed=0,
        ).affine  # fmt: skip

    with workspace(SETTINGS["gradient"]) as opened:
        acts = collected(opened)
        assert (kinds(None), kinds(None, kept=False)) == ((True,), (False,))
        assert kinds(None, "tpe") == (False,)
        assert (kinds(None, "outer"), kinds(None, "outer", kept=False)) == ((False, True), (False,))
        assert {kinds(one, method) for one in (True, False) for method in ("gradient", "outer")} == {(True,), (False,)}
        found = plainly(opened, itl.estimate(acts), acts, gradient=GRADIENT)
        assert {one.spec.affine for one in found.candidates} == {True}


def test_a_folder_lets_a_search_go_on_and_refuses_another(
    workspace: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workspace(TPE) as opened:
        acts = collected(opened)
        directions = itl.estimate(acts)
        whole = plainly(opened, directions, acts, **TPE)
        kept = {"folder": tmp_path / "kept"}
        part = plainly(opened, directions, acts, **{**TPE, "n_trials": 2}, **kept)
        assert part.candidates == whole.candidates[:2]
        going_on = plainly(opened, directions, acts, **TPE, **kept)
        assert going_on.candidates == whole.candidates
        for other in ({"seed": 3}, {"edit": EditConfig(rank=4)}, {"kl": "first_token"}):
            with pytest.raises(UserError, match="holds the search of something else"):
                plainly(opened, directions, acts, **{**TPE, **kept, **other})
        with pytest.raises(UserError, match=r"got other (estimator, )?directions"):
            plainly(opened, itl.estimate(acts, "median"), acts, **TPE, **kept)


def test_parts_are_ranked_once_in_a_folder(
    workspace: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with workspace(SETTINGS["ranked"]) as opened:
        acts = collected(opened)
        given = {**SETTINGS["ranked"], "folder": tmp_path / "kept", "say": said.append}
        first = plainly(opened, itl.estimate(acts), acts, **given)
        monkeypatch.setattr(strengths_module, "ranked_parts", lambda *_: pytest.fail("ranked once more"))
        assert plainly(opened, itl.estimate(acts), acts, **given).edit.digest() == first.edit.digest()
    assert sum(line.startswith("only these heads are edited: ") for line in said) == 1


@pytest.fixture
def split(llama: Model) -> ContrastSet:
    texts = [[f"w{3 + i % 9} w{12 + i % 7} w{20 + i} {first}" for i in range(15)] for first in ("w1", "w2")]
    return ContrastSet.split(*texts, seed=0)


def test_what_cannot_be_searched_is_told(llama: Model, split: ContrastSet, load: Callable[..., Model]) -> None:
    talk = EvaluationConfig(**TALK)
    acts = itl.collect(llama, split)
    directions = itl.estimate(acts)

    def search(data: ContrastSet = split, given: Any = directions, **more: Any) -> itl.Found:
        return search_strengths(llama, data, given, **{"acts": acts, "evaluation": talk, "gradient": GRADIENT, **more})

    narrow = Directions.single(torch.ones(llama.n_layers + 1, 5), torch.ones(llama.n_layers + 1))
    with pytest.raises(UserError, match="the direction is of another model"):
        search(given=narrow)
    short = Directions.single(directions.main[:-1], directions.separation[:-1])
    with pytest.raises(UserError, match="the directions are of another model"):
        search(given=short)
    with pytest.raises(UserError, match="collected from other weights"):
        search(acts=replace(acts, fingerprint="0" * 64))
    with pytest.raises(UserError, match="no neutral prompts in this split"):
        search(data=replace(split, val=replace(split.val, neutral=())), acts=None)
    with pytest.raises(UserError, match="never shows the behaviour"):
        search(evaluation=talk.model_copy(update={"markers": ("never said",)}))
    with pytest.raises(UserError, match="unknown setting trials"):
        search(trials=3)
    with pytest.raises(UserError, match="settings are passed twice"):
        search(config=SearchConfig())
    with pytest.raises(UserError, match="the setting preset does not fit"):
        search(preset="others")
    with pytest.raises(UserError, match="edits that can be folded"):
        search(edit=EditConfig(scope="stream"))


def test_a_preset_gives_the_settings_that_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    config, edit = strengths_module._settings(None, None, {"preset": "heretic", "space": {"points": [0.2, 0.3]}})
    assert (config.method, config.n_ei_candidates, config.warm_start) == ("tpe", 128, False)
    assert (config.space.points, config.space.max_weight) == ((0.2, 0.3), (0.8, 1.5))
    assert (edit.row_normalization, edit.rank) == ("full", 3)
    given, own = strengths_module._settings(None, EditConfig(), {"preset": "heretic", "method": "outer"})
    assert (given.method, own) == ("outer", EditConfig())
    assert strengths_module._settings(None, None, {})[0].method == "gradient"


def test_warnings_of_other_weights_are_told(llama: Model, split: ContrastSet) -> None:
    said: list[str] = []
    directions = itl.estimate(itl.collect(llama, split))
    other = replace(directions, provenance={**directions.provenance, "fingerprint": "0" * 64})
    for given in (directions, other):
        with pytest.raises(UserError, match="never shows"):
            search_strengths(
                llama, split, given, evaluation=EvaluationConfig(**{**TALK, "markers": ("never",)}), say=said.append
            )
    assert [line for line in said if "other weights" in line] == [
        "warning: the directions were estimated on other weights"
    ]
