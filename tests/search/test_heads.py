"""Searches over single heads and neurons: candidates are the edits that they mean, and what is chosen stays chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import left_pad
from iconoclast_tl.search.config import GradientConfig
from iconoclast_tl.search.families import Source, families, stack_families, with_strengths
from iconoclast_tl.search.pareto import changing
from iconoclast_tl.search.profile import Profile
from iconoclast_tl.search.space import KernelSpace
from iconoclast_tl.stages import search as search_stage
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.fold import folded
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.search import require_settings_foldable, searched
from iconoclast_tl.stages.settings import merge, parse_assignments
from tests.activations.last_position import collect_last_position
from tests.architectures import save_architecture


def make_source(model: Model, rows: list[list[int]], mask: torch.Tensor) -> Source:
    found = collect_last_position(model, None, rows, 8)
    writes, reads = ({name: one.mean for name, one in kind.items()} for kind in (found.writes, found.reads))
    vectors = torch.randn(model.n_layers + 1, model.d_model, generator=torch.Generator().manual_seed(0))
    directions = Directions.single(torch.nn.functional.normalize(vectors, dim=-1), torch.ones(model.n_layers + 1))
    ground = Ground(neutral_writes=writes, neutral_reads=reads, parts={"attn_out": mask}, sites=hf_sites(model.hf))
    return Source({"as set": directions}, EditConfig(), ground)


@torch.no_grad()
def test_candidates_with_strengths_for_every_head_are_the_edits_that_they_mean(
    biased: Model, rows: list[list[int]]
) -> None:
    mask = torch.ones(3, 4)
    mask[1, 2] = 0.0  # a head that is left alone, whatever its strength
    source, sites = make_source(biased, rows, mask), hf_sites(biased.hf)
    chosen = families(source, KernelSpace(points=(0, 1)), (False, True), sites)
    strengths = torch.rand(len(chosen), 5, 3, generator=torch.Generator().manual_seed(3)) + 0.3
    inputs, seen = biased.inputs(left_pad(rows[:2], biased.pad_id)), list[torch.Tensor]()
    for family, own in zip(chosen, strengths, strict=True):
        edit = source.build(with_strengths(family, own))
        assert torch.allclose(edit.parts["attn_out"], own[:4].T * mask)
        assert edit.is_affine == family.spec.affine
        with preview(edit, sites):
            seen.append(biased.hf(**inputs).logits[:, -1])
    repeated = {name: tensor.repeat(len(chosen), 1) for name, tensor in inputs.items()}
    together = []
    for given in (strengths, strengths[:, [1, 0, 2, 3, 4]]):
        with hooked(stack_families(chosen, given), sites) as assigned:
            assigned.candidates = torch.arange(len(chosen)).repeat_interleave(2)
            together.append(biased.hf(**repeated).logits[:, -1].reshape(len(chosen), 2, -1))
    assert torch.allclose(together[0], torch.stack(seen), atol=1e-4)
    assert not torch.allclose(together[1], torch.stack(seen), atol=1e-3)  # heads are not each other


def test_gradients_reach_the_heads_that_are_edited(biased: Model, rows: list[list[int]]) -> None:
    mask = torch.ones(3, 4)
    mask[1, 2] = 0.0
    sites = hf_sites(biased.hf)
    chosen = families(make_source(biased, rows, mask), KernelSpace(), (True,), sites)[:2]
    strengths = Profile(GradientConfig(profile="head"), "suppress", 3, n_heads=4).start(2).requires_grad_()
    assert strengths.shape == (2, 5, 3)
    with hooked(stack_families(chosen, strengths), sites) as assigned:
        assigned.candidates = torch.arange(2)
        biased.hf(torch.tensor([rows[0], rows[0]])).logits[:, -1, 5].sum().backward()
    assert strengths.grad is not None
    reached = strengths.grad != 0
    assert not bool(reached[:, 2, 1].any())
    reached[:, 2, 1] = True
    assert bool(reached.all())


@pytest.mark.parametrize("profile", ["free", "kernel", "head"])
@pytest.mark.parametrize("goal", ["suppress", "strengthen"])
def test_a_search_that_begins_stronger_begins_in_the_same_place(profile: Any, goal: Any) -> None:
    """A kernel's position and reach are no strengths."""
    kind = Profile(GradientConfig(profile=profile), goal, 5, n_heads=4 if profile == "head" else 1)
    half, whole = (kind.strengths(kind.start(2, strength)) for strength in (0.5, 1.0))
    assert torch.allclose(whole, 2 * half)
    assert torch.allclose(whole, torch.full_like(whole, 1.0 if goal == "suppress" else -1.0))


def test_strengths_of_heads_that_are_all_0_are_no_edit() -> None:
    from iconoclast_tl.search.objective import ValScores
    from tests.search.specs import candidate, with_attention

    scores = ValScores(1.0, 0.0, 0.0, 0.0)
    nothing = candidate(0, with_attention((0.0, 0.0), (0.0, 0.0)), scores)
    something = candidate(1, with_attention((0.0, 0.0), (0.0, 0.1)), scores)
    assert changing([nothing, something]) == [something]
    with pytest.raises(UserError, match="no strengths change the behaviour"):
        changing([nothing])


@pytest.fixture
def options(llama_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Of a search on a random model."""
    for name, first in (("target", "w1"), ("neutral", "w2")):
        lines = [f"w{3 + i % 9} w{12 + i % 7} w{20 + i} {first} {first}" for i in range(15)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    short = ["evaluation.max_new_tokens=6", "evaluation.kl_tokens=4", "search.gradient.prices=[0.01, 0.001, 2]"]
    named = {
        "model": {"name": str(llama_folder)},
        "prompts": {name: str(tmp_path / f"{name}.txt") for name in ("target", "neutral")},
        "evaluation": {"markers": ["w3", "w4", "w5"]},
        "attribution": {"prompts": 9, "score": "projection"},
    }
    return merge(parse_assignments(short), named)


def search_into(options: dict[str, Any], out: Path) -> Edit:
    """The edit that a search into a folder takes."""
    with open_workspace(options, None, out) as workspace:
        require_settings_foldable(workspace)
        activations = collected(workspace)
        return searched(workspace, estimated(workspace, activations), activations)


@pytest.mark.parametrize(
    ("asked", "component", "kept"),
    [
        (["search.gradient.profile=head"], "attn_out", None),
        (["search.top_k=2", "search.by=direct"], "attn_out", 2),
        (["search.gradient.profile=neuron", "search.top_k=5"], "mlp_out", 5),
        (["search.method=tpe", "search.n_trials=4", "search.n_startup_trials=4", "search.top_k=6"], "attn_out", 6),
    ],
)
def test_a_search_of_parts_is_folded_and_goes_on_with_the_same_parts(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[str],
    component: Any,
    kept: int | None,
) -> None:
    for again in (False, True):
        with open_workspace(merge(options, parse_assignments(asked)), None, tmp_path / "run") as workspace:
            activations = collected(workspace)
            edit = searched(workspace, estimated(workspace, activations), activations)
            folded(workspace, edit)
        monkeypatch.setattr(search_stage, "ranked_parts", lambda *given: pytest.fail("ranked once more"))
        assert again or edit.sites
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    results = json.loads((tmp_path / "run" / "state.json").read_text())
    assert results["fidelity"]["ok"]
    if kept is None:
        assert "searched_parts" not in manifest
        assert edit.parts[component].shape == (3, 4)
        return
    assert len(manifest["searched_parts"]["names"]) == kept
    assert int((edit.parts[component] != 0).sum()) <= kept
    assert {site.component for site in edit.sites} == {component}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["search.top_k=2", 'edit.heads=["0.1"]'], "heads are chosen twice"),
        (["search.top_k=13"], "there are fewer heads"),
        (["search.gradient.profile=neuron", "search.top_k=121"], "the model has fewer neurons"),
        (
            ["search.top_k=2", "edit.row_normalization=pre"],
            "single heads and neurons take edits without row normalisation",
        ),
        (["search.gradient.profile=head", "edit.row_normalization=pre"], "take edits without row normalisation"),
        (["search.method=tpe", "search.gradient.profile=neuron"], "the profile neuron is of a search by gradient"),
    ],
)
def test_what_cannot_be_searched_is_told(options: dict[str, Any], tmp_path: Path, asked: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        search_into(merge(options, parse_assignments(asked)), tmp_path / "run")


def test_neurons_of_experts_are_refused(options: dict[str, Any], tmp_path: Path, load: Callable[..., Model]) -> None:
    folder = save_architecture(tmp_path / "mixtral", "Mixtral")
    assert load(folder).n_layers == 3
    given = replace_model(options, folder, "search.gradient.profile=neuron", "search.top_k=2")
    with pytest.raises(UserError, match="has no neurons that can be told apart"):
        search_into(given, tmp_path / "run")


def replace_model(options: dict[str, Any], folder: Path, *changes: str) -> dict[str, Any]:
    return merge(merge(options, {"model": {"name": str(folder)}}), parse_assignments(changes))


def test_heads_alone_leave_experts_alone(options: dict[str, Any], tmp_path: Path) -> None:
    """What cannot carry a centre is not asked for one."""
    folder = save_architecture(tmp_path / "mixtral", "Mixtral")
    given = replace_model(options, folder, "search.top_k=2", "search.by=direct", "attribution.score=logit")
    edit = search_into(given, tmp_path / "run")
    assert {site.component for site in edit.sites} <= {"attn_out"}
