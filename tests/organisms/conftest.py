"""The shipped organism, loaded once; tests must not change it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.organisms.contrast import PromptLists, build_contrast
from iconoclast_tl.organisms.folder import shipped_folder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def load_organism(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model in float32 on the CPU, and tokenizer."""
    model = load_model(ModelConfig(name=str(folder), dtype="float32", device="cpu"))
    return model.hf, model.tokenizer


@pytest.fixture(scope="session")
def shipped_organism() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model (float32, from the float16 file) and tokenizer."""
    return load_organism(shipped_folder())


@pytest.fixture(scope="session")
def contrast() -> PromptLists:
    """The default contrast set."""
    return build_contrast()
