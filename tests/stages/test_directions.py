"""Directions of a run folder: what every candidate is scored on, what is kept of them, and when they are asked anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iconoclast_tl.architecture.sites import WRITERS
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimate import estimate_directions
from iconoclast_tl.directions.separation import d_prime
from iconoclast_tl.edits.addition import Addition, make_addition
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.edits.profiles import uniform
from iconoclast_tl.evaluation.baseline import baseline
from iconoclast_tl.evaluation.metrics.divergence import kl_divergence
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.scores.odds import token_log_odds
from iconoclast_tl.selection.choose import behaviour_tokens, choose
from iconoclast_tl.selection.rules import Selection
from iconoclast_tl.stages import directions as directions_stage
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import diagnosed, estimated
from iconoclast_tl.stages.edits import uniform_edit
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.settings import merge, parse_assignments
from iconoclast_tl.stages.workspace import Workspace
from tests.conftest import save_llama

TEMPLATE = "{{ bos_token }}{% for m in messages %} <user> {{ m['content'] }} <eos> w50{% endfor %} <assistant>"
QUICK = ["evaluation.max_new_tokens=2", "evaluation.kl_tokens=2", 'evaluation.markers=["w3","w4","w5"]']
TOKENS = torch.tensor([9, 17])
"""w2 and w10."""
LOOSE = ["rule=arditi", "drop_last=0", "max_kl=100", "min_induce=-100", "prompts=3", "keep=0.7"]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    folder = save_llama(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    named: dict[str, Any] = {}
    for side, first in (("target", "w1"), ("neutral", "w2")):
        lines = [" ".join([first, f"w{20 + i}", *["w9"] * (i % 4)]) for i in range(20)]
        (tmp_path / f"{side}.txt").write_text("\n".join(lines))
        named[side] = str(tmp_path / f"{side}.txt")
    return merge(parse_assignments(QUICK), {"model": {"name": str(folder)}, "prompts": named})


@contextmanager
def opened(options: dict[str, Any], out: Path, *changes: str) -> Iterator[Workspace]:
    with open_workspace(merge(options, parse_assignments(changes)), None, out) as workspace:
        yield workspace


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The estimator of every estimation, as it comes."""
    found: list[str] = []

    def spy(target: Tensor, neutral: Tensor, config: Any, *more: Any) -> Any:
        found.append(config.estimator)
        return estimate_directions(target, neutral, config, *more)

    monkeypatch.setattr(directions_stage, "estimate_directions", spy)
    return found


@torch.no_grad()
def scores(workspace: Workspace, directions: Directions, point: int) -> tuple[float, float, float]:
    """Bypass, induce and KL of one point's directions, prompt by prompt, on the first three val prompts."""
    model, n_layers, contrast = workspace.model, directions.n_layers, workspace.contrast
    target, neutral = (workspace.questions(side[:3]).rows for side in (contrast.val.target, contrast.val.neutral))
    residuals = collected(workspace).at(directions.position)
    vector = directions.main[point].double()
    gap = (
        residuals.target_train[:, point].double().mean(0) - residuals.neutral_train[:, point].double().mean(0)
    ) @ vector
    ones = {component: uniform(1.0, range(n_layers), n_layers) for component in WRITERS}
    vectors, weights = (
        given[:, point, None].expand(-1, n_layers, *given.shape[2:])
        for given in (directions.vectors, directions.weights)
    )
    ablation = make_edit(vectors, ones, EditConfig(scope="stream"), weights=weights)
    addition = make_addition(Addition(directions.main[point], point, float(gap)), n_layers)

    def log_probs(rows: Any, edit: Edit | None = None) -> Tensor:
        def say() -> Tensor:
            return torch.stack([model.hf(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in rows])

        if edit is None:
            return say()
        with preview(edit, workspace.sites):
            return say()

    divergence = kl_divergence(log_probs(neutral), log_probs(neutral, ablation)).mean()
    bypass, induce = (
        token_log_odds(log_probs(rows, edit), TOKENS).mean() for rows, edit in ((target, ablation), (neutral, addition))
    )
    return float(bypass), float(induce), float(divergence)


@pytest.mark.parametrize("estimator", ["mean", "contrastive-pca"])
def test_candidates_are_scored_as_each_alone(options: dict[str, Any], tmp_path: Path, estimator: str) -> None:
    """On val prompts, at the candidate's own position and point, with all its directions and their weights."""
    changes = [f"directions.selection.{one}" for one in LOOSE]
    changes += [f"directions.estimator={estimator}", "activations.positions=3", 'scores.tokens=["w2","w10"]']
    changes += ["directions.contrast=0.2", "directions.components=2"]
    with opened(options, tmp_path / "run", *changes) as workspace:
        activations = collected(workspace)
        chosen = estimated(workspace, activations)
        selection = Selection.from_json(json.loads((tmp_path / "run" / "selection.json").read_text()))
        assert (chosen.position, chosen.chosen) == (selection.chosen.position, selection.chosen.point)
        compared = 0
        for scored, _ in selection.table:
            residuals = activations.at(scored.position)
            config = workspace.settings.directions
            found = estimate_directions(residuals.target_train, residuals.neutral_train, config)
            b, g = (
                rows[:, scored.point].double() @ found.vectors[0, scored.point].double()
                for rows in (residuals.target_val, residuals.neutral_val)
            )
            assert scored.d_prime == pytest.approx(float(d_prime(b, g)), rel=1e-4)
            if scored.kl is None or scored.position == -3:
                continue
            about = {"selection": {"position": scored.position}}
            here = Directions(found.vectors, torch.zeros(4), found.weights, about)
            # 2e-3: float32 attention over other paddings, in log-odds.
            wanted = scores(workspace, here, scored.point)
            assert (scored.bypass, scored.induce, scored.kl) == pytest.approx(wanted, abs=2e-3)
            compared += 1
            if scored == selection.chosen:
                assert torch.equal(chosen.vectors, found.vectors)
                assert torch.equal(chosen.weights, found.weights)
        assert compared >= 3
        removed = [reason for _, reason in selection.table if reason == "the pre-screen"]
        assert removed
        if estimator == "contrastive-pca":
            assert bool(((chosen.weights[1] > 0) & (chosen.weights[1] < 0.99)).any())


@pytest.mark.parametrize("rule", ["arditi", "cosmic", "separation"])
def test_a_selection_without_a_run_folder_is_the_same(options: dict[str, Any], tmp_path: Path, rule: str) -> None:
    changes = [f"directions.selection.{one}" for one in LOOSE[1:]]
    changes += [f"directions.selection.rule={rule}", "activations.positions=2", 'scores.tokens=["w2","w10"]']
    with opened(options, tmp_path / "run", *changes) as workspace:
        activations = collected(workspace)
        estimated(workspace, activations)
        kept = Selection.from_json(json.loads((tmp_path / "run" / "selection.json").read_text()))
        settings, model, data = workspace.settings, workspace.model, workspace.contrast
    config = settings.directions.selection
    at = {position: activations.at(position) for position in activations.positions}
    found = {p: estimate_directions(one.target_train, one.neutral_train, settings.directions) for p, one in at.items()}
    base = baseline(model, data.val, settings.evaluation, at_most=config.prompts)
    tokens = behaviour_tokens(baseline(model, data.train, settings.evaluation), settings.scores, rule)  # type: ignore[arg-type]
    plain = choose(activations, found, config, base, tokens)
    assert (str(plain.chosen), plain.removed) == (str(kept.chosen), kept.removed)
    for name in ("d_prime", "bypass", "kl", "to_neutral"):
        mine, its = ([getattr(row, name) for row, _ in one.table] for one in (plain, kept))
        assert [value is None for value in mine] == [value is None for value in its]
        there = [(a, b) for a, b in zip(mine, its, strict=True) if a is not None]
        # 2e-3: float32 attention over other paddings.
        assert [a for a, _ in there] == pytest.approx([b for _, b in there], abs=2e-3)
        assert len(there) > 1 or rule == "separation"
    if rule != "separation":
        with pytest.raises(UserError, match=f"selection by {rule} runs the model"):
            choose(activations, found, config)


def test_cosmic_looks_for_each_side_at_the_other(options: dict[str, Any], tmp_path: Path) -> None:
    """A direction of the difference of means brings neutral prompts nearer to target ones where it is added."""
    changes = [
        "directions.selection.rule=cosmic",
        "directions.selection.max_kl=100",
        "directions.selection.drop_last=0",
    ]
    with opened(options, tmp_path / "run", *changes) as workspace:
        activations = collected(workspace)
        found = estimated(workspace, activations)
        selection = Selection.from_json(json.loads((tmp_path / "run" / "selection.json").read_text()))
    means = [rows.double().mean(0) for rows in (activations.target_val, activations.neutral_val)]
    cosine = torch.nn.functional.cosine_similarity
    assert int(cosine(*means, dim=-1)[1:-1].argmin()) == 1  # point 2 is where they are least alike
    scored = next(one for one, reason in selection.table if reason is None and one.point == 2)
    vector, gap = found.main[2].double(), (activations.target_train - activations.neutral_train)[:, 2].double().mean(0)
    moved = means[1][2] + (gap @ vector) * vector
    assert scored.to_target == pytest.approx(float(cosine(moved, means[0][2], dim=0)), abs=1e-4)
    assert scored.to_target > float(cosine(*means, dim=-1)[2]) + 1e-3


def test_directions_are_kept_as_long_as_they_would_come_out_the_same(
    options: dict[str, Any], tmp_path: Path, asked: list[str]
) -> None:
    def made_anew(*changes: str) -> int:
        before = len(asked)
        with opened(options, tmp_path / "run", *changes) as workspace:
            found = estimated(workspace, collected(workspace))
            assert found.provenance["directions"]["estimator"] == workspace.settings.directions.estimator
        return len(asked) - before

    assert made_anew() == 1
    assert made_anew() == 0
    assert made_anew("directions.resamples=3", 'directions.compare=["pca"]') == 0  # only shown
    assert made_anew("directions.estimator=median") == 1
    assert made_anew("directions.winsorize=0.9") == 1
    assert made_anew("directions.selection.drop_last=0.5") == 1
    assert made_anew("activations.positions=2") == 2
    assert made_anew("directions.position=-2") == 1
    assert made_anew() == 0
    file = tmp_path / "run" / "directions.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + bytes([content[-4] ^ 255, *content[-3:]]))  # another last number
    assert made_anew() == 1


def test_a_named_position_is_where_directions_are_estimated_and_told_apart(
    options: dict[str, Any], tmp_path: Path
) -> None:
    changes = "activations.positions=3", "directions.position=-2", "directions.estimator=contrastive-pca"
    with opened(options, tmp_path / "run", *changes, "directions.contrast=0.2") as workspace:
        activations = collected(workspace)
        found = estimated(workspace, activations)
        residuals = activations.at(-2)
        wanted = estimate_directions(residuals.target_train, residuals.neutral_train, workspace.settings.directions)
        report = diagnosed(workspace, activations, found)
    assert found.position == -2
    assert torch.equal(found.vectors, wanted.vectors)
    assert torch.equal(found.weights, wanted.weights)
    for point in range(4):
        b, g = (
            rows[:, point].double() @ wanted.vectors[0, point].double()
            for rows in (residuals.target_val, residuals.neutral_val)
        )
        assert float(found.separation[point]) == pytest.approx(float(d_prime(b, g)), abs=1e-6)
        there = (residuals.target_train - residuals.neutral_train)[:, point].double().mean(0).norm()
        assert report.diagnostics.points[point].difference_norm == pytest.approx(float(there), rel=1e-5)


def test_a_uniform_edit_has_all_directions_with_their_weights(options: dict[str, Any], tmp_path: Path) -> None:
    changes = "directions.estimator=contrastive-pca", "directions.contrast=0.2"
    with opened(options, tmp_path / "run", *changes) as workspace:
        activations = collected(workspace)
        found = estimated(workspace, activations)
        edit = uniform_edit(workspace, found, activations, 2, 0.5, [1])
        alone = uniform_edit(
            workspace, replace(found, vectors=found.vectors[:1], weights=found.weights[:1]), activations, 2, 0.5, [1]
        )
    assert len(edit.directions) > 1
    assert torch.allclose(edit.directions[:, 1], found.vectors[:, 2], atol=1e-6)
    for strengths in edit.strengths.values():
        assert torch.allclose(strengths, 0.5 * found.weights[:, 2, None] * torch.tensor([0.0, 1, 0]))
    assert float(edit.strengths["mlp_out"][1, 1]) not in (0.0, 0.5)
    assert torch.allclose(alone.directions[0], edit.directions[0])


def test_labels_are_of_the_markers_that_are_set_target_prompts_first(options: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for markers in ('["w3","w4","w5"]', '["nothing of this"]'):
        with opened(options, tmp_path / markers[2:4], f"evaluation.markers={markers}") as workspace:
            found.append(directions_stage.shown_on_train(workspace))
            shows = workspace.asked("train").shows
            assert found[-1].tolist() == [*shows["target"], *shows["neutral"]]
    assert not torch.equal(*found)
