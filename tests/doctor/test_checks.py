"""Every check of the doctor finds what it is for: a model, or the tool, is broken in the way it looks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.doctor import checks
from iconoclast_tl.edits.completeness import random_rows, require_all_known, shares_left, shares_of_edits
from iconoclast_tl.edits.updates import Updates
from iconoclast_tl.folding import fold as folding
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.tokens import TokenBatch
from tests.architectures import save_architecture, save_llama4
from tests.edits.edits import scaled

Load = Callable[..., Model]


@pytest.fixture
def asked(llama: Model) -> list[list[int]]:
    return random_rows(llama)


def test_a_writer_that_is_not_known_shows_in_its_layer(llama: Model, asked: list[list[int]]) -> None:
    sites = llama.sites
    assert float(shares_left(llama, asked).max()) < 1e-5
    sites[Site(1, "mlp_out")] = sites[Site(0, "attn_out")]  # one writer is edited twice, and another not at all
    left = shares_left(llama, asked)
    assert left[1] > 0.1
    assert left[2] < 1e-5


def test_a_model_of_which_not_all_is_known_is_refused_by_layer(llama: Model) -> None:
    require_all_known(llama)
    sites = llama.sites
    sites[Site(1, "mlp_out")] = sites[Site(0, "attn_out")]
    with pytest.raises(UserError, match=r"not all that layer 1 of LlamaForCausalLM writes .* pass --attention-only"):
        require_all_known(llama)


def test_a_writer_that_flattens_its_rows_is_edited_row_by_row(llama: Model, asked: list[list[int]]) -> None:
    mlp = llama.hf.model.layers[1].mlp
    inside = lambda x: mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)  # noqa: E731
    mlp.forward = lambda x: mlp.down_proj(inside(x).flatten(0, 1)).reshape(x.shape)
    require_all_known(llama)
    assert checks.candidates(llama, asked).ok


def test_a_writer_that_turns_its_rows_round_is_refused(llama: Model) -> None:
    mlp = llama.hf.model.layers[1].mlp
    inside = lambda x: mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)  # noqa: E731
    mlp.forward = lambda x: mlp.down_proj(inside(x).transpose(0, 1)).transpose(0, 1)
    with pytest.raises(
        UserError,
        match=r"writes without rows, or not into the stream: got another shape at 1\.mlp_out",
    ):
        require_all_known(llama)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_small_beside_the_stream_is_told_in_any_precision(llama_folder: Path, load: Load, dtype: str) -> None:
    model = load(llama_folder, dtype)
    require_all_known(model)
    extra = model.hf.model.layers[1].mlp.down_proj.weight.flip(0) * 0.4  # a second writer, not known

    def write_more(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return (
            output + args[0].mean() + torch.nn.functional.linear(args[0].repeat(1, 1, 2)[..., : extra.shape[1]], extra)
        )

    model.hf.model.layers[1].mlp.register_forward_hook(write_more)
    with pytest.raises(UserError, match="not all that layer 1"):
        require_all_known(model)


def test_a_quantised_model_is_checked_as_far_as_it_can_be(llama_folder: Path) -> None:
    model = load_model(ModelConfig(name=str(llama_folder), device="cpu", quantization="8bit"))
    found = [ask() for ask in checks.examine(model)]
    assert not [check for check in found if check.ok is False]
    assert {check.name for check in found if check.ok is None} >= {"fold: plain", "gradient of λ", "generation"}


def test_attention_alone_is_examined_where_the_rest_is_not_known(load: Load, tmp_path: Path) -> None:
    model = load(save_llama4(tmp_path))
    with pytest.raises(UserError, match="pass --attention-only"):
        checks.examine(model)
    found = {check.name: check.ok for check in (ask() for ask in checks.examine(model, components=("attn_out",)))}
    assert found.pop("nothing is written along v") is None
    assert "fold: MLP" not in found
    assert set(found.values()) == {True}


@pytest.mark.parametrize("name", ["Gemma 2", "OLMo 2", "GLM-4"])
def test_a_post_norm_needs_its_gains(name: str, load: Load, tmp_path: Path) -> None:
    model = load(save_architecture(tmp_path, name))
    rows = random_rows(model)
    assert set(model.gains) == {"attn_out", "mlp_out"}
    assert float(shares_left(model, rows).max()) < 1e-5
    model.gains.clear()
    assert float(shares_left(model, rows).min()) > 0.05  # the plain direction leaves some of v


def test_half_a_strength_leaves_half(llama: Model, asked: list[list[int]]) -> None:
    left = shares_left(llama, asked, strength=0.5)
    # Layer 0 reads what no edit changed but its own attention's output; the others read what edits changed.
    assert ((left - 0.5).abs() < 0.2).all()
    assert float(shares_left(llama, asked, strength=0.0).sub(1).abs().max()) < 1e-6


def test_the_share_of_an_edit_is_by_its_own_directions(llama: Model, asked: list[list[int]]) -> None:
    edit = checks.random_edit(llama, checks.Kind(name="plain"))
    full = {name: torch.ones_like(values) for name, values in edit.strengths.items()}
    at_last = {name: values * torch.tensor([0, 0, 1.0]) for name, values in full.items()}
    edits = [replace(edit, strengths=strengths) for strengths in (full, at_last)]
    gone, left = shares_of_edits(llama, edits, asked)
    assert float(gone.max()) < 1e-5
    assert left[:2].tolist() == [1.0, 1.0]
    assert left[2] < 1e-5


def test_padding_that_leaks_is_found(llama: Model, asked: list[list[int]], monkeypatch: Any) -> None:
    assert checks.padding(llama, asked).ok
    honest = Model.inputs

    def unmasked(model: Model, batch: TokenBatch) -> dict[str, torch.Tensor]:
        return {**honest(model, batch), "attention_mask": torch.ones_like(batch.attention_mask)}

    monkeypatch.setattr(Model, "inputs", unmasked)
    assert checks.padding(llama, asked).ok is False


def test_a_wrong_gradient_is_found(llama: Model, asked: list[list[int]], monkeypatch: Any) -> None:
    assert checks.gradient(llama, asked).ok
    honest = checks.hooked

    def cut(updates: Any, sites: Any) -> Any:  # as if one site's strength had no gradient
        strengths = {site: v.detach() + 0 * v if site.layer == 2 else v for site, v in updates.strengths.items()}
        return honest(Updates(updates.at, strengths), sites)

    monkeypatch.setattr(checks, "hooked", cut)
    assert checks.gradient(llama, asked).ok is False


def test_edits_that_are_mixed_up_in_a_batch_are_found(llama: Model, asked: list[list[int]], monkeypatch: Any) -> None:
    assert checks.candidates(llama, asked).ok
    honest = checks.stack_updates
    monkeypatch.setattr(checks, "stack_updates", lambda updates: honest(updates[::-1]))
    assert checks.candidates(llama, asked).ok is False


def test_a_fold_of_other_strengths_is_found(llama: Model, asked: list[list[int]], monkeypatch: Any) -> None:
    honest = checks.fold
    monkeypatch.setattr(checks, "fold", lambda edit, model: honest(scaled(edit, 1.02), model))
    found = checks.fold_check(llama, asked, checks.Kind(name="plain"))
    assert found.ok is False
    assert "is off by 0.02 of what the edit changes there" in found.note


def test_an_edit_that_tells_nothing_proves_nothing(llama: Model, asked: list[list[int]], monkeypatch: Any) -> None:
    honest = checks.random_edit
    monkeypatch.setattr(checks, "random_edit", lambda model, kind: scaled(honest(model, kind), 1e-6))
    found = checks.fold_check(llama, asked, checks.Kind(name="plain"))
    assert found.ok is None
    assert found.note == "the edit changes too little to tell"


def test_generation_of_other_weights_is_found(llama: Model, asked: list[list[int]], monkeypatch: Any) -> None:
    assert checks.generation(llama, asked).ok
    monkeypatch.setattr(checks, "merged_model", lambda made: made.model.hf)
    assert checks.generation(llama, asked).ok is False


@pytest.mark.parametrize("what", ["hook", "weight", "module"])
def test_what_is_left_behind_is_found(llama: Model, asked: list[list[int]], what: str) -> None:
    before = checks.state(llama, asked)
    assert checks.pristine(llama, asked, before).ok
    projection = llama.hf.model.layers[0].self_attn.o_proj
    if what == "hook":
        projection.register_forward_hook(lambda *_: None)
    elif what == "weight":
        projection.weight[0, 0] += 1
    else:
        llama.hf.model.layers[0].self_attn.add_module("more", torch.nn.Identity())
    assert checks.pristine(llama, asked, before).ok is False


@pytest.mark.parametrize(
    "kind",
    [checks.Kind(name="a", components=("mlp_out",), affine=True), checks.Kind(name="r", row_normalization="pre")],
)
def test_what_experts_cannot_carry_is_refused_with_reason(load: Load, tmp_path: Path, kind: checks.Kind) -> None:
    model = load(save_architecture(tmp_path, "Mixtral"))
    found = checks.fold_check(model, random_rows(model), kind)
    assert found.ok is None
    assert "experts" in found.note


def test_experts_given_a_constant_would_be_found_out(load: Load, tmp_path: Path, monkeypatch: Any) -> None:
    model = load(save_architecture(tmp_path, "Mixtral"))
    monkeypatch.setattr(checks, "require_carried", lambda *_: None)
    monkeypatch.setattr(folding, "require_carried", lambda *_: None)
    monkeypatch.setattr("iconoclast_tl.folding.adapter._require_carriers", lambda *_: None)
    assert (
        checks.fold_check(model, random_rows(model), checks.Kind(name="a", components=("mlp_out",), affine=True)).ok
        is False
    )


def test_attention_alone_is_edited_where_experts_cannot_be(load: Load, tmp_path: Path) -> None:
    model = load(save_architecture(tmp_path, "Mixtral"))
    found = checks.fold_check(
        model, random_rows(model), checks.Kind(name="attention", components=("attn_out",), affine=True)
    )
    assert found.ok
