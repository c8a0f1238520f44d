"""A fold is its preview: reloaded adapter and reloaded merged weights give the preview's logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.folding.fidelity import Fidelity
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.folding.verification import agreement_of_fold, agreement_on_quantised, reload_merged
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.adapter import loaded_adapter
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from tests.conftest import save_llama
from tests.edits.edits import random_edit, scaled

Load = Callable[..., Model]


def folded(model: Model, edit: Edit, rows: list[list[int]], place: Path) -> Fidelity:
    made = fold(edit, model)
    made.save(place / "adapter")
    merge_files(plan_merge(edit, model.hf, Path(model.name)), place / "merged")
    return agreement_of_fold(edit, made, rows, place / "adapter", reload_merged(model, place / "merged"), batch_size=3)


@pytest.mark.parametrize("row_normalization", ["none", "pre", "full"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("kind", ["plain", "biased"])
def test_preview_adapter_and_merged_weights_agree(
    request: pytest.FixtureRequest, load: Load, rows: list[list[int]], tmp_path: Path,
    kind: str, affine: bool, row_normalization: str,
) -> None:  # fmt: skip
    """Float32, measured 1e-6 to 5e-6: a tenth of the tolerance that results state."""
    model = load(request.getfixturevalue("llama_folder" if kind == "plain" else "biased_folder"))
    found = folded(model, random_edit(affine=affine, row_normalization=row_normalization), rows, tmp_path)
    assert found.preview_vs_adapter.max_abs_logit_diff < 1e-5
    assert found.preview_vs_merged is not None
    assert found.preview_vs_merged.max_abs_logit_diff < 1e-5
    assert found.ok
    assert found.preview_vs_base > 1e-2  # an unfolded model is not the preview
    assert len(found.residual_fraction) == 5


def test_several_directions_fold_too(llama: Model, rows: list[list[int]], tmp_path: Path) -> None:
    found = folded(llama, random_edit(k=3, affine=True), rows, tmp_path)
    assert found.ok
    assert found.preview_vs_adapter.max_abs_logit_diff < 1e-5


def test_in_float64_only_rounding_of_float64_is_left(llama_folder: Path, load: Load, rows: list[list[int]]) -> None:
    """So the float32 differences above are rounding and not algebra."""
    from iconoclast_tl.architecture.hook_points import hf_sites
    from iconoclast_tl.edits.hooks import preview

    model = load(llama_folder, "float64")
    edit = random_edit(affine=True, row_normalization="pre")
    exact = replace(edit, directions=edit.directions.double())
    ids = torch.tensor([rows[1]])
    with preview(exact, hf_sites(model.hf)), torch.no_grad():
        expected = model.hf(ids).logits
    with torch.no_grad():
        found = merged_model(fold(exact, model))(ids).logits
    assert found.dtype == torch.float64
    assert float((found - expected).abs().max()) < 1e-12


def test_an_adapter_of_another_edit_is_found_out(llama: Model, rows: list[list[int]], tmp_path: Path) -> None:
    edit = random_edit()
    wrong = fold(scaled(edit, 1.01), llama)
    wrong.save(tmp_path / "adapter")
    found = agreement_of_fold(edit, wrong, rows, tmp_path / "adapter", None)
    assert not found.ok


def test_the_adapter_holds_exactly_the_edited_modules(llama: Model, tmp_path: Path) -> None:
    fold(random_edit(), llama).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {f"model.layers.{layer}.{path}" for layer in range(3) for path in ("self_attn.o_proj", "mlp.down_proj")}
    expected.remove("model.layers.1.mlp.down_proj")
    assert set(config["target_modules"]) == expected
    assert config["r"] == config["lora_alpha"] == 1
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        found = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in file.keys()}  # noqa: SIM118
    assert found == expected


def test_ranks_differ_where_directions_do(llama: Model, rows: list[list[int]], tmp_path: Path) -> None:
    edit = random_edit(k=2)
    strengths = {name: values.clone() for name, values in edit.strengths.items()}
    strengths["attn_out"][1, 2] = 0
    found = folded(llama, replace(edit, strengths=strengths), rows, tmp_path)
    assert found.ok
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert list(config["rank_pattern"].values()) == [1]


def test_the_model_is_pristine_after_saving_and_loading_an_adapter(llama: Model, tmp_path: Path) -> None:
    ids = torch.arange(4, 12)[None]
    before, keys = llama.hf(ids).logits, list(llama.hf.state_dict())
    fold(random_edit(), llama).save(tmp_path / "a")
    with loaded_adapter(llama, tmp_path / "a") as wrapped:
        assert not torch.allclose(wrapped(ids).logits, before, atol=1e-3)
    with pytest.raises(RuntimeError, match="inside"), loaded_adapter(llama, tmp_path / "a"):
        raise RuntimeError("inside")
    assert torch.equal(llama.hf(ids).logits, before)
    assert list(llama.hf.state_dict()) == keys
    assert not hasattr(llama.hf, "peft_config")
    fold(random_edit(), llama).save(tmp_path / "b")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()


def test_an_adapter_saved_after_wrapping_a_twin_is_no_no_op(
    llama: Model, rows: list[list[int]], tmp_path: Path
) -> None:
    from iconoclast_tl.models.twin import Twin, make_twin

    assert isinstance(make_twin(llama), Twin)
    assert folded(llama, random_edit(), rows, tmp_path).ok


def test_merging_leaves_the_base_alone_and_shares_what_it_does_not_edit(llama: Model) -> None:
    weight = llama.hf.model.layers[0].self_attn.o_proj.weight.clone()
    merged = merged_model(fold(random_edit(), llama))
    assert torch.equal(llama.hf.model.layers[0].self_attn.o_proj.weight, weight)
    pairs = dict(llama.hf.named_parameters())
    shared = {name for name, p in merged.named_parameters() if p.data_ptr() == pairs[name].data_ptr()}
    assert set(pairs) - shared == {change.matrix.path for change in fold(random_edit(), llama).changes}


def test_reloaded_weights_take_the_room_of_what_was_edited_alone(llama: Model, tmp_path: Path) -> None:
    made = fold(random_edit(), llama)
    kept = {name: tensor.clone() for name, tensor in llama.hf.named_parameters()}
    reloaded = dict(reload_merged(llama, made.merge(tmp_path).path).named_parameters())
    held = dict(llama.hf.named_parameters())
    own = {name for name, tensor in reloaded.items() if tensor.data_ptr() != held[name].data_ptr()}
    assert own == {change.matrix.path for change in made.changes}
    assert all(torch.equal(kept[name], tensor) for name, tensor in held.items())


def test_a_tied_model_folds_and_merges(load: Load, rows: list[list[int]], tmp_path: Path) -> None:
    model = load(save_llama(tmp_path / "tied", tie_word_embeddings=True))
    assert folded(model, random_edit(), rows, tmp_path).ok


def test_an_affine_merge_switches_biases_on_and_only_then(llama: Model, rows: list[list[int]], tmp_path: Path) -> None:
    folded(llama, random_edit(affine=True), rows, tmp_path / "affine")
    folded(llama, random_edit(), rows, tmp_path / "plain")
    affine = json.loads((tmp_path / "affine" / "merged" / "config.json").read_text())
    plain = json.loads((tmp_path / "plain" / "merged" / "config.json").read_text())
    assert affine["attention_bias"] is affine["mlp_bias"] is True
    assert plain["attention_bias"] is plain["mlp_bias"] is False


def test_where_no_bias_can_be_only_the_adapter_carries_an_affine_edit(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iconoclast_tl.folding import merge

    monkeypatch.setattr(merge, "BIAS_FLAGS", ("attention_bias", "no_such_bias"))
    with pytest.raises(UserError, match="use the adapter"):
        merged_model(fold(random_edit(affine=True), llama))
    merged_model(fold(random_edit(), llama))


def test_what_cannot_be_folded_is_told(llama: Model) -> None:
    with pytest.raises(UserError, match="scope stream cannot be folded"):
        fold(random_edit(stream=True), llama)
    with pytest.raises(UserError, match="no strength other than zero"):
        fold(scaled(random_edit(), 0), llama)


def test_half_precision_weights_agree_within_their_own_rounding(
    llama_folder: Path, load: Load, rows: list[list[int]], tmp_path: Path
) -> None:
    found = folded(load(llama_folder, "bfloat16"), random_edit(), rows, tmp_path)
    assert found.ok
    assert found.adapter_by_module.max_relative_error < 1e-5  # in whatever dtype the model is


def test_files_in_half_precision_are_allowed_their_own_rounding_and_no_more(
    tmp_path: Path, load: Load, rows: list[list[int]]
) -> None:
    folder = save_llama(tmp_path / "base")
    halved = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halved, folder / "model.safetensors", {"format": "pt"})
    model, edit = load(folder), random_edit()
    plan, made = plan_merge(edit, model.hf, folder), fold(edit, model)
    made.save(tmp_path / "adapter")
    merge_files(plan, tmp_path / "merged")
    merged = reload_merged(model, tmp_path / "merged")
    found = agreement_of_fold(edit, made, rows, tmp_path / "adapter", merged, merged_dtype=plan.dtype)
    assert found.ok
    assert found.preview_vs_merged is not None
    assert 1e-4 < found.preview_vs_merged.max_abs_logit_diff < found.preview_vs_merged.tolerance < 1e-1
    assert found.preview_vs_adapter.tolerance < 1e-4
    merge_files(plan_merge(scaled(edit, 1.005), model.hf, folder), tmp_path / "wrong")
    wrong = reload_merged(model, tmp_path / "wrong")
    assert not agreement_of_fold(edit, made, rows, tmp_path / "adapter", wrong, merged_dtype=plan.dtype).ok


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_on_quantised_weights_an_adapter_is_its_preview_within_the_formats_noise(
    load: Load, rows: list[list[int]], tmp_path: Path, quantization: str
) -> None:
    # Heads of 16: bitsandbytes (0.50) decodes 4-bit matrices of 32 columns wrongly on CPUs with AVX512.
    llama = load(save_llama(tmp_path / "model", head_dim=16))
    model = load_model(ModelConfig(name=llama.name, dtype="float32", device="cpu", quantization=quantization))
    edit = random_edit()
    fold(edit, llama).save(tmp_path / "right")
    fold(scaled(edit, 0.5), llama).save(tmp_path / "wrong")
    right = agreement_on_quantised(edit, model, llama, rows, tmp_path / "right")
    wrong = agreement_on_quantised(edit, model, llama, rows, tmp_path / "wrong")
    assert right.ok
    assert 0 < right.max_abs_logit_diff < right.tolerance == wrong.tolerance
    assert not wrong.ok


def test_half_precision_still_tells_a_wrong_adapter(
    llama_folder: Path, load: Load, rows: list[list[int]], tmp_path: Path
) -> None:
    model, edit = load(llama_folder, "bfloat16"), random_edit()
    wrong = fold(scaled(edit, 0.85), model)
    wrong.save(tmp_path / "adapter")
    assert not agreement_of_fold(edit, wrong, rows, tmp_path / "adapter", None).ok


def test_a_comparison_that_gives_nan_is_no_agreement(
    llama: Model, rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iconoclast_tl.folding import verification

    made = fold(random_edit(), llama)
    made.save(tmp_path)
    honest = verification._difference
    calls: list[float] = []

    def sometimes_nan(a: torch.Tensor, b: torch.Tensor) -> float:
        calls.append(honest(a, b))
        return float("nan") if len(calls) == 3 else calls[-1]  # the adapter's, in the first batch of three

    monkeypatch.setattr(verification, "_difference", sometimes_nan)
    assert not agreement_of_fold(random_edit(), made, rows, tmp_path, None, batch_size=3).ok


def test_a_folder_that_holds_no_adapter_of_this_model_is_told(llama: Model, tmp_path: Path) -> None:
    for content in (None, "{}", "{"):
        if content is not None:
            (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match="adapter"), loaded_adapter(llama, tmp_path):
            pass
