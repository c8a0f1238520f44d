"""GGUF files of tiny random models, written by the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WIDTHS: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Multiples of 32: the length of a block."""
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def words() -> list[str]:
    """A byte-level vocabulary: special tokens, every byte, two words that merges make."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*SPECIAL, *bytes_to_unicode().values(), "he", "Ġa"]


def tiny(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random Llama or Qwen2."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    make: Any = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    torch.manual_seed(seed)
    hf = make[0](make[1](vocab_size=len(words()), **{**WIDTHS, "rms_norm_eps": 1e-5, **changes})).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return hf


def save_gguf(
    path: Path,
    hf: Any,
    stored: str = "Q8_0",
    *,
    architecture: str | None = None,
    template: str | None = TEMPLATE,
    tokens: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
    left_out: str = "nothing",
) -> Path:
    """Write `hf` and set its weights to what the file's blocks say, so that it is the oracle of what must be loaded.

    stored: the type of its matrices. changes: keys with other values, `None` to leave one out. extra: further tensors.
    left_out: the start of names of tensors that are not written.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    kind = hf.config.model_type
    writer = GGUFWriter(str(path), architecture or kind)
    for key, value in {**_keys(hf, architecture or kind, template, tokens or words()), **(changes or {})}.items():
        _add(writer, key, value)
    for name, parameter in hf.named_parameters():
        ours, values = _ours(name), parameter.detach().numpy()
        if ours.startswith(left_out):
            continue
        quantised = GGMLQuantizationType[stored if values.ndim == 2 else "F32"]
        turned = _turned(ours, values, hf.config) if kind == "llama" else values
        blocks = quantize(turned, quantised)
        writer.add_tensor(ours, blocks, raw_dtype=quantised)
        back = dequantize(blocks, quantised).reshape(values.shape)
        back = _turned_back(ours, back, hf.config) if kind == "llama" else back
        parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(back)))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def claim_shape(path: Path, name: str, shape: Sequence[int]) -> None:
    """Have the file say that a tensor has another shape (fastest axis first), of as many axes."""
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    struct.pack_into(f"<I{len(shape)}Q", content, place, len(shape), *shape)
    path.write_bytes(content)


def claim_type(path: Path, name: str, kind: int, n_axes: int) -> None:
    """Have the file say that a tensor is of another type."""
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    struct.pack_into("<I", content, place + 4 + 8 * n_axes, kind)
    path.write_bytes(content)


def _keys(hf: Any, architecture: str, template: str | None, tokens: Sequence[str]) -> dict[str, Any]:
    config = hf.config
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }
    return {
        "general.name": "tiny",
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": ["h e", "Ġ a"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    }


def _add(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _ours(name: str) -> str:
    """Such as `blk.0.attn_q.weight`."""
    stem, _, leaf = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{leaf}"
    return f"{NAMES[stem]}.{leaf}"


def _heads(name: str, config: Any) -> int | None:
    if ".attn_q." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".attn_k." in name else None


def _turned(name: str, values: Any, config: Any) -> Any:
    """llama.cpp interleaves the two halves of every head of Llama's queries and keys."""
    if (n := _heads(name, config)) is None:
        return values
    return np.ascontiguousarray(values.reshape(n, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def _turned_back(name: str, values: Any, config: Any) -> Any:
    if (n := _heads(name, config)) is None:
        return values
    return values.reshape(n, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
