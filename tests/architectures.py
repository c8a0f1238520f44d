"""Tiny random models of every architecture that is supported: what the conformance suite runs on.

Small enough for a second each, with everything random that could hide a mistake by being one or zero: norms, biases,
expert biases. Widths differ wherever an architecture lets them (d_model, d_in of attention and of MLP, experts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conftest import SIZES, VOCABULARY, make_tokenizer

GPT2_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_inner": 40,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
BLOOM_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 3, "n_head": 4, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "init_std": 0.2, "word_embed_proj_dim": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
XGLM_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 24, "ffn_dim": 40, "num_layers": 3, "attention_heads": 4, "init_std": 0.2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MPT_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 24, "expansion_ratio": 2, "n_layers": 3, "n_heads": 4, "max_seq_len": 64,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""The last three keep their MLPs under names of their own: they are found by what they compute."""
EXPERTS: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOWED: Mapping[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}


@dataclass(frozen=True)
class Architecture:
    """One row of the suite."""

    config: str
    """Name of the configuration's class in transformers."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """To `SIZES`; None takes an entry out."""
    matrices: int = 6
    """That write into the stream, every expert counted."""
    bridged: bool = True
    """Whether TransformerLens computes the same."""
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)

    def settings(self) -> dict[str, Any]:
        """Of the configuration."""
        return {name: value for name, value in {**self.sizes, **self.changes}.items() if value is not None}


ARCHITECTURES: Mapping[str, Architecture] = {
    "Llama": Architecture("LlamaConfig", {"head_dim": 8}),
    "Llama, tied": Architecture("LlamaConfig", {"tie_word_embeddings": True}),
    "Llama, biases": Architecture("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "Falcon3 (Llama)": Architecture("LlamaConfig", {"head_dim": 16}),
    "Yi, SmolLM2 (Llama)": Architecture("LlamaConfig", {"num_key_value_heads": 1}),
    "Qwen2": Architecture("Qwen2Config"),
    "Qwen3": Architecture("Qwen3Config", {"head_dim": 8}),
    "Gemma 2": Architecture("Gemma2Config", WINDOWED),
    "Gemma 3 (text)": Architecture("Gemma3TextConfig", {**WINDOWED, "sliding_window_pattern": 2}),
    "Gemma 3 (image and text)": Architecture("Gemma3Config", bridged=False),
    "Mistral": Architecture("MistralConfig", {"head_dim": 8}),
    "Phi-2": Architecture("PhiConfig", {"hidden_size": 32, "num_key_value_heads": 4}),
    "Phi-3": Architecture("Phi3Config"),
    "Falcon (7B layout)": Architecture(
        "FalconConfig",
        {"intermediate_size": None, "multi_query": True, "parallel_attn": True, "alibi": False, "bias": False},
    ),
    "Falcon (new decoder)": Architecture(
        "FalconConfig",
        {"intermediate_size": None, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False, "bias": False},
        bridged=False,
    ),
    "OLMo": Architecture("OlmoConfig"),
    "OLMo 2": Architecture("Olmo2Config"),
    "OLMo 3": Architecture("Olmo3Config", {"sliding_window": 16}),
    "GLM-4": Architecture("Glm4Config", {"head_dim": 8}),
    # A quarter of a head's dimensions turn: of a head of 6 that would be an odd number.
    "StableLM": Architecture("StableLmConfig", {"hidden_size": 32, "use_parallel_residual": False}),
    "StableLM, parallel": Architecture(
        "StableLmConfig", {"hidden_size": 32, "use_parallel_residual": True, "use_qkv_bias": True}
    ),
    "SmolLM3": Architecture("SmolLM3Config"),
    "GPT-2": Architecture("GPT2Config", sizes=GPT2_SIZES),
    "GPT-NeoX": Architecture("GPTNeoXConfig", {"num_key_value_heads": None, "use_parallel_residual": False}),
    "GPT-NeoX, parallel": Architecture("GPTNeoXConfig", {"num_key_value_heads": None, "use_parallel_residual": True}),
    "Gemma": Architecture("GemmaConfig", {"head_dim": 8}),
    "Cohere 2": Architecture("Cohere2Config", {"sliding_window": 16}),
    "Granite": Architecture("GraniteConfig"),
    "EXAONE 4": Architecture("Exaone4Config", {"sliding_window": 16}),
    "Nemotron": Architecture("NemotronConfig"),
    "StarCoder 2": Architecture("Starcoder2Config"),
    "Seed-OSS": Architecture("SeedOssConfig", {"head_dim": 8}),
    "BLOOM": Architecture("BloomConfig", sizes=BLOOM_SIZES),
    "GPT-J": Architecture("GPTJConfig", {"rotary_dim": 4}, sizes=GPT2_SIZES),
    "OPT": Architecture("OPTConfig", sizes=OPT_SIZES),
    "XGLM": Architecture("XGLMConfig", sizes=XGLM_SIZES),
    "MPT": Architecture("MptConfig", sizes=MPT_SIZES),
    "Mixtral": Architecture("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}, 15),
    "Qwen2-MoE (shared expert)": Architecture("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 20}, 18),
    "Qwen3-MoE": Architecture("Qwen3MoeConfig", {**EXPERTS, "head_dim": 8}, 15),
    "OLMoE": Architecture("OlmoeConfig", EXPERTS, 15),
    "Granite-MoE": Architecture("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}, 15),
    "GLM-4-MoE": Architecture(
        "Glm4MoeConfig",
        {**EXPERTS, "num_experts": None, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "head_dim": 8},
        14,
    ),
    "gpt-oss": Architecture(
        "GptOssConfig",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
        15,
    ),
    "DeepSeek-V3 (MLA, shared experts, first layer dense)": Architecture(
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 12,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
        14,
    ),
}


def save_architecture(folder: Path, name: str, seed: int = 0) -> Path:
    """A random model of this architecture and a tokenizer, as a user's folder."""
    import transformers

    architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    if architecture.config == "Gemma3Config":
        model = transformers.AutoModelForImageTextToText.from_config(_with_images())
    else:
        config = getattr(transformers, architecture.config)(**architecture.settings())
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.normal_(std=0.2)
            elif "norm" in path:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(str(folder))
    make_tokenizer(folder)
    return folder


def save_llama4(folder: Path) -> Path:
    """A random Llama 4, whose experts do not say which way round they are stored: its MLPs are not supported."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    torch.manual_seed(0)
    config = Llama4TextConfig(**SIZES, head_dim=8, intermediate_size_mlp=40, num_local_experts=4)
    Llama4ForCausalLM(config).save_pretrained(str(folder))
    make_tokenizer(folder)
    return folder


def _with_images() -> Any:
    from transformers import Gemma3Config, Gemma3TextConfig

    text = Gemma3TextConfig(**{**SIZES, **WINDOWED, "sliding_window_pattern": 2})
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 63, "boi_token_index": 62, "eoi_token_index": 61}
    return Gemma3Config(text_config=text.to_dict(), vision_config=vision, **tokens)
