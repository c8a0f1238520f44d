"""Tiny random models for mathematics: built from configurations, no network, no training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line does
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from iconoclast_tl.models.config import ModelConfig
from iconoclast_tl.models.load import load_model
from iconoclast_tl.models.model import Model

VOCABULARY = 64
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Of tiny random models, as most configurations call them."""
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer(folder: Path) -> Any:
    """A word-level tokenizer w0…, saved and read again as any user's would be."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>"]
    words = [*special, *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[4:]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder), padding_side="left")


def save_llama(folder: Path, seed: int = 0, scale: float = 0.2, **changes: Any) -> Path:
    """A random Llama with grouped-query attention and its tokenizer; biases, where it has any, are random too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {**SIZES, "head_dim": 8, "initializer_range": scale, **changes}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=scale)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(str(folder))
    make_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from one test to another, nor in the caller's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Llama on disk."""
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def biased_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with attention and MLP biases on disk."""
    return save_llama(tmp_path_factory.mktemp("biased"), attention_bias=True, mlp_bias=True)


@pytest.fixture
def load() -> Callable[..., Model]:
    """Load a folder as a user would."""

    def _load(folder: Path, dtype: str = "float32") -> Model:
        return load_model(ModelConfig(name=str(folder), dtype=dtype, device="cpu"))

    return _load


@pytest.fixture
def llama(llama_folder: Path, load: Callable[..., Model]) -> Model:
    """A fresh plain Llama."""
    return load(llama_folder)


@pytest.fixture
def rows() -> list[list[int]]:
    """Token rows of different lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(7, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 11, 3, 8, 8, 2, 13)]


@pytest.fixture
def biased(biased_folder: Path, load: Callable[..., Model]) -> Model:
    """A fresh Llama with biases."""
    return load(biased_folder)


@pytest.fixture
def biased_double(biased_folder: Path, load: Callable[..., Model]) -> Model:
    """The same in float64."""
    return load(biased_folder, "float64")
