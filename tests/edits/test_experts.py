"""Routed experts with strengths of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iconoclast_tl.architecture.hook_points import bridge_sites, hf_sites
from iconoclast_tl.architecture.parts import expert_factors, routed_experts
from iconoclast_tl.doctor.checks import Kind, random_edit
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import hooked, preview
from iconoclast_tl.edits.store import load_edit, save_edit
from iconoclast_tl.edits.updates import Updates, edit_updates, stack_updates
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Twin, make_twin
from iconoclast_tl.prompts.tokens import left_pad
from tests.architectures import save_architecture

KIND = Kind(name="experts", components=("mlp_out",), experts=True)
NAMES = ("Mixtral", "gpt-oss", "Qwen2-MoE (shared expert)", "DeepSeek-V3 (MLA, shared experts, first layer dense)")


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path: Path, load: Callable[..., Model]) -> Model:
    return load(save_architecture(tmp_path / "model", request.param))


@pytest.fixture
def mixtral(tmp_path: Path, load: Callable[..., Model]) -> Model:
    return load(save_architecture(tmp_path / "model", "Mixtral"))


def logits(model: Model, rows: list[list[int]], hf: Any = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = (hf or model.hf)(**model.inputs(left_pad(rows, model.pad_id))).logits
    return found


def under(edit: Edit, model: Model, rows: list[list[int]]) -> Tensor:
    with preview(edit, hf_sites(model.hf)):
        return logits(model, rows)


def test_an_edit_of_one_expert_is_that_of_its_matrix(model: Model, rows: list[list[int]]) -> None:
    """The oracle writes W − λ v vᵀW (and b − λ v vᵀb) into one expert of one layer by hand."""
    layer, n = max(routed_experts(model.hf).items())
    base, differences = logits(model, rows), []
    for expert in range(n):
        edit = random_edit(model, Kind(name="plain", components=("mlp_out",)))
        strengths = {"mlp_out": torch.zeros_like(edit.strengths["mlp_out"]).index_fill_(1, torch.tensor(layer), 0.7)}
        factors = torch.zeros(model.n_layers, n)
        factors[layer, expert] = 1
        edit = replace(edit, strengths=strengths, experts=factors)
        found = under(edit, model, rows)
        module = model.hf.model.layers[layer].mlp.experts
        kept = {name: p.clone() for name, p in module.named_parameters()}
        v = edit.directions[0, layer]
        with torch.no_grad():
            weight = (
                module.down_proj[expert].T if module.down_proj.shape[1] != model.d_model else module.down_proj[expert]
            )
            weight.sub_(0.7 * torch.outer(v, v @ weight))
            if hasattr(module, "down_proj_bias"):
                module.down_proj_bias[expert].sub_(0.7 * v * (v @ module.down_proj_bias[expert]))
        # Shared experts have their layer's strength: theirs is left to the hooks.
        shared = replace(edit, experts=torch.zeros_like(factors))
        expected = under(shared, model, rows)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(kept[name])
        assert torch.allclose(found, expected, atol=1e-5)
        differences.append(float((found - base).abs().max()))
    assert max(differences) > 1e-3  # not every expert is chosen by these tokens


def test_factors_of_one_change_nothing_and_of_zero_everything(mixtral: Model, rows: list[list[int]]) -> None:
    edit = random_edit(mixtral, Kind(name="plain", components=("mlp_out",)))
    ones = torch.ones(mixtral.n_layers, 4)
    assert torch.allclose(under(replace(edit, experts=ones), mixtral, rows), under(edit, mixtral, rows), atol=1e-5)
    none = under(replace(edit, experts=0 * ones), mixtral, rows)
    assert torch.allclose(none, logits(mixtral, rows), atol=1e-5)  # Mixtral has no shared experts
    assert not torch.allclose(under(edit, mixtral, rows), logits(mixtral, rows), atol=1e-2)


def test_candidates_of_one_batch_keep_their_own_factors(model: Model, rows: list[list[int]]) -> None:
    sites, rows = hf_sites(model.hf), [row[:5] + row[:2] for row in rows[:3]]
    edits = [
        random_edit(model, KIND, seed=1),
        random_edit(model, Kind(name="plain"), seed=2),
        random_edit(model, KIND, seed=3),
    ]
    with hooked(stack_updates([edit_updates(edit, sites) for edit in edits]), sites) as assigned:
        assigned.candidates = torch.arange(3).repeat_interleave(len(rows))
        together = logits(model, [*rows, *rows, *rows]).chunk(3)
    for found, edit in zip(together, edits, strict=True):
        assert torch.allclose(found, under(edit, model, rows), atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_the_gradient_of_a_strength_goes_through_the_experts(mixtral: Model, rows: list[list[int]]) -> None:
    sites = hf_sites(mixtral.hf)
    updates = edit_updates(random_edit(mixtral, KIND), sites)

    def loss(strengths: Mapping[Any, Tensor]) -> Tensor:
        with hooked(Updates(updates.at, strengths), sites):
            return mixtral.hf(**mixtral.inputs(left_pad(rows, 0))).logits.log_softmax(-1)[..., 9].mean()

    leaves = {site: values.double().requires_grad_() for site, values in updates.strengths.items()}
    found = sum(g.sum() for g in torch.autograd.grad(loss(leaves), list(leaves.values())))
    with torch.no_grad():
        moved = [loss({site: values + step for site, values in leaves.items()}) for step in (1e-2, -1e-2)]
    assert float(found) == pytest.approx(float(moved[0] - moved[1]) / 2e-2, rel=2e-2)


def test_files_hold_each_expert_under_its_own_strength(
    model: Model, load: Callable[..., Model], tmp_path: Path
) -> None:
    """To the bit what is merged in memory; experts are often stored one by one, and their order counts here."""
    edit = random_edit(model, KIND)
    merge_files(plan_merge(edit, model.hf, Path(model.name)), tmp_path / "merged")
    expected = merged_model(fold(edit, model)).state_dict()
    found = load(tmp_path / "merged").hf.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_edit_keeps_its_factors_on_disk(mixtral: Model, tmp_path: Path) -> None:
    edit = random_edit(mixtral, KIND)
    save_edit(tmp_path, edit, {})
    found, _ = load_edit(tmp_path / "edit.safetensors", mixtral.n_layers, mixtral.d_model)
    assert found.experts is not None
    assert torch.equal(found.experts, edit.experts)
    assert found.digest() == edit.digest() != replace(edit, experts=None).digest()


def test_a_bridge_has_no_sites_for_single_experts(mixtral: Model) -> None:
    twin = make_twin(mixtral)
    assert isinstance(twin, Twin)
    with pytest.raises(ValueError, match="hf_sites"), preview(random_edit(mixtral, KIND), bridge_sites(twin.bridge)):
        pass


def test_experts_are_named_by_layer_and_number(mixtral: Model, llama: Model) -> None:
    assert expert_factors(["0.1", "2.3"], mixtral.hf).nonzero().tolist() == [[0, 1], [2, 3]]
    for names, message in (
        (["0.4"], "there is no expert 0.4"),
        (["3.0"], "want layer.expert: 0.0 to 0.3"),
        (["x"], "names no"),
    ):
        with pytest.raises(UserError, match=message):
            expert_factors(names, mixtral.hf)
    with pytest.raises(UserError, match="has no experts"):
        expert_factors(["0.0"], llama.hf)
