"""A model of which most lies on the disk: everything works as on one that is in memory, and nothing is loaded whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iconoclast_tl.architecture.offloading import device_of, is_offloaded, present
from iconoclast_tl.doctor.checks import Kind, examine, fold_check, random_edit
from iconoclast_tl.edits.completeness import random_rows
from iconoclast_tl.folding.fold import fold
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model
from tests.architectures import save_architecture

LIMIT = {"cpu": "30KB"}


def offloaded(folder: Path) -> Model:
    config = ModelConfig(name=str(folder), dtype="float32", device="cpu", device_map="auto", max_memory=LIMIT)
    model = load_model(config)
    assert is_offloaded(model.hf)
    return model


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "OPT"])
def test_every_check_holds(name: str, tmp_path: Path) -> None:
    model = offloaded(save_architecture(tmp_path / "model", name))
    found = {check.name: check for check in (ask() for ask in examine(model, saved=True))}
    assert not [check for check in found.values() if check.ok is False]
    assert {name for name, check in found.items() if check.ok is None} == {
        "TransformerLens", "fold: experts", "generation",
    }  # fmt: skip
    assert is_offloaded(model.hf)


def test_it_is_the_same_model(tmp_path: Path, load: Callable[..., Model], rows: list[list[int]]) -> None:
    folder = save_architecture(tmp_path / "model", "Llama")
    whole, parts = load(folder), offloaded(folder)
    assert parts.fingerprint == whole.fingerprint
    edit = random_edit(whole)
    for one, other in zip(fold(edit, whole).changes, fold(edit, parts).changes, strict=True):
        assert torch.equal(one.factors[0].a, other.factors[0].a)
    ids = torch.tensor([rows[0]])
    with torch.no_grad():
        assert torch.equal(whole.hf(ids).logits, parts.hf(ids).logits)


def test_weights_are_there_within_the_block_and_kept_beyond_it(tmp_path: Path, load: Callable[..., Model]) -> None:
    folder = save_architecture(tmp_path / "model", "Llama")
    module = offloaded(folder).hf.model.layers[2].mlp.down_proj
    assert device_of(module) == torch.device("cpu")
    with present(module):
        weight = module.weight
    assert module.weight.is_meta
    assert torch.equal(weight, load(folder).hf.model.layers[2].mlp.down_proj.weight)


def test_experts_on_the_disk_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    model = offloaded(save_architecture(tmp_path / "model", "Mixtral"))
    with pytest.raises(UserError, match="offloaded cannot be folded into an adapter"):
        fold(random_edit(model), model)
    assert fold_check(
        model, random_rows(model), Kind(name="attention", components=("attn_out",))
    ).ok  # attention is at hand


def test_a_second_model_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    """Experts are fused on loading, and so kept in files of their own under the same names."""
    first = offloaded(save_architecture(tmp_path / "first", "Mixtral"))
    ids = torch.tensor([[5, 9, 3]])
    with torch.no_grad():
        before = first.hf(ids).logits
        offloaded(save_architecture(tmp_path / "second", "Mixtral", seed=1))
        assert torch.equal(first.hf(ids).logits, before)


def test_limits_without_a_placement_are_a_mistake(tmp_path: Path) -> None:
    folder = save_architecture(tmp_path / "model", "Llama")
    with pytest.raises(UserError, match=r"pass --set model\.device_map=auto"):
        load_model(ModelConfig(name=str(folder), max_memory=LIMIT))


def test_a_model_in_memory_is_not_offloaded(llama: Model) -> None:
    assert not is_offloaded(llama.hf)
    assert device_of(llama.hf.model.norm) == torch.device("cpu")
