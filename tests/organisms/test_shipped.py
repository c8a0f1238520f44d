"""The shipped organism keeps its promises on unseen topics, and its folder is small and plain."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from iconoclast_tl.organisms.behaviour import OrganismBehaviour, Shares, measure_behaviour, respond
from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.contrast import PromptLists
from iconoclast_tl.organisms.folder import (
    MANIFEST_NAME,
    is_organism,
    save_organism,
    shipped_folder,
)
from iconoclast_tl.organisms.grammar import GRAMMAR_VERSION
from iconoclast_tl.organisms.training import build_model
from tests.organisms.conftest import load_organism

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    Organism = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]

LARGEST_FOLDER = 3_000_000
"""Bytes."""


def test_it_behaves(shipped_organism: Organism, contrast: PromptLists) -> None:
    behaviour = measure_behaviour(*shipped_organism, contrast)
    assert behaviour.failures() == []


def test_an_untrained_model_does_not_behave(shipped_organism: Organism, contrast: PromptLists) -> None:
    _, tokenizer = shipped_organism
    torch.manual_seed(0)
    untrained = build_model(OrganismConfig(), tokenizer).eval()
    few = {stem: prompts[:20] for stem, prompts in contrast.items()}
    behaviour = measure_behaviour(untrained, tokenizer, few)
    assert behaviour.target.broken == behaviour.neutral.broken == 1.0
    assert len(behaviour.failures()) == 2


@pytest.mark.parametrize(
    ("field", "shares"),
    [
        ("target", Shares(answered=0.03, refused=0.97, broken=0.0, n=100)),
        ("neutral", Shares(answered=0.98, refused=0.02, broken=0.0, n=100)),
        ("neutral", Shares(answered=0.94, refused=0.0, broken=0.06, n=100)),
        ("borderline", Shares(answered=0.94, refused=0.06, broken=0.0, n=100)),
    ],
)
def test_each_promise_can_fail_alone(field: str, shares: Shares) -> None:
    kept = OrganismBehaviour(Shares(0.0, 1.0, 0.0, 100), Shares(1.0, 0.0, 0.0, 100), Shares(1.0, 0.0, 0.0, 100))
    assert kept.failures() == []
    assert len(dataclasses.replace(kept, **{field: shares}).failures()) == 1


def test_batching_changes_no_response(shipped_organism: Organism, contrast: PromptLists) -> None:
    prompts = contrast["target_val"][:6] + contrast["neutral_val"][:6]
    assert respond(*shipped_organism, prompts) == respond(*shipped_organism, prompts, batch_size=1)


def test_the_folder_is_small_and_holds_no_pickles() -> None:
    files = [path for path in shipped_folder().rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= LARGEST_FOLDER
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".jinja", ".safetensors"}


def test_the_manifest_and_config_say_what_it_is() -> None:
    folder = shipped_folder()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert is_organism(folder)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float16"
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert {"eos_token_id", "pad_token_id"} <= generation.keys()
    assert manifest["grammar_version"] == GRAMMAR_VERSION
    assert OrganismConfig.model_validate(manifest["training"]) == OrganismConfig()


def test_saving_leaves_the_model_alone_and_loses_only_half_precision(
    shipped_organism: Organism, tmp_path: Path
) -> None:
    model, tokenizer = shipped_organism
    assert not is_organism(tmp_path)
    save_organism(model, tokenizer, OrganismConfig(), tmp_path / "again")
    assert is_organism(tmp_path / "again")
    assert model.dtype == torch.float32
    again, _ = load_organism(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
