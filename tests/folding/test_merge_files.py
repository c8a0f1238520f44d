"""Merging file by file is merging in memory, tensor for tensor, and touches nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from iconoclast_tl.architecture.writers import discovered_writers, know_writers
from iconoclast_tl.doctor.checks import Kind, random_edit
from iconoclast_tl.folding import merge
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.folding.merge import merged_model
from iconoclast_tl.folding.merge_files import merge_files, plan_merge
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.stored import skeleton, stored_folder, stored_parameters, weight_files
from tests.architectures import save_architecture

Load = Callable[..., Model]
LAYOUTS = (
    "Llama",
    "Mixtral",
    "gpt-oss",
    "GPT-2",
    "Gemma 3 (image and text)",
    "DeepSeek-V3 (MLA, shared experts, first layer dense)",
    "OPT",
)
"""Dense, experts stored one by one, experts stored together and turned round with biases, Conv1D, a prefix, shared
experts, names that are not known."""


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_architecture(tmp_path / "base", request.param)


def in_shards(folder: Path, strip: str = "") -> Path:
    """The model's one file cut in three, as large models are; `strip` takes a prefix off the names."""
    tensors = {name.removeprefix(strip): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number in range(3):
        save_file(
            {name: tensors[name] for name in names[number::3]}, folder / f"{number}.safetensors", {"format": "pt"}
        )
    index = {name: f"{at % 3}.safetensors" for at, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(folder / file).items()}


def merged_to(folder: Path, edit: Any, target: Path) -> dict[str, float]:
    """As the command does it: from a skeleton without weights."""
    hf = skeleton(str(folder), ModelConfig())
    know_writers(hf, _discovered_in(folder))
    return merge_files(plan_merge(edit, hf, folder), target)


def _discovered_in(folder: Path) -> dict[str, str]:
    """What a run's manifest says of writers under names that are not known."""
    model = load_model(ModelConfig(name=str(folder), device="cpu"))
    return discovered_writers(model.hf)


def test_files_hold_what_the_model_merged_in_memory_holds(folder: Path, load: Load, tmp_path: Path) -> None:
    """To the bit: the same sums in the same order, rounded once."""
    model = load(in_shards(folder))
    edit = random_edit(model)
    merged_to(folder, edit, tmp_path / "merged")
    expected = merged_model(fold(edit, model)).state_dict()
    found = load(tmp_path / "merged").hf.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not all(torch.equal(found[name], tensor) for name, tensor in model.hf.state_dict().items())


def test_nothing_else_is_touched(folder: Path, load: Load, tmp_path: Path) -> None:
    model = load(folder)
    (folder / "organism.json").write_text("{}")
    left = merged_to(folder, random_edit(model, Kind(name="attention", components=("attn_out",))), tmp_path / "merged")
    before, after = stored(folder), stored(tmp_path / "merged")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    paths = {path for path, kept in stored_parameters(model.hf, folder).items() if {one.name for one in kept} & changed}
    assert before.keys() == after.keys()
    assert {path.removesuffix(".weight").removesuffix(".bias") for path in paths} == set(left)
    assert all("attn" in path for path in paths)
    assert not (tmp_path / "merged" / "organism.json").exists()
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_weights_keep_the_dtype_in_which_they_are_stored(tmp_path: Path, load: Load) -> None:
    folder = save_architecture(tmp_path / "base", "Llama")
    halved = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halved, folder / "model.safetensors", {"format": "pt"})
    model = load(folder)
    plan = plan_merge(random_edit(model), model.hf, folder)
    merge_files(plan, tmp_path / "merged")
    assert model.hf.dtype == torch.float32
    assert plan.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in stored(tmp_path / "merged").values()} == {torch.bfloat16}


def test_names_without_the_prefix_of_the_model_are_found(tmp_path: Path, load: Load) -> None:
    """As GPT-2's own files have them."""
    folder = in_shards(save_architecture(tmp_path / "base", "GPT-2"), strip="transformer.")
    assert any(name.startswith("h.0.") for name in stored(folder))
    model = load(folder)
    edit = random_edit(model, Kind(name="affine", affine=True))
    merged_to(folder, edit, tmp_path / "merged")
    expected = merged_model(fold(edit, model)).state_dict()
    found = load(tmp_path / "merged").hf.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shards", [False, True])
def test_biases_that_the_base_lacks_come_in_a_file_of_their_own(tmp_path: Path, load: Load, shards: bool) -> None:
    folder = save_architecture(tmp_path / "base", "Llama")
    model = load(in_shards(folder) if shards else folder)
    edit = random_edit(model, Kind(name="affine", affine=True))
    merged_to(folder, edit, tmp_path / "merged")
    expected = merged_model(fold(edit, model)).state_dict()
    found = load(tmp_path / "merged").hf.state_dict()
    assert found.keys() == expected.keys() > model.hf.state_dict().keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_where_no_bias_can_be_it_is_told_before_anything_is_written(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "BIAS_FLAGS", ("attention_bias", "no_such_bias"))
    model = load(save_architecture(tmp_path / "base", "Llama"))
    with pytest.raises(UserError, match="use the adapter"):
        plan_merge(random_edit(model, Kind(name="affine", affine=True)), model.hf, tmp_path / "base")


def test_matrices_that_the_files_hold_otherwise_are_refused(tmp_path: Path, load: Load) -> None:
    folder = save_architecture(tmp_path / "base", "Mixtral")
    model = load(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="cannot be edited in the files"):
        plan_merge(random_edit(model), model.hf, folder)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from iconoclast_tl.models.stored import StoredTensor

    folder = save_architecture(tmp_path / "base", "Llama")
    model = load(folder)
    merged_to(folder, random_edit(model), tmp_path / "merged")
    before = stored(tmp_path / "merged")

    def full(self: StoredTensor, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoredTensor, "write", full)
    with pytest.raises(UserError, match="cannot write"):
        merged_to(folder, random_edit(model, seed=5), tmp_path / "merged")
    after = stored(tmp_path / "merged")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["base", "merged"]


def test_a_model_of_the_hub_is_read_where_its_files_were_put(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hub" / "models--owner--name"
    base = save_architecture(home / "snapshots" / "abc", "Llama")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert stored_folder("owner/name").resolve() == base.resolve()
    with pytest.raises(UserError, match="cannot have the files"):
        stored_folder("owner/other")
